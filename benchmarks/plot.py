"""Learning curves: `python benchmarks/plot.py` writes results/<env_id>.png for every task in benchmarks/results."""

import csv
import re
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
# RPO paper (arXiv 2508.06214), table 1: stochastic policy, at the paper's full budget
PAPER_RPO = {"hopper": 5525.57, "ant": 8891.04, "humanoid": 8637.78, "anymal": 15674.12}
COLORS = {"rpo": "C0", "sapo": "C1", "shac": "C2", "reppo": "C3", "ppo": "C4", "gippo": "C5", "sac": "C6"}


def read(path):
    """Steps, wall-clock seconds, training returns, the final evaluation, and the machine of one results file."""
    with open(path, newline="") as file:
        header, *lines = file.read().splitlines()
    rows = list(csv.DictReader(lines))
    machine = re.search(r"device: (.*), cores: (\d+)", header)
    curve = [row for row in rows if row["episodic_return"] not in ("", "nan")]
    columns = [[float(row[name]) for row in curve] for name in ("global_step", "wall_s", "episodic_return")]
    return *columns, float(rows[-1]["eval_episodic_return"]), f"{machine[1]}, {machine[2]} cores"


def plot(env_id, paths):
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for path in paths:
        script, _, seed = path.stem.split("__")
        steps, seconds, returns, final, machine = read(path)
        name = script.removesuffix("_continuous")
        label = f"{name.upper()}, seed {seed}: {final:.0f} at the end"
        axes[0].plot([step / 1e6 for step in steps], returns, COLORS.get(name, "C7"), label=label)
        axes[1].plot([second / 60 for second in seconds], returns, COLORS.get(name, "C7"), label=machine)
    if env_id in PAPER_RPO:
        axes[0].axhline(PAPER_RPO[env_id], color="gray", linewidth=0.8, linestyle="--", label="RPO paper, full budget")
        axes[1].axhline(PAPER_RPO[env_id], color="gray", linewidth=0.8, linestyle="--")
    axes[0].set(xlabel="environment steps [million]", ylabel="return (mean of the last 100 episodes)", title=env_id)
    axes[1].set(xlabel="wall clock [minutes]")
    for ax in axes:
        ax.legend(loc="lower right", fontsize=8)
        ax.grid(alpha=0.3)
    figure.savefig(RESULTS / f"{env_id}.png", dpi=110)
    print(RESULTS / f"{env_id}.png")


def main():
    tasks = defaultdict(list)
    for path in sorted(RESULTS.glob("*__*__*.csv")):
        tasks[path.stem.split("__")[1]].append(path)
    for env_id, paths in tasks.items():
        plot(env_id, paths)


if __name__ == "__main__":
    main()
