"""Products of float32 matrices on AMD's processors: through oneDNN, as exact as torch's default and faster.

By default torch multiplies with MKL, which uses AVX2 on these processors even where they have AVX-512.  oneDNN uses
AVX-512.  How much faster that is depends on the processor: docs/performance.md.

The only switch that sends torch's products to oneDNN also permits bf16, whose error is thousands of times larger.
Three guards see to it that the products stay float32: oneDNN is confined to instructions that have no bf16, processors
with AMX are left alone, and the error of some products is measured before the switch stays on.
"""

import os
from pathlib import Path

import torch

LARGEST_ERROR = 1e-6
"""relative, against float64; that of float32 is 4e-7 for the shapes below, that of bf16 3e-3"""
SHAPES = ((4096, 400, 200), (128, 64, 400), (200, 1024, 400), (7, 100, 1))
"""(m, k, n): products like those of the networks"""


def use_onednn():
    """Send float32 products on the CPU to oneDNN where that is exact and faster. Returns what computes them.

    Call it before the first product: oneDNN then learns which instructions it may use.
    """
    if _is_amd() and torch.backends.cpu.get_cpu_capability() == "AVX512" and not torch.cpu._is_amx_tile_supported():
        allowed = os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE") == "AVX512_CORE"
        if allowed and torch.backends.mkldnn.is_available():
            before = torch.backends.mkldnn.matmul.fp32_precision
            torch.backends.mkldnn.matmul.fp32_precision = "bf16"
            if largest_error() <= LARGEST_ERROR:
                return "oneDNN, AVX-512"
            torch.backends.mkldnn.matmul.fp32_precision = before
    return "torch's default"


def largest_error():
    """Of products of float32 matrices with random entries, relative to their norm, against float64."""
    generator, errors = torch.Generator().manual_seed(0), []
    for m, k, n in SHAPES:
        shapes, options = ((m, k), (n, k)), {"generator": generator, "dtype": torch.float32, "device": "cpu"}
        a, b = (torch.randn(shape, **options) for shape in shapes)
        b = b.T
        exact = a.double() @ b.double()
        errors.append(((a @ b).double() - exact).norm() / exact.norm())
    return max(errors).item()


def _is_amd():
    """Whether /proc/cpuinfo, which Linux has, says so."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text()
