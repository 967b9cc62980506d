"""How fast RPO trains at several commits, in turn on one machine, which is the only way to compare them.

    python -m benchmarks.commits --commits 8ea244a HEAD --output benchmarks/results/commits_cpu.csv

`steps_per_s` is what a run prints in its line of progress once `--seconds` have gone by: environment steps per second
since its first one, learning and logging included.  Every figure is the median of `--repeats` runs of the script as it
is at the commit, with its own defaults for the task; the commits take turns.  `forward_backward` is the environments
alone on one thread, by that commit's benchmarks/throughput.py.  Leave the machine alone meanwhile.
"""

import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import envs
from benchmarks.provenance import read_flags, write_rows
from benchmarks.records import ROOT


@dataclass
class Args:
    commits: tuple[str, ...] = ("8ea244a", "HEAD")
    """what git understands as a commit; rows hold its short hash"""
    env_ids: tuple[Literal[envs.ENV_IDS], ...] = ("anymal", "hopper", "ant", "humanoid", "hand_reorient")
    """the tasks"""
    seconds: int = 30
    """length of a run; it ends with the iteration that is then at work"""
    repeats: int = 3
    """runs per figure"""
    output: str | None = None
    """write the table to this CSV file as well"""


def training_speed(tree, env_id, seconds):
    """Environment steps per second of a run of RPO, all-in."""
    command = [sys.executable, tree / "rpo_continuous.py", f"--env-id={env_id}", "--no-cuda"]
    with tempfile.TemporaryDirectory() as folder:
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
            start = time.monotonic()
            for line in process.stdout:
                if "SPS" in line and time.monotonic() - start >= seconds:
                    process.kill()
                    return int(re.search(r"SPS ([\d,]+)", line)[1].replace(",", ""))
    sys.exit(f"{' '.join(map(str, command))}: ended after less than {seconds} seconds")


def simulator_speed(tree, env_id):
    """Environment steps per second, forward and backward on one thread."""
    flags = ["--env-ids", env_id, "--threads", "1", "--repeats", "5"]
    command = [sys.executable, "-m", "benchmarks.throughput", *flags]
    output = subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True).stdout
    return int(output.splitlines()[-1].split("|")[-2].replace(",", ""))


def check_out(commit, folder):
    """A working tree of the commit, and its short hash."""
    name = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", commit], capture_output=True, text=True)
    if name.returncode:
        envs.refuse("commits", f"expected commits of this repository, got {commit!r}")
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    subprocess.run(["git", "-C", folder, "checkout", "--quiet", name.stdout.strip()], check=True)
    return name.stdout.strip()


def main():
    args, rows = read_flags(Args), []
    with tempfile.TemporaryDirectory() as folder:
        trees = [Path(folder) / str(k) for k in range(len(args.commits))]
        names = [check_out(commit, tree) for commit, tree in zip(args.commits, trees)]
        for env_id in args.env_ids:
            for tree in trees:
                training_speed(tree, env_id, 1)  # compiles the kernels
            runs = [[training_speed(tree, env_id, args.seconds) for tree in trees] for _ in range(args.repeats)]
            alone = [[simulator_speed(tree, env_id) for tree in trees] for _ in range(args.repeats)]
            for k, name in enumerate(names):
                row = {"env_id": env_id, "commit": name, "steps_per_s": median(speeds[k] for speeds in runs)}
                rows.append(row | {"forward_backward": median(speeds[k] for speeds in alone)})
                print(rows[-1], flush=True)
            if args.output:
                write_rows(args.output, rows)  # after every task


if __name__ == "__main__":
    main()
