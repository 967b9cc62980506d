"""What several test files share."""

import pytest
import torch

SCRIPT = """
import torch

class Actor(torch.nn.Module):
    def __init__(self, num_obs, num_actions):
        super().__init__()
        self.mean = torch.nn.Linear(num_obs, num_actions)

    def act(self, obs, deterministic=False):
        mean = self.mean(obs)
        return torch.tanh(mean if deterministic else mean + torch.randn_like(mean))

class ObsNormalizer(torch.nn.Module):
    def __init__(self, num_obs):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_obs))

    def forward(self, obs):
        return obs - self.mean
"""


@pytest.fixture
def float64():
    """Equations are compared in double precision: torch's default, for one test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def saved_run(tmp_path, monkeypatch):
    """A script's checkpoint. The current folder is a new one: this script, one that lacks act(), and an empty one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("envs.checkpoint.SCRIPTS", tmp_path)
    (tmp_path / "script_of_a_test.py").write_text(SCRIPT)
    (tmp_path / "no_act.py").write_text(SCRIPT.replace("def act(", "def mean_action("))
    (tmp_path / "helper.py").write_text("")
    torch.manual_seed(0)
    actor = {"mean.weight": torch.randn(1, 5), "mean.bias": torch.randn(1)}
    args = {"env_id": "cartpole", "seed": 3}
    run = {"script": "script_of_a_test.py", "args": args, "actor": actor, "normalizer": {"mean": torch.randn(5)}}
    run |= {"iteration": 2, "episodes": [], "process": [1, "cpu", 3], "env": {}}
    return run | {"rng": torch.get_rng_state(), "cuda_rng": []}
