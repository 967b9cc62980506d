"""The policy of a checkpoint: whose networks act, on what, and what is said about a file that is not a checkpoint."""

import re
import sys

import pytest
import torch

import envs


def test_the_networks_of_the_checkpoint_act_on_normalised_observations(saved_run):
    torch.save(saved_run, "checkpoint.pt")
    policy, args = envs.load_policy("checkpoint.pt")
    assert args == {"env_id": "cartpole", "seed": 3}
    obs = torch.randn(7, 5)
    weight, bias = saved_run["actor"].values()
    mean = (obs - saved_run["normalizer"]["mean"]) @ weight.T + bias
    assert torch.allclose(policy(obs), torch.tanh(mean), atol=1e-6)
    policy, _ = envs.load_policy("checkpoint.pt", deterministic=False)
    torch.manual_seed(5)
    actions = policy(obs)
    torch.manual_seed(5)
    assert torch.allclose(actions, torch.tanh(mean + torch.randn(7, 1)), atol=1e-6)
    assert "script_of_a_test" not in sys.modules


def test_a_policy_can_be_evaluated(saved_run):
    torch.save(saved_run, "checkpoint.pt")
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
def test_a_file_that_is_not_a_checkpoint_is_refused_in_one_sentence(saved_run, change, reason):
    if change is not None:
        torch.save({key: x for key, x in (saved_run | change).items() if x is not None}, "checkpoint.pt")
    with pytest.raises(
        ValueError, match=rf"path: expected a checkpoint\.pt .*, got 'checkpoint\.pt' \(.*{reason}"
    ) as error:
        envs.load_policy("checkpoint.pt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change, reason",
    [({"script": "helper.py"}, "Actor"), ({"normalizer": {"mean": torch.zeros(4)}}, "RuntimeError")],
)
def test_networks_that_do_not_fit_are_refused_in_one_sentence(saved_run, change, reason):
    torch.save(saved_run | change, "checkpoint.pt")
    with pytest.raises(
        ValueError, match=f"path: expected networks of {(saved_run | change)['script']} .*{reason}"
    ) as error:
        envs.load_policy("checkpoint.pt")
    assert "\n" not in str(error.value) and re.search(r"'checkpoint\.pt'", str(error.value))
