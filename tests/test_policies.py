"""The policies that come with the repository can be evaluated and watched, and return what their table says."""

import csv
import os
import re
import subprocess
import sys

import pytest
import torch

import envs
from benchmarks.policy import POLICIES, command_of
from benchmarks.records import ROOT

TABLE = list(csv.DictReader((POLICIES / "returns.csv").read_text().splitlines()))


def test_every_policy_has_a_line_and_is_small():
    assert sorted(row["file"] for row in TABLE) == sorted(path.name for path in POLICIES.glob("*.pt")) != []
    assert all(path.stat().st_size < 700_000 for path in POLICIES.glob("*.pt"))


def test_the_command_of_a_policy_has_the_flags_that_are_not_the_tasks_own():
    state = torch.load(POLICIES / "rpo_humanoid.pt", weights_only=True)
    assert command_of(state) == "python rpo_continuous.py --env-id humanoid --total-timesteps 1000000"
    file = state["args"] | {"env_id": "ant.xml", "num_envs": 64, "total_timesteps": 800_000, "ent_coef": 0.1}
    state_of_file = state | {"args": file | {"kl_coef": 0.25, "max_action_grad_norm": 5.0}}
    assert command_of(state_of_file) == "python rpo_continuous.py --env-id ant.xml"
    state["args"] |= {"seed": 3, "critic_learning_rate": 0.002, "cuda": False}
    end = "--env-id humanoid --seed 3 --no-cuda --total-timesteps 1000000 --critic-learning-rate 0.002"
    assert command_of(state) == f"python rpo_continuous.py {end}"


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row["file"])
def test_a_policy_returns_what_its_line_says(row):
    policy, args = envs.load_policy(POLICIES / row["file"])
    num_envs = 64 if args["env_id"] == "hand_reorient" else 16  # whose returns differ most
    returns, _ = envs.evaluate(envs.make(args["env_id"], num_envs=num_envs), policy, seed=args["seed"])
    expected, error = float(row["deterministic"]), returns.std().item() / num_envs**0.5
    assert abs(returns.mean().item() - expected) < max(0.25 * abs(expected), 2.0 * error)


def test_a_policy_is_scored_and_played_by_the_commands_of_its_readme(tmp_path):
    readme = (POLICIES / "README.md").read_text()
    played, scored = (line.split()[1:] for line in readme.splitlines() if line.startswith("    python "))
    options = {"cwd": tmp_path, "text": True, "capture_output": True, "timeout": 240}
    options["env"] = os.environ | {"PYTHONPATH": str(ROOT)}
    absolute = [str(ROOT / part) if (ROOT / part).is_file() else part for part in [*scored, *played]]
    scored, played = absolute[: len(scored)], absolute[len(scored) :]
    output = subprocess.run([sys.executable, *scored, "--num-eval-envs", "8"], **options)
    assert output.returncode == 0, output.stderr
    expected = next(float(row["stochastic"]) for row in TABLE if row["file"] == "rpo_hopper.pt")
    assert abs(float(re.search(r"return ([\d.]+)", output.stdout)[1]) - expected) < 0.25 * expected
    output = subprocess.run([sys.executable, *played, "--record", "hopper.html"], **options)
    assert output.returncode == 0, output.stderr
    assert (tmp_path / "hopper.html").stat().st_size > 100_000
