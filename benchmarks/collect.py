"""Make the results file of a finished run from its folder, with a header that says where it comes from.

    python -m benchmarks.collect runs/<run> --command "python rpo_continuous.py --env-id hopper ..."

Writes benchmarks/results/<script>__<env_id>__<seed>.csv: a line per iteration, and a last one for the final evaluation.
Call it on the machine that made the run, before anything is upgraded: the versions in the header are those found now.
"""

import csv
import datetime
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from benchmarks.events import is_evaluation, read_rows
from benchmarks.provenance import provenance, read_flags, replaced, steps_of
from benchmarks.records import RESULTS, made_by

EVALUATION = [
    f"eval/{kind}{quantity}"
    for kind in ("", "deterministic_")
    for quantity in ("episodic_return", "return_std", "episodic_length")
]


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
    """Whether a run has made all its steps, and the log has an evaluation of the policy after the last one.

    That evaluation may be one of --eval-freq, after which the run was interrupted: the final one would have repeated
    its numbers, because it plays the same episodes with the same networks.
    """
    path = Path(run_dir) / "checkpoint.pt"
    if not path.exists():
        return False
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    args, rows = checkpoint["args"], read_rows(run_dir)
    # AHAC cuts its last rollout, the others make only whole ones
    unit = args["num_envs"] * (1 if "horizon" in checkpoint else args["num_steps"])
    last = args["total_timesteps"] // unit * unit
    evaluated = bool(rows) and {"wall_s", *EVALUATION} <= rows[-1].keys()
    return evaluated and rows[-1]["global_step"] == steps_of(checkpoint) == last


def results_lines(rows):
    """The rows of a finished run as lines of a results file: dictionaries of text, the last row as two of them.

    The names are the tags without charts/ and losses/, and with an underscore for the other slashes.
    """
    tags = [tag for tag in dict.fromkeys(tag for row in rows for tag in row) if not tag.endswith("wall_s")]
    tags = sorted(tags, key=is_evaluation)  # evaluations last; what is logged first comes first
    final = {tag: rows[-1][tag] for tag in ("global_step", *EVALUATION)} | {"wall_s": rows[-1]["eval/wall_s"]}
    rows = [*rows[:-1], {tag: value for tag, value in rows[-1].items() if not is_evaluation(tag)}, final]
    for row in rows:
        line = {"global_step": row["global_step"], "wall_s": f"{row['wall_s']:.2f}"}
        yield line | {column(tag): f"{row[tag]:.7g}" if tag in row else "" for tag in tags if tag != "global_step"}


def column(tag):
    return tag.removeprefix("charts/").removeprefix("losses/").replace("/", "_")


def collect(run_dir, command, commit=None, name=None, results=RESULTS):
    """Write the results file of a finished run and return its path; the arguments are those of Args."""
    if not is_finished(run_dir):
        sys.exit(f"{run_dir}: expected a finished run, got one without a final evaluation")
    checkpoint = torch.load(run_dir / "checkpoint.pt", map_location="cpu", weights_only=True, mmap=True)
    on_cuda = checkpoint["args"]["cuda"] and checkpoint["cuda_rng"]  # the state of the GPU there was
    env_id, script, seed, started = run_dir.resolve().name.rsplit("__", 3)
    date = datetime.date.fromtimestamp(int(started)).isoformat()
    output = results / f"{name or f'{script}__{env_id}__{seed}'}.csv"
    if output.exists() and made_by(output) != command:
        sys.exit(
            f"{output}: expected no file or one of `{command}`, got one of `{made_by(output)}`: use another --name"
        )
    lines = list(results_lines(read_rows(run_dir)))
    header = provenance(command, "cuda" if on_cuda else "cpu", commit, date)
    with replaced(output) as file:
        file.write(header)
        writer = csv.DictWriter(file, lines[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return output


def main():
    args = read_flags(Args)
    print(collect(args.run_dir, args.command, args.commit, args.name))


if __name__ == "__main__":
    main()
