"""The policies that come with the repository can be evaluated and watched, and return what their table says."""

import csv

import pytest

import envs
from benchmarks.policy import POLICIES

TABLE = list(csv.DictReader((POLICIES / "returns.csv").read_text().splitlines()))


def test_every_policy_has_a_line_and_is_small():
    assert sorted(row["file"] for row in TABLE) == sorted(path.name for path in POLICIES.glob("*.pt")) != []
    assert all(path.stat().st_size < 700_000 for path in POLICIES.glob("*.pt"))


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row["file"])
def test_a_policy_returns_what_its_line_says(row):
    policy, args = envs.load_policy(POLICIES / row["file"])
    returns, _ = envs.evaluate(envs.make(args["env_id"], num_envs=16), policy, seed=args["seed"])
    expected = float(row["deterministic"])
    assert abs(returns.mean().item() - expected) < 0.25 * abs(expected)
