"""A policy as one TorchScript file and one ONNX file, as docs/robots.md shows: the same actions, for any batch."""

import re

import pytest
import torch
from running import SCRIPTS, run_here

import envs
from benchmarks.records import ROOT
from envs.checkpoint import Policy, _import_script


@pytest.fixture
def export(tmp_path, monkeypatch):
    """The commands of the page, run in a folder of their own: export(path of a checkpoint)."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/robots.md").read_text(), re.MULTILINE | re.DOTALL)
    (code,) = (block for block in blocks if "onnx" in block)
    monkeypatch.chdir(tmp_path)

    def run(checkpoint):
        exec(compile(code.replace("runs/<run>/checkpoint.pt", str(checkpoint)), "robots.md", "exec"), {})

    return run


def assert_same_actions(policy, num_obs):
    import onnxruntime

    session = onnxruntime.InferenceSession("policy.onnx", providers=["CPUExecutionProvider"])
    for rows in (1, 64):  # other than the batch that they were exported with
        obs = 3.0 * torch.randn(rows, num_obs)
        expected = policy(obs)
        assert expected.abs().max() > 1e-3  # PPO begins with small actions
        assert torch.equal(torch.jit.load("policy.ts")(obs), expected)
        (action,) = session.run(None, {"obs": obs.numpy()})
        assert torch.allclose(torch.from_numpy(action), expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # the exporter's
def test_a_trained_policy(tmp_path, export):
    run_here(tmp_path, "rpo", "--total-timesteps", 128)
    (checkpoint,) = tmp_path.glob("runs/*/checkpoint.pt")
    export(checkpoint)
    policy, args = envs.load_policy(checkpoint)
    assert policy.normalizer.count > 100 and not any(x.requires_grad for x in policy.parameters())
    assert_same_actions(policy, envs.task(args["env_id"]).num_obs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_networks_of_all_scripts(export, monkeypatch, script):
    module = _import_script(f"{script}_continuous.py")
    torch.manual_seed(0)
    normalizer = module.ObsNormalizer(5)
    normalizer.mean += torch.randn(5)
    policy = Policy(module.Actor(5, 2), normalizer, deterministic=True)
    monkeypatch.setattr(envs, "load_policy", lambda path: (policy, {"env_id": "cartpole"}))
    export("none")
    assert_same_actions(policy, 5)
