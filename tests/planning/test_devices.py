"""GPUs by the names that they give themselves."""

import pytest

from fastvivit.planning.devices import BY_NAME, names_of, peak_flops


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835.5e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H200 NVL", 835.5e12),
        ("NVIDIA GH200 480GB", 989.4e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 3090", 71e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H20", None),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_peaks_by_name(name, peak):
    assert peak_flops(name) == peak


@pytest.mark.parametrize(
    ("gpu", "names"),
    [
        ("NVIDIA A100-SXM4-40GB", ["a100", "a100-40gb"]),
        ("NVIDIA H100 80GB HBM3", ["h100"]),
        ("NVIDIA H200", ["h200"]),
        ("NVIDIA B200", ["b200"]),
        ("NVIDIA GeForce RTX 4090", ["rtx4090"]),
        ("NVIDIA H100 PCIe", []),
        ("NVIDIA GB200", []),
        ("NVIDIA GeForce RTX 4090 D", []),
    ],
)
def test_devices_by_name(gpu, names):
    assert names_of(gpu) == names
    assert all(BY_NAME[name].half == peak_flops(gpu) for name in names)
