"""How many operations of torch an iteration of every script calls, and which of them would wait for a GPU.

    python -m benchmarks.torch_calls --output benchmarks/results/torch_calls.csv

On a GPU an operation costs some microseconds to launch, whatever it computes, and one that hands a number to Python,
or copies numbers of Python to the GPU, waits until the GPU is done with everything before it.  Both can be counted
without one.  The numbers are those of a run's second iteration, with the script's own defaults for the task but for
the number of environments.  `calls` are all operations, `launches` those that are no mere view of a tensor and so would
start a kernel, also by phase: the rollout, the backward pass through it (where a script has one of its own), and the
rest, logging included.  `waits` lists the lines that wait, with how often; the CPU's own checks in envs/vector_env.py
among them.
"""

import contextlib
import io
import runpy
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import warp as wp
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.tensorboard import SummaryWriter

import envs
from benchmarks.provenance import read_flags, write_rows
from benchmarks.records import ROOT, SCRIPTS

aten = torch.ops.aten
WAITING = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2, aten.is_nonzero}
WAITING |= {aten.unique_dim, aten.unique_consecutive, aten.bincount}
MASKABLE = {aten.index, aten.index_put, aten.index_put_}  # they wait for the number of rows where a mask is True
TO_HOST = {torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.__array__}
FROM_HOST = {torch.tensor, torch.as_tensor, torch.asarray}  # where they are given numbers of the host and a device
HOST = (bool, int, float, list, tuple)  # not numpy's arrays: Warp hands over its own on the CPU as such
INDEXED = {torch.Tensor.__getitem__, torch.Tensor.__setitem__}  # with a list they copy it to the GPU
# functions of the scripts; the rest of an iteration is called "update"
PHASES = {"rollout": "rollout", "collect": "rollout", "action_gradients": "backward"}


@dataclass
class Args:
    scripts: tuple[Literal[tuple(SCRIPTS)], ...] = tuple(SCRIPTS)
    """the scripts, without _continuous.py"""
    env_id: Literal[envs.ENV_IDS] = "anymal"
    """the task"""
    num_envs: int = 16
    """parallel environments"""
    output: str | None = None
    """write the table to this CSV file as well"""


class Calls(TorchDispatchMode):
    """Counts operations by phase, and those that would make the host wait for a GPU by their place."""

    def __init__(self):
        super().__init__()
        self.calls, self.waits = Counter(), Counter()
        self.copies = Copies(self)

    def __enter__(self):
        self.copies.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.copies.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        phase, place = where()
        self.calls[phase, func.is_view] += 1
        if func.overloadpacket in WAITING or (func.overloadpacket in MASKABLE and is_mask(args[1])):
            self.waits[phase, place] += 1
        return func(*args, **(kwargs or {}))


class Copies(TorchFunctionMode):
    """Adds the copies between host and GPU that are no operation, and so unknown to Calls, where all is on the CPU."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        to_device = func in FROM_HOST and "device" in kwargs and isinstance((*args, kwargs.get("data"))[0], HOST)
        to_device = to_device or (func in INDEXED and has_list(args[1]))
        if func in TO_HOST or func is torch.Tensor.new_tensor or to_device:
            self.calls.waits[where()] += 1
        return func(*args, **kwargs)


def has_list(index):
    return any(isinstance(part, (list, np.ndarray)) for part in (index if isinstance(index, tuple) else (index,)))


def is_mask(indices):
    return any(index is not None and index.dtype == torch.bool for index in indices)


def where():
    """The phase of the run and the line of this repository that is being executed."""
    frame, place, phase = sys._getframe(2), None, "update"
    while frame is not None:
        path = frame.f_code.co_filename
        if place is None and path.startswith(f"{ROOT}/") and path != __file__:
            place = f"{path[len(str(ROOT)) + 1 :]}:{frame.f_lineno}"
        phase = PHASES.get(frame.f_code.co_name, phase)
        frame = frame.f_back
    return phase, place


class SecondIterationEnded(Exception):
    """There is nothing more to count."""


def count(script, *flags):
    """Calls in the second iteration of a run: Counters by (phase, is_view), and of waits by (phase, line)."""
    calls, ends, argv, flush = Calls(), [], sys.argv, SummaryWriter.flush
    path = str(ROOT / f"{script}_continuous.py")

    def note(writer):  # every script calls flush() once an iteration
        flush(writer)
        ends.append((calls.calls.copy(), calls.waits.copy()))
        if len(ends) == 2:
            raise SecondIterationEnded

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        sys.argv, SummaryWriter.flush = [path, *flags], note
        try:
            with calls, contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SecondIterationEnded):
                runpy.run_path(path, run_name="__main__")
        finally:
            sys.argv, SummaryWriter.flush = argv, flush
    return tuple(after - before for before, after in zip(*ends))


def main():
    args = read_flags(Args)
    wp.config.log_level, rows = wp.LOG_WARNING, []
    for script in args.scripts:
        flags = {"env-id": args.env_id, "num-envs": args.num_envs, "num-eval-envs": 1, "total-timesteps": 10**6}
        flags |= {"learning-starts": 16} if script in ("sac", "fasttd3") else {}
        calls, waits = count(script, *(f"--{name}={value}" for name, value in flags.items()))
        row = {"script": script, "env_id": args.env_id, "calls": sum(calls.values())}
        row |= {"launches": sum(times for (_, is_view), times in calls.items() if not is_view)}
        row |= {phase: calls[phase, False] for phase in ("rollout", "backward", "update")}
        row["waits"] = "; ".join(f"{place} {times}" for (_, place), times in sorted(waits.items()))
        print(row, flush=True)
        rows.append(row)
    if args.output:
        write_rows(args.output, rows)


if __name__ == "__main__":
    main()
