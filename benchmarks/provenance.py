"""The flags of a benchmark, and the header line of its results file: what ran, from which commit, on what, when."""

import csv
import datetime
import os
import platform
import shlex
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import torch
import warp as wp

import envs
from benchmarks.records import ROOT
from envs.command_line import read_flags as read_flags_of_any
from envs.physics import resolve_device

STARTED = {}  # commit and date of a measurement: what is checked out later did not make it


def read_flags(Args):
    """The command line as an `Args`. What would fail only after the measurement is refused here, with exit code 2."""
    args = read_flags_of_any(Args)
    if getattr(args, "output", None) is not None:
        STARTED.update(commit=current_commit(), date=datetime.date.today().isoformat())
    for field in fields(Args):
        value, least = getattr(args, field.name), int(field.name not in ("seed", "warm_up"))
        if value == () != field.default:
            envs.refuse(field.name, "expected a value or more, got none")
        for number in value if isinstance(value, tuple) else (value,):
            if type(number) is int and not least <= number <= 10**9 and field.name != "seeds":  # the scripts do
                envs.refuse(field.name, f"expected {least} to {10**9}, got {number}")
        if field.name in ("output", "video") and value is not None and not _is_free(Path(value)):
            envs.refuse(field.name, f"expected a file in an existing folder, got {value!r}")
        if field.name == "device":
            try:
                resolve_device(value)
            except ValueError as error:
                envs.refuse(field.name, str(error).removeprefix("device: "))
    return args


def _is_free(path):
    """Whether a file can be written there."""
    return path.absolute().parent.is_dir() and not path.is_dir()


def provenance(command, device, commit=None, date=None):
    """One line `# command, commit, device, cores, torch, warp, date`; the commit is by default the one checked out."""
    fields = {
        "command": command,
        "commit": commit or current_commit(),
        "device": cpu_name() if device == "cpu" else torch.cuda.get_device_name(device),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "warp": wp.__version__,
        "date": date or datetime.date.today().isoformat(),
    }
    return "# " + ", ".join(f"{name}: {value}" for name, value in fields.items()) + "\n"


def write_rows(path, rows, device="cpu"):
    """A table as the results file of the present command. rows: dictionaries, of which some may lack last columns."""
    module = sys.modules["__main__"].__spec__.name
    header = provenance(shlex.join(["python", "-m", module, *sys.argv[1:]]), device, **STARTED)
    with replaced(path) as file:
        file.write(header)
        writer = csv.DictWriter(file, max(rows, key=len))
        writer.writeheader()
        writer.writerows(rows)


@contextmanager
def replaced(path):
    """A text file in place of the one at `path`, once it is written: there is never half of one."""
    temporary = Path(path).with_name(f"{Path(path).name}.tmp")
    with open(temporary, "w", newline="") as file:
        yield file
    os.replace(temporary, path)


def steps_of(checkpoint):
    """Environment steps after which a checkpoint was written; 0 for None."""
    if checkpoint is None:
        return 0
    args = checkpoint["args"]
    if "horizon" in checkpoint:  # AHAC's iterations have different lengths
        return int(checkpoint["horizon"]["total_steps"]) * args["num_envs"]
    return checkpoint["iteration"] * args["num_envs"] * args["num_steps"]


def current_commit(root=ROOT):
    """The commit that is checked out, "+changes" if a file differs from it that is not itself a result."""

    def git(*command):
        return subprocess.run(["git", "-C", root, *command], capture_output=True, text=True, check=True).stdout

    commit = git("rev-parse", "--short", "HEAD").strip()
    changed = git("status", "--porcelain", "-uno", ".", ":(exclude)benchmarks/results")
    return commit + ("+changes" if changed else "")


def available_cores():
    """Those that this process may use: `taskset -c 1 python -m benchmarks.run ...` has one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name():
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    first = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    if name := first.get("model name"):  # which on a virtual machine may say little
        return f"{name} (family {first.get('cpu family', '?')} model {first.get('model', '?')})"
    return platform.processor() or platform.machine()
