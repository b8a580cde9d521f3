"""Published ceilings of devices by name, and the least time that a piece of work can take there.

No measurement: what a kernel can't beat, before anything has run. A run's own measured ceilings, which are lower, are
in its results file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Device:
    """Ceilings of one part of an architecture.

    Attributes:
        name: the part.
        pattern: of the names that such a part gives itself, without "NVIDIA".
        source: where the figures are published for which nothing else is said here.
        copy: bytes/s of its memory.
        half: FLOP/s of dense 16-bit matrix products with float32 sums; half of a rate that counts zeros.
        tf32: the same of TF32.
        ieee: of float32 without matrix instructions.
        multiprocessors: how many.
        clock: Hz at which ``half`` is published.
        exponentials: a clock a multiprocessor ("Throughput of Native Arithmetic Instructions", CUDA C++ Programming
            Guide).
        memory: bytes of it.
        link: bytes/s between it and the host, one way: 16 lanes of PCI Express 4.0 (32e9) or 5.0 (64e9).
        blas: bytes of the workspace that PyTorch gives a cuBLAS handle there (``CUBLAS_WORKSPACE_CONFIG`` in its
            documentation).
    """

    name: str
    pattern: str
    source: str
    copy: float
    half: float
    tf32: float
    ieee: float
    multiprocessors: int
    clock: float
    exponentials: int = 16
    memory: int
    link: float
    blas: int = 8320 << 10

    @property
    def exponential_rate(self) -> float:
        """Exponentials a second."""
        return self.exponentials * self.multiprocessors * self.clock

    @property
    def summary(self) -> str:
        """The ceilings and where they come from, in one line."""
        rates = f"{self.copy / 1e12:.2f} TB/s, {self.half / 1e12:.0f} (16 bits), {self.tf32 / 1e12:.0f} (TF32) and "
        rates += f"{self.ieee / 1e12:.1f} (float32) TFLOP/s, {self.exponential_rate / 1e12:.2f} T exponentials/s"
        return f"{self.name}: {rates} ({self.source})"


DEVICES = {
    80: Device(
        name="A100 SXM 80 GB",
        pattern=r"A100[ -].*",
        source="NVIDIA A100 80 GB data sheet and Ampere white paper",
        copy=2.039e12,
        half=312e12,
        tf32=156e12,
        ieee=19.5e12,
        multiprocessors=108,
        clock=1.41e9,
        memory=80 * 10**9,
        link=32e9,
    ),
    90: Device(
        name="H100 SXM",
        pattern=r"H100( 80GB HBM3| SXM\d?.*)?",
        source="NVIDIA H100 data sheet and Hopper white paper",
        copy=3.35e12,
        half=989.4e12,
        tf32=494.7e12,
        ieee=66.9e12,
        multiprocessors=132,
        clock=1.83e9,
        memory=80 * 10**9,
        link=64e9,
        blas=32 << 20,
    ),
    100: Device(
        name="B200",
        pattern="B200",
        source="NVIDIA Blackwell data sheet; clock from its matrix rate",
        copy=8.0e12,
        half=2250e12,
        tf32=1125e12,
        ieee=75e12,
        multiprocessors=148,
        clock=1.86e9,
        memory=180 * 10**9,
        link=64e9,
        blas=32 << 20,
    ),
}

# The parts that a plan can name, also those that differ from an architecture's largest in memory alone or in all.
BY_NAME = {
    "a100": DEVICES[80],
    "a100-40gb": replace(
        DEVICES[80], name="A100 SXM 40 GB", source="NVIDIA A100 data sheet", copy=1.555e12, memory=40 * 10**9
    ),
    "h100": DEVICES[90],
    "h200": replace(
        DEVICES[90],
        name="H200 SXM",
        pattern="(GH200|H200)",
        source="NVIDIA H200 and GH200 data sheets",
        copy=4.8e12,
        memory=141 * 10**9,
    ),
    "b200": DEVICES[100],
    "rtx4090": Device(
        name="GeForce RTX 4090",
        pattern="GeForce RTX 4090",
        source="NVIDIA Ada white paper, appendix A",
        copy=1.008e12,
        half=165.2e12,
        tf32=82.6e12,
        ieee=82.6e12,
        multiprocessors=128,
        clock=2.52e9,
        memory=24 * 10**9,
        link=32e9,
    ),
}

# Of parts that no plan can name, ``half`` alone.
_PEAKS: tuple[tuple[str, float, str], ...] = (
    (r"GB200", 2500e12, "NVIDIA GB200 NVL72 data sheet"),
    (r"H200 NVL", 835.5e12, "NVIDIA H200 data sheet"),
    (r"H100 NVL", 835.5e12, "NVIDIA H100 data sheet"),
    (r"H100 PCIe", 756e12, "NVIDIA H100 data sheet"),
    (r"A40", 149.7e12, "NVIDIA A40 data sheet"),
    (r"A30", 165e12, "NVIDIA A30 data sheet"),
    (r"A10", 125e12, "NVIDIA A10 data sheet"),
    (r"L40S", 362e12, "NVIDIA L40S data sheet"),
    (r"L40", 181e12, "NVIDIA L40 data sheet"),
    (r"L4", 121e12, "NVIDIA L4 data sheet"),
    (r"RTX 6000 Ada Generation", 364.2e12, "NVIDIA RTX 6000 Ada data sheet"),
    (r"RTX A6000", 154.8e12, "NVIDIA RTX A6000 data sheet"),
    (r"GeForce RTX 5090", 209.5e12, "NVIDIA RTX Blackwell white paper, appendix A"),
    (r"GeForce RTX 3090", 71e12, "NVIDIA GA102 white paper, appendix A"),
)


def device_named(name: str) -> Device:
    """The device of a name in ``BY_NAME``. Raises ``ValueError`` for another."""
    if name not in BY_NAME:
        raise ValueError(f"device: wanted one of {', '.join(map(repr, BY_NAME))}, got {name!r}")
    return BY_NAME[name]


def names_of(gpu: str) -> list[str]:
    """Names in ``BY_NAME`` of the devices that a GPU may be: of an A100 two, which differ in memory.

    A part of a GPU (MIG), a laptop's and a cut-down model of the same number are others, and have none.

    Args:
        gpu: as ``torch.cuda.get_device_name`` gives it.
    """
    return [name for name, device in BY_NAME.items() if _is(gpu, device.pattern)]


def peak_flops(gpu: str) -> float | None:
    """FLOP/s of dense 16-bit matrix products with float32 sums, as published for a GPU; None for one not known.

    Args:
        gpu: as ``torch.cuda.get_device_name`` gives it.
    """
    known = [BY_NAME[name].half for name in names_of(gpu)]
    return next(iter(known + [peak for pattern, peak, _ in _PEAKS if _is(gpu, pattern)]), None)


def _is(gpu: str, pattern: str) -> bool:
    plain = re.sub(r"^NVIDIA ", "", gpu.strip())
    return "MIG" not in plain and re.fullmatch(rf"{pattern}( \d+GB.*)?", plain) is not None


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a call has to do."""

    flops: int = 0
    bytes: int = 0
    exponentials: int = 0
    kind: str = "half"


@dataclass(frozen=True)
class Prediction:
    """Seconds by each ceiling."""

    memory: float
    products: float
    exponentials: float

    @property
    def overlapped(self) -> float:
        """Everything at once: the least possible."""
        return max(self.memory, self.products, self.exponentials)

    @property
    def seconds(self) -> float:
        """Memory beside the rest, exponentials after the products they wait for: what kernels without overlap reach."""
        return max(self.memory, self.products + self.exponentials)

    @property
    def bound(self) -> str:
        """The ceiling that takes most of it."""
        if self.memory >= self.products + self.exponentials:
            return "memory"
        return "products" if self.products >= self.exponentials else "exponentials"


def predict(work: Work, device: Device) -> Prediction:
    """The least times of ``work`` on ``device``."""
    return Prediction(
        work.bytes / device.copy, work.flops / getattr(device, work.kind), work.exponentials / device.exponential_rate
    )
