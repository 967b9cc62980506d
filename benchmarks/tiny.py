"""Tiny runs of the scripts, each in a process of its own, to be broken by drill.py."""

import os
import re
import subprocess
import sys

import torch

from benchmarks.events import read_rows
from benchmarks.records import ROOT, SCRIPTS

STEPS = 32  # of an iteration: 8 environments x 4
FLAGS = "--num-envs 8 --num-steps 4 --num-eval-envs 4"
OWN_FLAGS = dict.fromkeys(SCRIPTS, "--critic-epochs 2 --num-minibatches 2")
OWN_FLAGS |= dict.fromkeys(("ppo", "reppo"), "--update-epochs 2 --num-minibatches 2")
OWN_FLAGS["ahac"] += " --horizon-min 4 --horizon-lr 0"  # iterations of one length
OWN_FLAGS["sac"] = "--num-updates 2 --batch-size 16 --learning-starts 64 --checkpoint-freq 1"
OWN_FLAGS["fasttd3"] = OWN_FLAGS["sac"]
CLOCKS = ("wall_s", "eval/wall_s", "charts/SPS", "time/rollout", "time/backward", "time/actor", "time/critic")
# one thread a process: tiny batches gain nothing from two, and waiting for each other costs a lot on a busy machine
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
# the script as it is, after something else
WRAPPED = """
import runpy, sys
{code}
sys.argv[0] = "{path}"
runpy.run_path("{path}", run_name="__main__")
"""


def start(folder, script, *flags, code=None, log="log"):
    """A process in a folder, which is made; what it prints goes to <log> in it.  code: executed before the script."""
    folder.mkdir(exist_ok=True)
    path = ROOT / f"{script}_continuous.py"
    command = [sys.executable, *(["-c", WRAPPED.format(code=code, path=path)] if code else [path])]
    if "--checkpoint" not in flags:
        command += [*FLAGS.split(), *OWN_FLAGS[script].split()]
    with open(folder / log, "w") as file:
        options = {"cwd": folder, "env": ENVIRONMENT, "stdout": file, "stderr": subprocess.STDOUT}
        return subprocess.Popen([str(word) for word in (*command, *flags)], **options)


def run(folder, script, *flags, expect=0, **options):
    """A whole run; returns what it printed."""
    process = start(folder, script, *flags, **options)
    try:
        code, output = process.wait(timeout=600), (folder / "log").read_text()
    finally:
        process.kill()  # of a process that has ended nothing
    assert code == expect, f"exit code {code}: {output[-500:]}"
    return output


def total(num_iterations):
    return ["--total-timesteps", STEPS * num_iterations]


def run_dir(folder):
    (found,) = (folder / "runs").iterdir()
    return found


def load(path):
    return torch.load(path, weights_only=True)


def iterations(folder):
    """How many the process in a folder has made, as it says."""
    path = folder / "log"
    printed = re.findall(r"^step ([\d,]+)/", path.read_text(), re.MULTILINE) if path.exists() else []
    return int(printed[-1].replace(",", "")) // STEPS if printed else 0


def assert_same_training(a, b):
    """Two run folders: the same in every bit of the checkpoints, and in the log but for clocks."""
    states = [load(folder / "checkpoint.pt") for folder in (a, b)]
    for state in states:
        del state["args"]["checkpoint"]
    assert_same(*states, "checkpoint")
    lines = [[{k: v for k, v in row.items() if k not in CLOCKS} for row in read_rows(folder)] for folder in (a, b)]
    assert len(lines[0]) == len(lines[1]) > 0
    for left, right in zip(*lines):
        assert_same(left, right, f"log at step {left['global_step']}")


def assert_same(x, y, name):
    if isinstance(x, dict):
        assert x.keys() == y.keys(), name
        for key in x:
            assert_same(x[key], y[key], f"{name}/{key}")
    elif isinstance(x, list | tuple):
        assert len(x) == len(y), name
        for k, (left, right) in enumerate(zip(x, y)):
            assert_same(left, right, f"{name}/{k}")
    else:
        same = torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y or x != x and y != y  # NaN is NaN
        assert same, name
