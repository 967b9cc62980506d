"""The fuzzer in short: it finds nothing, and it would find what is there to be found."""

import copy
import random

import pytest
import torch
from running import state_of_this_process

import envs
from benchmarks import fuzz
from benchmarks.tiny import load

TABLE = "    gamma: 0.5\n"


@pytest.mark.parametrize("script", ["rpo", "sac"])
def test_nothing_is_found_in_a_few_cases(script, monkeypatch):
    for task in envs.TASKS.values():
        monkeypatch.setattr(task, "max_episode_steps", 6)
    with state_of_this_process():
        args = fuzz.Args(values=1, checkpoints=24)
        rows, failures = fuzz.fuzz_script(script, args, run=fuzz.run_case, rng=random.Random(1))
    assert failures == []
    flags, checkpoints = rows
    assert (flags["input"], checkpoints["input"]) == ("flags", "checkpoints")
    assert flags["refused"] > 10 and flags["accepted"] > 3 and checkpoints["refused"] > 15


def end(code, output, created=False):
    return fuzz.End(code, output, created)


def states(**flags):
    return {"args": {"gamma": 0.99} | flags, "actor": torch.ones(3), "process": [1, "cpu", 1]}


@pytest.mark.parametrize(
    "found, state, kind, reason",
    [
        (end(2, "error: --gamma: expected 0.0 to 1.0, got 3\n"), None, "refused", ""),
        (end(2, "error: --gamma: expected 0.0 to 1.0, got 3\n", created=True), None, "failed", "something was created"),
        (end(2, "error: --seed: expected 0 to 1.0, got 3\n"), None, "failed", "does not name --gamma"),
        (end(1, "Traceback (most recent call last):\nKeyError: 'rng'\n"), None, "failed", "KeyError"),
        (end(1, "Traceback (most recent call last):\nRuntimeError: norm is non-finite\n"), None, "stopped", ""),
        (end(1, "error: the disk is full\n"), None, "failed", "exit code 1"),
        (end(0, TABLE), states(gamma=0.5) | {"actor": torch.zeros(3)}, "accepted", ""),
        (end(0, TABLE), states(gamma=0.5), "failed", "nothing has changed"),
        (end(0, "    gamma: 0.99\n"), states(gamma=0.5), "failed", "not in the printed table"),
        (end(0, TABLE), None, "failed", "no checkpoint"),
    ],
)
def test_what_counts_as_a_failure(found, state, kind, reason):
    case = fuzz.Case("rpo", [], "gamma", "0.5")
    plain = (end(0, "    gamma: 0.99\n"), states())
    judged = fuzz.judge(case, found, state, plain)
    assert judged[0] == kind and reason in judged[1]


def test_a_process_that_crashes_or_hangs_is_found_and_replaced(tmp_path, monkeypatch):
    (tmp_path / "crash_continuous.py").write_text("import os\nos.kill(os.getpid(), 11)\n")
    (tmp_path / "hang_continuous.py").write_text("while True: pass\n")
    (tmp_path / "fine_continuous.py").write_text("print('fine')\n")
    monkeypatch.setattr(fuzz, "LONGEST", 1.0)
    worker = fuzz.Worker()
    try:
        with pytest.raises(RuntimeError, match="the process has crashed, exit code -11"):
            worker.run(fuzz.Case(str(tmp_path / "crash"), [], "seed"))
        with pytest.raises(RuntimeError, match="no end within 1 s"):
            worker.run(fuzz.Case(str(tmp_path / "hang"), [], "seed"))
    finally:
        worker.close()
    assert fuzz.run_case(fuzz.Case(str(tmp_path / "fine"), [], "seed"))[0] == end(0, "fine\n")


def test_mutations_change_one_place_of_a_checkpoint(tmp_path):
    state = {"a": {"b": [1, torch.arange(6.0).reshape(2, 3)]}, "c": "x"}
    assert [where for *_, where in fuzz.places(state)] == ["/a", "/a/b", "/a/b/0", "/a/b/1", "/c"]
    rng, seen = random.Random(0), set()
    for _ in range(200):
        seen.add(fuzz.mutate_state(copy.deepcopy(state), tmp_path / "x.pt", rng).split()[0])
        load(tmp_path / "x.pt")
    assert {"remove", "replace", "nest", "rename", "reshape"} <= seen
    whole = bytes(range(256)) * 40
    kinds = {fuzz.mutate_bytes(whole, tmp_path / "y.pt", rng).split()[0] for _ in range(40)}
    assert kinds == {"cut", "changed", "inserted", "zeros", "other"} and (tmp_path / "y.pt").read_bytes() != whole
