"""NVIDIA's compiler, which Warp brings along, takes every kernel and its adjoint; that needs no GPU."""

import importlib
from pathlib import Path

import pytest
import warp as wp

import envs

FOLDER = Path(envs.__file__).parent
KERNELS = sorted(path for path in FOLDER.rglob("*.py") if "@wp.kernel" in path.read_text())


def module_of(path):
    return importlib.import_module(".".join(["envs", *path.relative_to(FOLDER).with_suffix("").parts]))


def test_all_files_with_kernels_are_known():
    assert len(KERNELS) == 7


@pytest.mark.parametrize("arch", (80, 90))  # A100 and H100
@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_kernels_compile(path, arch, tmp_path):
    (binary,) = wp.compile_aot_module(module_of(path), arch=arch, module_dir=tmp_path, use_ptx=False)
    (source,) = tmp_path.glob("*.cu")
    module, code = wp.get_module(module_of(path).__name__), source.read_text()
    for kernel in module.kernels.values():
        options, name = module.options | kernel.options, kernel.get_mangled_name()
        assert f"{name}_cuda_kernel_forward(" in code
        assert (f"{name}_cuda_kernel_backward(" in code) == options["enable_backward"]
    assert binary.stat().st_size > 0
