"""The header line of every results file: what ran, from which commit, on what, when."""

import csv
import datetime
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch
import warp as wp


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
    header = provenance(shlex.join(["python", "-m", module, *sys.argv[1:]]), device)  # before the file is changed
    with open(path, "w", newline="") as file:
        file.write(header)
        writer = csv.DictWriter(file, max(rows, key=len))
        writer.writeheader()
        writer.writerows(rows)


def steps_of(checkpoint):
    """Environment steps after which a checkpoint was written; 0 for None."""
    args = checkpoint["args"] if checkpoint else None
    return checkpoint["iteration"] * args["num_envs"] * args["num_steps"] if args else 0


def current_commit():
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout
    return commit.strip() + ("+changes" if changed else "")


def cpu_name():
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
