"""The policy of a checkpoint: whose networks act, on what, and what is said about a file that is not a checkpoint."""

import re
import sys

import pytest
import torch

import envs

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
def content(tmp_path, monkeypatch):
    """What a script in the current folder, which is the scripts' here, writes to its checkpoint.pt."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("envs.checkpoint.SCRIPTS", tmp_path)
    (tmp_path / "script_of_a_test.py").write_text(SCRIPT)
    (tmp_path / "helper.py").write_text("")
    torch.manual_seed(0)
    actor = {"mean.weight": torch.randn(1, 5), "mean.bias": torch.randn(1)}
    args = {"env_id": "cartpole", "seed": 3}
    return {"script": "script_of_a_test.py", "args": args, "actor": actor, "normalizer": {"mean": torch.randn(5)}}


def test_the_networks_of_the_checkpoint_act_on_normalised_observations(content):
    torch.save(content, "checkpoint.pt")
    policy, args = envs.load_policy("checkpoint.pt")
    assert args == {"env_id": "cartpole", "seed": 3}
    obs = torch.randn(7, 5)
    weight, bias = content["actor"].values()
    mean = (obs - content["normalizer"]["mean"]) @ weight.T + bias
    assert torch.allclose(policy(obs), torch.tanh(mean), atol=1e-6)
    policy, _ = envs.load_policy("checkpoint.pt", deterministic=False)
    torch.manual_seed(5)
    actions = policy(obs)
    torch.manual_seed(5)
    assert torch.allclose(actions, torch.tanh(mean + torch.randn(7, 1)), atol=1e-6)
    assert "script_of_a_test" not in sys.modules


def test_a_policy_can_be_evaluated(content):
    torch.save(content, "checkpoint.pt")
    policy, args = envs.load_policy("checkpoint.pt", deterministic=False)
    returns, lengths = envs.evaluate(envs.make(args["env_id"], 2), policy, args["seed"])
    assert returns.isfinite().all() and (lengths == 240).all()


@pytest.mark.parametrize(
    "change, reason",
    [
        (None, r"FileNotFoundError"),
        ({"script": "../script_of_a_test.py"}, r"written by \.\./script_of_a_test\.py for cartpole"),
        ({"script": "missing.py"}, r"written by missing\.py for cartpole"),
        ({"args": {"env_id": "bat"}}, r"written by script_of_a_test\.py for bat"),
        ({"args": {}}, r"KeyError: 'env_id'"),
        ({"actor": None}, r"it holds script, args, normalizer"),
    ],
)
def test_a_file_that_is_not_a_checkpoint_is_refused_in_one_sentence(content, change, reason):
    if change is not None:
        torch.save({key: x for key, x in (content | change).items() if x is not None}, "checkpoint.pt")
    with pytest.raises(
        ValueError, match=rf"path: expected a checkpoint\.pt .*, got 'checkpoint\.pt' \(.*{reason}"
    ) as error:
        envs.load_policy("checkpoint.pt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change, reason",
    [({"script": "helper.py"}, "Actor"), ({"normalizer": {"mean": torch.zeros(4)}}, "RuntimeError")],
)
def test_networks_that_do_not_fit_are_refused_in_one_sentence(content, change, reason):
    torch.save(content | change, "checkpoint.pt")
    with pytest.raises(
        ValueError, match=f"path: expected networks of {(content | change)['script']} .*{reason}"
    ) as error:
        envs.load_policy("checkpoint.pt")
    assert "\n" not in str(error.value) and re.search(r"'checkpoint\.pt'", str(error.value))
