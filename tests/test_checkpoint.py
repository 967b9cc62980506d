"""The policy of a checkpoint: whose networks act, on what, and what is said about a file that is not a checkpoint."""

import importlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import envs

ROOT = Path(__file__).parent.parent


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


@pytest.mark.parametrize("script", sorted(path.name for path in ROOT.glob("*_continuous.py")))
def test_every_training_script_holds_what_a_policy_is_made_of(script, tmp_path):
    module = importlib.import_module(script.removesuffix(".py"))
    actor, normalizer = module.Actor(11, 3), module.ObsNormalizer(11)
    normalizer.update(1.0 + 2.0 * torch.randn(50, 11))
    networks = {"actor": actor.state_dict(), "normalizer": normalizer.state_dict()}
    torch.save({"script": script, "args": {"env_id": "hopper"}} | networks, tmp_path / "checkpoint.pt")
    obs, actions = torch.randn(7, 11), []
    for deterministic in (True, False):
        policy, _ = envs.load_policy(tmp_path / "checkpoint.pt", deterministic)
        torch.manual_seed(5)
        actions.append(policy(obs))
        torch.manual_seed(5)
        assert torch.equal(actions[-1], actor.act(normalizer(obs), deterministic))
        assert actions[-1].shape == (7, 3)
    assert actions[0].abs().max() <= 1.0 and not torch.equal(*actions)


def test_a_policy_can_be_evaluated(saved_run):
    torch.save(saved_run, "checkpoint.pt")
    policy, args = envs.load_policy("checkpoint.pt", deterministic=False)
    returns, lengths = envs.evaluate(envs.make(args["env_id"], 2), policy, args["seed"])
    assert returns.isfinite().all() and (lengths == 240).all()


@pytest.mark.parametrize(
    "change, reason",
    [
        (None, r"there is no such file"),
        ({"script": "../script_of_a_test.py"}, r"written by \.\./script_of_a_test\.py for cartpole"),
        ({"script": "missing.py"}, r"written by missing\.py for cartpole"),
        ({"args": {"env_id": "bat"}}, r"written by script_of_a_test\.py for bat"),
        ({"args": {}}, r"env_id: expected str, got nothing"),
        ({"actor": None}, r"actor: expected dict, got nothing"),
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
    "name", ["elsewhere/script.py", "{folder}/elsewhere/script.py", "beside/../script.py", "a.txt"]
)
def test_only_a_script_beside_envs_is_executed(name, saved_run, tmp_path):
    name = name.format(folder=tmp_path)
    for folder in ("elsewhere", "beside"):
        (tmp_path / folder).mkdir()
    for path in (tmp_path / name, tmp_path / "script.py"):
        path.write_text("open('executed', 'w')")
    torch.save(saved_run | {"script": name}, "checkpoint.pt")
    with pytest.raises(ValueError, match=rf"path: expected .* \(written by {re.escape(name)} for cartpole"):
        envs.load_policy("checkpoint.pt")
    assert not (tmp_path / "executed").exists()


@dataclass
class Args:
    env_id: str = "cartpole"
    checkpoint: str | None = None
    eval_only: bool = False


def test_a_flag_that_the_script_does_not_know_is_named(saved_run, monkeypatch, capsys):
    torch.save(saved_run, "checkpoint.pt")
    monkeypatch.setattr(sys, "argv", ["script_of_a_test.py", "--checkpoint", "checkpoint.pt"])
    with pytest.raises(SystemExit, match="2"):
        envs.parse_args(Args, {"cartpole": {}}, "folder/script_of_a_test.py")
    expected = "expected flags of script_of_a_test.py, got seed as well, and without checkpoint, eval_only"
    expected = f"error: --checkpoint: {expected}\n"
    assert capsys.readouterr().err == expected


def test_a_wrong_device_is_not_blamed_on_the_checkpoint(saved_run):
    torch.save(saved_run, "checkpoint.pt")
    for load in (envs.load_policy, envs.checkpoint.load_checkpoint):
        with pytest.raises(ValueError, match=r"^device: expected .*, got 'tpu9'"):
            load("checkpoint.pt", device="tpu9")


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"script": "helper.py"}, "Actor"),
        ({"normalizer": {"mean": torch.zeros(4)}}, r"mean: expected \(5,\) torch.float32, got \(4,\)"),
        ({"script": "no_act.py"}, "act"),
    ],
)
def test_networks_that_do_not_fit_are_refused_in_one_sentence(saved_run, change, reason):
    torch.save(saved_run | change, "checkpoint.pt")
    with pytest.raises(
        ValueError, match=f"path: expected networks of {(saved_run | change)['script']} .*{reason}"
    ) as error:
        envs.load_policy("checkpoint.pt")
    assert "\n" not in str(error.value) and re.search(r"'checkpoint\.pt'", str(error.value))
