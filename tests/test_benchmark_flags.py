"""The benchmarks' commands: what would fail after the measurement is refused before it, in a sentence."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import envs
import rpo_continuous as rpo
from benchmarks import commits, critic_step, throughput

HOPPER = Path(__file__).parent.parent / "policies" / "rpo_hopper.pt"


@pytest.mark.parametrize(
    "module, flags, sentence",
    [
        ("throughput", "--output missing/x.csv", "--output: expected a file in an existing folder, got 'missing/x"),
        ("critic_step", "--output .", "--output: expected a file in an existing folder, got '.'"),
        ("matmul", "--output=", "--output: expected a value, got ''"),
        ("commits", "--commits none", "--commits: expected commits of this repository, got 'none'"),
        ("throughput", "--repeats 0", "--repeats: expected 1 to 1000000000, got 0"),
        ("throughput", "--threads 1 -2", "--threads: expected 1 to 1000000000, got -2"),
        ("throughput", "--env-ids", "--env-ids: expected a value or more, got none"),
        ("throughput", "--device tpu9", "--device: expected 'cpu'"),
        ("throughput", "--train=yes", "--train: expected --train or --no-train without a value, got 'yes'"),
        ("drill", "--kills 0", "--kills: expected 1 to 1000000000, got 0"),
        ("fuzz_env", "--num-random 0", "--num-random: expected 1 to 1000000000, got 0"),
        ("fuzz_env", "--output .", "--output: expected a file in an existing folder, got '.'"),
        ("transfer", "--checkpoint none.pt", "--checkpoint: expected a checkpoint.pt of a script in "),
        ("transfer", f"--checkpoint {HOPPER}", "--checkpoint: expected a policy of go1 or of a robot's file, got"),
        ("hand_successes", "none.pt", "--checkpoints: expected a checkpoint.pt of a script in "),
        ("action_gradients", "--checkpoint=", "--checkpoint: expected a value, got ''"),
        ("action_gradients", "--checkpoint none.pt", "--checkpoint: expected a checkpoint.pt of rpo_continuous.py"),
        ("action_gradients", "--checkpoint a.pt --env-ids ant", "--env-ids: expected none beside --checkpoint"),
        ("run", "--scripts rpo --env-ids ant --jobs 0", "--jobs: expected 1 to 1000000000, got 0"),
        ("run", "--scripts rpo --env-ids ant --flags=--seed=7", "--flags: expected flags other than --env-id, --seed,"),
        ("run", "--scripts rpo --env-ids ant --flags='", "--flags: expected flags as a shell reads them, got"),
        ("throughput", "--train --iterations 1", "--iterations: expected at least "),
        ("transfer", "--checkpoint x --video missing/x", "--video: expected a file in an existing folder, got "),
        ("policy", "none.pt x/y.pt", "--output: expected a file in an existing folder, got "),
        ("run", "--scripts rpo --env-ids ant --name=", "--name: expected a value, got ''"),
        ("run", "--scripts rpo --env-ids ant --name a__b", "--name: expected at most 100 letters, digits"),
        ("run", "--scripts rpo --env-ids ant --name ../a", "--name: expected at most 100 letters, digits"),
    ],
)  # fmt: skip
def test_a_wrong_flag_of_a_benchmark_is_refused_in_one_sentence(module, flags, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [module, *flags.split()])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(f"benchmarks.{module}").main()
    error = capsys.readouterr().err
    assert error.startswith(f"error: {sentence}") and error.count("\n") == 1
    assert not [*tmp_path.iterdir()]


def test_commits_reads_the_last_row_of_a_commits_own_table(monkeypatch):
    output = "| env_id | threads | forward | backward_ms | training |\n|---|---|---|---|---|\n"
    output += "| ant | 1 | 9 | 1.5 | 8 |\n| ant | 2 | 12,345 | 2.5 | 678 |\n"
    monkeypatch.setattr(subprocess, "run", lambda *command, **options: SimpleNamespace(stdout=output))
    assert commits.throughput("tree", "ant", 2) == {"threads": 2, "forward": 12345, "training": 678}


def test_a_thread_for_each_critic_gives_the_same_gradients():
    torch.manual_seed(0)
    critic, obs, targets = rpo.Critic(3), torch.randn(8, 3), torch.randn(8)
    found = []
    for gradients in (critic_step.all_at_once(rpo.critic_loss), critic_step.one_thread_each):
        critic.zero_grad()
        gradients(critic, obs, targets)
        found.append([parameter.grad.clone() for parameter in critic.parameters()])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-6) and (one != 0.0).any()


def test_throughput_knows_how_many_environments_every_task_has():
    assert throughput.NUM_ENVS.keys() == set(envs.ENV_IDS)
