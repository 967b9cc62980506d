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


def main():
    args = tyro.cli(Args)
    text = (args.run_dir / "metrics.csv").read_text()
    last = list(csv.DictReader(text.splitlines()))[-1]
    if last["SPS"] or not last["eval_episodic_return"]:
        sys.exit(f"{args.run_dir}: the last line of metrics.csv is not the final evaluation: the run has not finished")
    on_cuda = torch.load(args.run_dir / "checkpoint.pt", weights_only=True)["cuda_rng"] is not None
    env_id, script, seed, started = args.run_dir.resolve().name.split("__")
    date = datetime.date.fromtimestamp(int(started)).isoformat()
    output = RESULTS / f"{args.name or f'{script}__{env_id}__{seed}'}.csv"
    output.write_text(provenance(args.command, "cuda" if on_cuda else "cpu", args.commit, date) + text)
    print(output)


if __name__ == "__main__":
    main()
