"""Copy a finished run into benchmarks/results, with a header that says where it comes from.

    python benchmarks/collect.py runs/<run> --command "python rpo_continuous.py --env-id hopper ..."

Writes benchmarks/results/<script>__<env_id>__<seed>.csv: metrics.csv, whose last line is the final evaluation.
Call it on the machine that made the run, before anything is upgraded: the versions in the header are those found now.
"""

import csv
import datetime
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.provenance import provenance  # noqa: E402

RESULTS = Path(__file__).parent / "results"


@dataclass
class Args:
    run_dir: tyro.conf.Positional[Path]
    """the run folder"""
    command: str
    """the command that made it"""
    commit: str | None = None
    """the commit it ran from; default: the one checked out"""
    name: str | None = None
    """name of the results file; default: <script>__<env_id>__<seed>"""


def is_finished(run_dir):
    """Whether the last line of metrics.csv is the final evaluation."""
    path = run_dir / "metrics.csv"
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    return bool(rows) and not rows[-1]["SPS"] and bool(rows[-1]["eval_episodic_return"])


def collect(run_dir, command, commit=None, name=None, results=RESULTS):
    """Write the results file of a finished run and return its path; the arguments are those of Args."""
    if not is_finished(run_dir):
        sys.exit(f"{run_dir}: the last line of metrics.csv is not the final evaluation: the run has not finished")
    on_cuda = torch.load(run_dir / "checkpoint.pt", weights_only=True)["shares"][0]["cuda_rng"] is not None
    env_id, script, seed, started = run_dir.resolve().name.split("__")
    date = datetime.date.fromtimestamp(int(started)).isoformat()
    output = results / f"{name or f'{script}__{env_id}__{seed}'}.csv"
    header = provenance(command, "cuda" if on_cuda else "cpu", commit, date)
    output.write_text(header + (run_dir / "metrics.csv").read_text())
    return output


def main():
    args = tyro.cli(Args)
    print(collect(args.run_dir, args.command, args.commit, args.name))


if __name__ == "__main__":
    main()
