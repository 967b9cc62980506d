"""NVIDIA's compiler, which Warp brings along, takes every kernel and its adjoint; that needs no GPU."""

import pytest
import warp as wp

from benchmarks.registers import kernel_modules, module_rows

MODULES = list(kernel_modules())


def test_all_files_with_kernels_are_known():
    assert len(MODULES) == 7


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_kernels_compile_and_their_registers_are_known(module):
    rows = list(module_rows(module, arch=90))  # H100
    kernels = wp.get_module(module.__name__).kernels.values()
    expected = {(kernel.key, "forward") for kernel in kernels}
    options = wp.get_module(module.__name__).options
    expected |= {(kernel.key, "backward") for kernel in kernels if (options | kernel.options)["enable_backward"]}
    assert {(row["kernel"], row["direction"]) for row in rows} == expected and len(rows) == len(expected)
    # of 255, of which the adjoint of contact between bodies needs more than there are
    assert all(16 <= row["registers"] <= 255 and row["stack"] % 8 == 0 for row in rows)
    assert [row["kernel"] for row in rows if row["registers"] == 255] == ["pair_wrenches"] * ("contact" in str(module))
