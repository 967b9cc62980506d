"""Break every script on purpose, at random moments, and see what is left. Too slow for the tests; docs/robustness.md.

    python -m benchmarks.drill --scripts rpo --output benchmarks/results/robustness_rpo.csv

A drill returns what was seen, or fails an assertion; the table has a line for each script and drill either way.
"""

import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from benchmarks.events import read_rows
from benchmarks.provenance import read_flags, write_rows
from benchmarks.records import SCRIPTS
from benchmarks.tiny import assert_same_training, iterations, load, run, run_dir, start, total


def all_finite(state):
    """Whether a checkpoint has finite networks and optimisers."""
    if isinstance(state, dict):
        return all(all_finite(value) for key, value in state.items() if key not in ("args", "env", "episodes"))
    if isinstance(state, list | tuple):
        return all(map(all_finite, state))
    return not isinstance(state, torch.Tensor) or not state.is_floating_point() or bool(state.isfinite().all())


def kill_and_resume(script, folder, args):
    """Killed again and again, at times while a checkpoint is written."""
    length = total(25 * args.kills)
    run(folder / "whole", script, *length)
    killed, flags, halves = folder / "killed", length, 0
    for kill in range(args.kills):
        until = iterations(killed) + random.uniform(2, 20)
        process = start(killed, script, *flags)
        while process.poll() is None and iterations(killed) < until:
            time.sleep(random.uniform(0.0, 0.02))
        process.kill()
        assert process.wait() == -signal.SIGKILL, f"kill {kill}: it had ended with {process.returncode}"
        half = run_dir(killed) / "checkpoint.pt.tmp"
        halves += half.exists()
        half.unlink(missing_ok=True)
        flags = ["--checkpoint", run_dir(killed) / "checkpoint.pt"]
        load(flags[1])
    run(killed, script, *flags)
    assert_same_training(run_dir(folder / "whole"), run_dir(killed))
    return f"{args.kills} times, {halves} in a checkpoint's writing; the end is bit-identical to a run left alone"


def full_disk(script, folder, args):
    """The checkpoint's temporary file is /dev/full, where every write fails as on a full disk."""
    run(folder, script, *total(10))
    checkpoint = run_dir(folder) / "checkpoint.pt"
    before, temporary = checkpoint.read_bytes(), checkpoint.with_name("checkpoint.pt.tmp")
    temporary.symlink_to("/dev/full")
    resume = ["--checkpoint", checkpoint, *total(20)]
    output = run(folder, script, *resume, expect=1)
    assert "error: the disk is full" in output and "Traceback" not in output, output
    assert checkpoint.read_bytes() == before
    temporary.unlink()
    run(folder, script, *resume)
    return "one sentence, exit code 1; the checkpoint is left as it was; resumed"


def broken_checkpoints(script, folder, args):
    """Cut at random lengths, and files of other kinds."""
    run(folder, script, *total(2))
    whole = (run_dir(folder) / "checkpoint.pt").read_bytes()
    (events,) = run_dir(folder).glob("events*")
    foreign = [b"", b"not a checkpoint", events.read_bytes()]
    for content in foreign + [whole[: random.randrange(len(whole))] for _ in range(3)]:
        (folder / "broken.pt").write_bytes(content)
        output = run(folder, script, "--checkpoint", folder / "broken.pt", expect=2)
        assert "--checkpoint: expected a checkpoint.pt" in output and "Traceback" not in output, output
    return "3 cut ones and 3 files of other kinds: one sentence, exit code 2"


POISONED = {
    # the velocities of an environment, before a step
    "state": """
import envs, torch
make, count = envs.make, [0]
def poisoned_make(*args, **options):
    env = make(*args, **options)
    step = env.step
    def poisoned(action):
        count[0] += 1
        if count[0] == {at}:
            env.joint_qd = torch.where(torch.arange(env.num_envs)[:, None] == 2, torch.nan, env.joint_qd)
        return step(action)
    env.step = poisoned
    return env
envs.make = poisoned_make
""",
    # a number of a gradient, before it is clipped
    "gradient": """
import torch
clip, count = torch.nn.utils.clip_grad_norm_, [0]
def poisoned_clip(parameters, *args, **options):
    parameters, count[0] = list(parameters), count[0] + 1
    if count[0] == {at}:
        parameters[0].grad.view(-1)[0] = torch.nan
    return clip(parameters, *args, **options)
torch.nn.utils.clip_grad_norm_ = poisoned_clip
""",
    # a weight, after an update
    "network": """
import torch
update, count = torch.optim.AdamW.step, [0]
def poisoned_step(self, *args, **options):
    count[0] += 1
    result = update(self, *args, **options)
    if count[0] == {at}:
        with torch.no_grad():
            self.param_groups[0]["params"][0].view(-1)[0] = torch.nan
    return result
torch.optim.AdamW.step = poisoned_step
""",
}


def poisoned(script, folder, what, expect):
    """A run in whose iterations something becomes NaN: what it printed, its log and its last checkpoint."""
    output = run(folder, script, *total(40), code=POISONED[what].format(at=20), expect=expect)
    state = load(run_dir(folder) / "checkpoint.pt")
    assert all_finite(state), f"the checkpoint of iteration {state['iteration']} is not finite"
    return output, read_rows(run_dir(folder)), state


def nan_in_the_state(script, folder, args):
    _, rows, _ = poisoned(script, folder, "state", 0)
    diverged = [row["charts/diverged"] for row in rows]
    assert diverged[0] == 0 and diverged[-1] == 1, diverged
    return "that environment begins a new episode, counted under diverged; the run goes on"


def nan_in_a_gradient(script, folder, args):
    output, rows, state = poisoned(script, folder, "gradient", 1)
    return stopped(output, rows, state)


def nan_in_a_network(script, folder, args):
    output, rows, state = poisoned(script, folder, "network", 1)
    return stopped(output, rows, state)


def stopped(output, rows, state):
    """The error with which a run ended; its checkpoint is that of the last whole iteration."""
    assert state["iteration"] == len(rows) < 40, (state["iteration"], len(rows))
    error, message = output.strip().splitlines()[-1].split(": ", 1)
    return f"the run stops, {error}: {message.split('. ')[0]}; the last checkpoint is good"


def started_together(script, folder, args):
    """Three processes of the same command in the same second."""
    processes = [start(folder, script, *total(10), log=f"log{k}") for k in range(3)]
    codes = [process.wait() for process in processes]
    assert 0 in codes and set(codes) <= {0, 1}, f"exit codes {codes}"
    first, *others = (folder / "runs").iterdir()
    assert 1 + len(others) == codes.count(0), f"{1 + len(others)} run folders, exit codes {codes}"
    for other in others:
        assert_same_training(first, other)
    return "three at once: those that would share a folder end with an error, the others are bit-identical"


def memory(script, folder, args):
    """Resident memory in the first tenth of a run and in its last."""
    process, seen = start(folder, script, *total(args.memory_iterations)), []
    while process.poll() is None:
        statm = Path(f"/proc/{process.pid}/statm").read_text().split()
        seen.append((iterations(folder), int(statm[1]) * 4096 / 2**20 if len(statm) > 1 else 0.0))
        time.sleep(0.2)
    assert process.wait() == 0
    early = max(rss for done, rss in seen if done <= 0.1 * args.memory_iterations)
    late = max(rss for done, rss in seen if done > 0.9 * args.memory_iterations)
    assert late < 1.1 * early, (early, late)
    return f"{args.memory_iterations} iterations: {early:.0f} MiB in the first tenth, {late:.0f} MiB in the last"


DRILLS = {
    "killed and resumed": kill_and_resume,
    "disk full at a checkpoint": full_disk,
    "broken checkpoints": broken_checkpoints,
    "NaN in the state of an environment": nan_in_the_state,
    "NaN in a gradient": nan_in_a_gradient,
    "NaN in a network": nan_in_a_network,
    "started together": started_together,
    "memory": memory,
}


@dataclass
class Args:
    scripts: tuple[Literal[tuple(SCRIPTS)], ...] = tuple(SCRIPTS)
    """the scripts"""
    drills: tuple[Literal[tuple(DRILLS)], ...] = tuple(DRILLS)
    """what to do to them"""
    kills: int = 20
    """how often a run is killed"""
    memory_iterations: int = 1000
    """length of the run whose memory is watched"""
    seed: int = 1
    """of the random moments"""
    output: str | None = None
    """write the table to this CSV file as well"""


def main():
    args, rows, failed = read_flags(Args), [], 0
    random.seed(args.seed)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for script in args.scripts:
        for name in args.drills:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    seen = DRILLS[name](script, Path(folder), args)
                except Exception as error:  # whatever it is, it belongs into the table
                    seen, failed = f"FAILED: {type(error).__name__}: {error}", failed + 1
            rows.append({"script": script, "drill": name, "seen": seen})
            print(rows[-1], flush=True)
    if args.output:
        write_rows(args.output, rows)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
