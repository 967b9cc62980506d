"""How fast RPO trains and the environments are at several commits, in turn on one machine: the only way to compare.

    python -m benchmarks.commits --commits 8ea244a HEAD --output benchmarks/results/commits_cpu.csv

Every figure is the median of `--repeats` calls of the commit's own benchmarks/throughput.py; the commits take turns.
`training`: environment steps per second of RPO with its defaults for the task on all cores, learning and logging
included, once the first iterations are over.  `forward_backward`: of the environments alone, on one thread, forward
and backward.  Leave the machine alone meanwhile.
"""

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import envs
from benchmarks.provenance import available_cores, read_flags, write_rows
from benchmarks.records import ROOT


@dataclass
class Args:
    commits: tuple[str, ...] = ("8ea244a", "HEAD")
    """what git understands as a commit; rows hold its short hash"""
    env_ids: tuple[Literal[envs.ENV_IDS], ...] = ("anymal", "hopper", "ant", "humanoid", "hand_reorient")
    """the tasks"""
    iterations: int = 8
    """of each training"""
    repeats: int = 3
    """calls per figure"""
    output: str | None = None
    """write the table to this CSV file as well"""


def measure(tree, env_id, iterations):
    """What a commit's throughput.py says about a task: the figures of a row."""
    alone = throughput(tree, env_id, 1)
    trained = throughput(tree, env_id, available_cores(), "--train", f"--iterations={iterations}")
    return {"training": trained["training"], "forward_backward": alone["forward_backward"]}


def throughput(tree, env_id, num_threads, *flags):
    """The last row of its table as a dictionary; whole numbers only."""
    command = [sys.executable, "-m", "benchmarks.throughput", f"--env-ids={env_id}", f"--threads={num_threads}", *flags]
    output = subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True).stdout
    titles, *_, numbers = ([cell.strip() for cell in line.split("|")] for line in output.splitlines())
    return {title: int(x.replace(",", "")) for title, x in zip(titles, numbers) if re.fullmatch(r"[\d,]+", x)}


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
        for tree in trees:
            throughput(tree, args.env_ids[0], 1)  # compiles the kernels
        for env_id in args.env_ids:
            turns = [[measure(tree, env_id, args.iterations) for tree in trees] for _ in range(args.repeats)]
            for k, name in enumerate(names):
                figures = {title: median(turn[k][title] for turn in turns) for title in turns[0][k]}
                rows.append({"env_id": env_id, "commit": name} | figures)
                print(rows[-1], flush=True)
            if args.output:
                write_rows(args.output, rows)  # after every task


if __name__ == "__main__":
    main()
