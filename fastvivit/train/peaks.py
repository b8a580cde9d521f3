"""The most FLOP/s that a GPU is published to reach, by the name that it gives itself."""

from __future__ import annotations

import re

# Dense products of 16-bit numbers (bfloat16 where there is a choice) with sums in float32, without sparsity.
_PEAKS: tuple[tuple[str, float, str], ...] = (
    (r"GB200", 2500e12, "NVIDIA GB200 NVL72 data sheet, half of the sparse rate"),
    (r"B200", 2250e12, "NVIDIA Blackwell data sheet (HGX B200)"),
    (r"H200 NVL", 835.5e12, "NVIDIA H200 data sheet, half of the sparse rate"),
    (r"(GH200|H200)", 989.4e12, "NVIDIA H200 and GH200 data sheets, half of the sparse rate"),
    (r"H100 NVL", 835.5e12, "NVIDIA H100 data sheet, half of the sparse rate"),
    (r"H100 PCIe", 756e12, "NVIDIA H100 data sheet, half of the sparse rate"),
    (r"H100( 80GB HBM3| SXM\d?.*)?", 989.4e12, "NVIDIA H100 data sheet, half of the sparse rate"),
    (r"A100[ -].*", 312e12, "NVIDIA A100 data sheet"),
    (r"A40", 149.7e12, "NVIDIA A40 data sheet"),
    (r"A30", 165e12, "NVIDIA A30 data sheet"),
    (r"A10", 125e12, "NVIDIA A10 data sheet"),
    (r"L40S", 362e12, "NVIDIA L40S data sheet, half of the sparse rate"),
    (r"L40", 181e12, "NVIDIA L40 data sheet, half of the sparse rate"),
    (r"L4", 121e12, "NVIDIA L4 data sheet, half of the sparse rate"),
    (r"RTX 6000 Ada Generation", 364.2e12, "NVIDIA RTX 6000 Ada data sheet, half of the sparse rate"),
    (r"RTX A6000", 154.8e12, "NVIDIA RTX A6000 data sheet, half of the sparse rate"),
    (r"GeForce RTX 5090", 209.5e12, "NVIDIA RTX Blackwell white paper, appendix A"),
    (r"GeForce RTX 4090", 165.2e12, "NVIDIA Ada white paper, appendix A"),
    (r"GeForce RTX 3090", 71e12, "NVIDIA GA102 white paper, appendix A"),
)


def peak_flops(name: str) -> float | None:
    """FLOP/s of dense 16-bit matrix products with float32 sums, as published for a GPU; None for one not known.

    A part of a GPU (MIG), a laptop's and a cut-down model of the same number are others than those, and not known.

    Args:
        name: as ``torch.cuda.get_device_name`` gives it.
    """
    plain = re.sub(r"^NVIDIA ", "", name.strip())
    if "MIG" in plain:
        return None
    for pattern, peak, _ in _PEAKS:
        if re.fullmatch(rf"{pattern}( \d+GB.*)?", plain):
            return peak
    return None
