"""Float32 products through oneDNN are float32 products."""

import os
import subprocess
import sys

import pytest
import torch

from envs import matmul


@pytest.fixture(autouse=True)
def restore(monkeypatch):
    before = torch.backends.mkldnn.matmul.fp32_precision
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", os.environ.get("ONEDNN_MAX_CPU_ISA", "AVX512_CORE"))
    yield
    torch.backends.mkldnn.matmul.fp32_precision = before


def run(*lines, **environment):
    """What a fresh process prints: oneDNN asks only once which instructions it may use."""
    environment = {name: value for name, value in os.environ.items() if name != "ONEDNN_MAX_CPU_ISA"} | environment
    command = [sys.executable, "-c", "\n".join(("import torch", "from envs import matmul", *lines))]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()[-1]


def test_products_have_the_error_of_float32():
    """Also backwards, for the layers of an actor, and whatever computes them on this machine."""
    error = """
def layers(dtype):
    torch.manual_seed(0)
    x = torch.randn(1000, 48, dtype=torch.float64).to(dtype)
    sizes = ((48, 400), (400, 200), (200, 1))
    layers = [torch.randn(size, dtype=torch.float64).to(dtype).requires_grad_() for size in sizes]
    y = x
    for layer in layers:
        y = y @ layer
    return torch.autograd.grad(y.sum(), layers)
errors = [((g.double() - h).norm() / h.norm()).item() for g, h in zip(layers(torch.float32), layers(torch.float64))]
print(max(errors))"""
    assert float(run("matmul.use_onednn()", error)) < 1e-6


def test_one_thread_and_two_give_the_same_bits():
    products = """
matmul.use_onednn()
torch.manual_seed(0)
a, b = torch.randn(4096, 400), torch.randn(400, 200)
results = []
for threads in (1, 2):
    torch.set_num_threads(threads)
    results.append(a @ b)
print(torch.equal(*results))"""
    assert run(products) == "True"


def test_it_stays_off_where_bf16_is_within_reach(monkeypatch):
    """The user lets oneDNN use bf16; the processor has AMX; a product turns out to be inexact."""
    default = torch.backends.mkldnn.matmul.fp32_precision
    monkeypatch.setattr(matmul, "_is_amd", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    cases = (
        lambda patch: patch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX"),
        lambda patch: patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True),
        lambda patch: patch.setattr(matmul, "largest_error", lambda: 2.9e-3),
    )
    for arrange in cases:
        with monkeypatch.context() as patch:
            arrange(patch)
            assert matmul.use_onednn() == "torch's default"
            assert torch.backends.mkldnn.matmul.fp32_precision == default
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert matmul.use_onednn() == "oneDNN, AVX-512"  # without these reasons it is on


@pytest.mark.parametrize("amd, amx", [(False, False), (True, True)])
def test_onednn_keeps_its_instructions_on_other_processors(amd, amx, monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setattr(matmul, "_is_amd", lambda: amd)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert matmul.use_onednn() == "torch's default" and "ONEDNN_MAX_CPU_ISA" not in os.environ


def test_the_measured_error_tells_bf16_from_float32(monkeypatch):
    assert matmul.largest_error() < matmul.LARGEST_ERROR
    multiply = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor,
        "__matmul__",
        lambda a, b: multiply(a, b) if a.dtype == torch.float64 else multiply(a.bfloat16(), b.bfloat16()).float(),
    )
    assert matmul.largest_error() > 1e-3
