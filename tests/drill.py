"""Break every script on purpose, at random moments, and see what is left. Too slow for the tests; docs/robustness.md.

    python tests/drill.py --scripts rpo --output benchmarks/results/robustness_rpo.csv

A drill returns what was seen, or fails an assertion; the table has a line for each script and drill either way.
"""

import random
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.provenance import write_rows  # noqa: E402
from tests.test_scripts import SCRIPTS, assert_same_training, metrics, run, run_dir, start, tiny  # noqa: E402


@dataclass
class Args:
    scripts: tuple[Literal[SCRIPTS], ...] = SCRIPTS
    """the scripts"""
    kills: int = 20
    """how often a run is killed"""
    seed: int = 1
    """of the random moments"""
    output: str | None = None
    """write the table to this CSV file as well"""


def load(path):
    return torch.load(path, weights_only=True)


def all_finite(state):
    """Whether a checkpoint has finite networks and optimisers."""
    if isinstance(state, dict):
        return all(all_finite(value) for key, value in state.items() if key not in ("args", "shares", "wall_s"))
    if isinstance(state, list):
        return all(map(all_finite, state))
    return not isinstance(state, torch.Tensor) or not state.is_floating_point() or bool(state.isfinite().all())


def kill_and_resume(script, folder, args):
    """Killed again and again, with a checkpoint in every iteration, to be hit in writing."""
    flags = [*tiny(script), "--checkpoint-freq", 1]
    per_iteration = int(metrics(first_run(script, folder / "probe", flags, 64))[0]["global_step"])
    iterations = 25 * args.kills
    total = iterations * per_iteration
    whole = first_run(script, folder / "whole", flags, total)
    (folder / "killed").mkdir()
    command, halves = [*flags, "--total-timesteps", total], 0
    for kill in range(args.kills):
        for leftover in folder.glob("killed/runs/*/*.tmp"):
            leftover.unlink()
        until = reached(folder / "killed") + random.uniform(2, 20)
        process = start(folder / "killed", *command, script=script)
        while process.poll() is None and reached(folder / "killed") < until:
            time.sleep(random.uniform(0.0, 0.02))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, f"kill {kill}: it had ended with {process.returncode}"
        found = run_dir(folder / "killed")
        halves += (found / "checkpoint.pt.tmp").exists()
        load(found / "checkpoint.pt")
        command = ["--checkpoint", found / "checkpoint.pt"]
    run(folder / "killed", *command, script=script)
    assert_same_training(whole, run_dir(folder / "killed"))
    return f"{args.kills} times, {halves} in a checkpoint's writing; the end is bit-identical to a run left alone"


def first_run(script, folder, flags, total):
    folder.mkdir()
    run(folder, *flags, "--total-timesteps", total, script=script)
    return run_dir(folder)


def reached(folder):
    """How many iterations the log has."""
    paths = list(folder.glob("runs/*/metrics.csv"))
    return len(paths[0].read_text().splitlines()) - 1 if paths else 0


def full_disk(script, folder, args):
    """The checkpoint's temporary file is /dev/full, where every write fails as on a full disk."""
    found = first_run(script, folder / "a", tiny(script), 320)
    before = (found / "checkpoint.pt").read_bytes()
    (found / "checkpoint.pt.tmp").symlink_to("/dev/full")
    resume = ["--checkpoint", found / "checkpoint.pt", "--total-timesteps", 640]
    output = run(folder / "a", *resume, script=script, expect=1)
    assert "training failed" in output and "cannot write" in output and "Traceback" not in output, output
    assert (found / "checkpoint.pt").read_bytes() == before
    run(folder / "a", *resume, script=script)
    return "one sentence, exit code 1; the checkpoint is left as it was; resumed"


def broken_checkpoints(script, folder, args):
    """Cut at random lengths, and files of other kinds."""
    found = first_run(script, folder / "a", tiny(script), 64)
    whole = (found / "checkpoint.pt").read_bytes()
    foreign = [b"", b"not a checkpoint", (found / "metrics.csv").read_bytes()]
    for content in foreign + [whole[: random.randrange(len(whole))] for _ in range(3)]:
        (folder / "broken.pt").write_bytes(content)
        output = run(folder, "--checkpoint", folder / "broken.pt", script=script, expect=2)
        assert "--checkpoint: expected a checkpoint.pt" in output and "Traceback" not in output, output
    return "3 cut ones and 3 files of other kinds: one sentence, exit code 2"


POISONED = """
import sys, torch, envs, {script}_continuous as script
count = [0]

def poisoned_step(optimizer, max_grad_norm, original=script.clipped_step):
    count[0] += 1
    parameter = optimizer.param_groups[0]["params"][0]
    if "{what}" == "gradient" and count[0] == {at}:
        parameter.grad.view(-1)[0] = torch.nan
    result = original(optimizer, max_grad_norm)
    if "{what}" == "networks" and count[0] == {at}:
        with torch.no_grad():
            parameter.view(-1)[0] = torch.nan
    return result

def poisoned_make(*args, original=envs.make, **options):
    env = original(*args, **options)
    step = env.step
    def poisoned(action):
        count[0] += 1
        if count[0] == {at}:
            env.joint_qd = torch.where(torch.arange(env.num_envs)[:, None] == 2, torch.nan, env.joint_qd)
        return step(action)
    env.step = poisoned
    return env

if "{what}" == "state":
    envs.make = poisoned_make
else:
    script.clipped_step = poisoned_step
sys.exit(script.main())
"""


def poisoned(script, folder, what, expect):
    # an update of the actor; GI-PPO's 20th belongs to a try that is undone, whose updates are not counted
    code = POISONED.format(script=script, what=what, at=34 if script == "gippo" else 20)
    flags = [*tiny(script), "--total-timesteps", 32 * 40, "--exp-name", "x"]
    output = run(folder, *flags, code=code, expect=expect)
    return output, metrics(run_dir(folder)), run_dir(folder) / "checkpoint.pt"


def nan_in_the_state(script, folder, args):
    _, rows, checkpoint = poisoned(script, folder, "state", 0)
    diverged = [float(row["diverged"]) for row in rows if row["SPS"]]
    assert diverged[0] == 0 and diverged[-1] == 1 and all_finite(load(checkpoint)), diverged
    return "that environment begins a new episode, counted under diverged; the run goes on"


def nan_in_a_gradient(script, folder, args):
    _, rows, checkpoint = poisoned(script, folder, "gradient", 0)
    skipped = [float(row["skipped_updates"]) for row in rows if row["SPS"]]
    assert skipped[-1] == 1 and all_finite(load(checkpoint)), skipped
    return "that step is left out, counted under skipped_updates; the run goes on"


def nan_in_the_networks(script, folder, args):
    if script == "gippo":
        output, rows, checkpoint = poisoned(script, folder, "networks", 0)
        assert all_finite(load(checkpoint)) and len(rows) == 41, output
        return "the phase it happened in is undone and tried again; the run goes on"
    output, _, _ = poisoned(script, folder, "networks", 1)
    assert "training failed" in output and "Traceback" not in output, output
    return "ends: " + output.split("training failed: ")[1].splitlines()[0].split(": ", 1)[1].split("; ")[0]


def started_together(script, folder, args):
    (folder / "together").mkdir()
    flags = [*tiny(script), "--total-timesteps", 320]
    processes = [start(folder / "together", *flags, script=script) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    first, *others = (folder / "together" / "runs").iterdir()
    assert len(others) == 2
    for other in others:
        assert_same_training(first, other)
    return "three at once: three run folders, bit-identical"


def memory(script, folder, args):
    """Resident memory after a tenth of a run and at its end."""
    (folder / "long").mkdir()
    total = 32 * 1000
    process, seen = start(folder / "long", *tiny(script), "--total-timesteps", total, script=script), []
    threading.Thread(target=process.stdout.read).start()  # or the process would wait for room in the pipe
    while process.poll() is None:
        try:
            rss = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4096 / 2**20
        except (OSError, IndexError):
            break
        seen.append((reached(folder / "long"), rss))
        time.sleep(0.2)
    assert process.wait() == 0
    iterations = seen[-1][0]
    early = max(rss for done, rss in seen if done <= 0.1 * iterations)
    late = max(rss for done, rss in seen if done > 0.9 * iterations)
    assert late < 1.1 * early, (early, late)
    return f"{iterations} iterations: {early:.0f} MiB in the first tenth, {late:.0f} MiB in the last"


DRILLS = {
    "killed and resumed": kill_and_resume,
    "disk full at a checkpoint": full_disk,
    "broken checkpoints": broken_checkpoints,
    "NaN in the state of an environment": nan_in_the_state,
    "NaN in a gradient": nan_in_a_gradient,
    "NaN in a network": nan_in_the_networks,
    "started together": started_together,
    "memory": memory,
}


def main():
    args, rows, failed = tyro.cli(Args), [], 0
    random.seed(args.seed)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for script in args.scripts:
        for name, drill in DRILLS.items():
            with tempfile.TemporaryDirectory() as folder:
                try:
                    seen = drill(script, Path(folder), args)
                except Exception as error:  # whatever it is, it belongs into the table
                    seen, failed = f"FAILED: {type(error).__name__}: {error}", failed + 1
            rows.append({"script": script, "drill": name, "seen": seen})
            print(rows[-1], flush=True)
    if args.output:
        write_rows(args.output, rows)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
