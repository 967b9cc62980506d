"""The figures of benchmarks/results: `python -m benchmarks.plot`; `python -m benchmarks.tables` writes the tables.

results/<env_id>.png: learning curves of a task; results/all.png: of four tasks, for the README;
results/ablations_<env_id>.png; results/scaling_<device>.png: speed against the number of environments.
"""

import itertools

import matplotlib.pyplot as plt
import numpy as np

from benchmarks import tables
from benchmarks.records import (
    ABLATIONS,
    RESULTS,
    SCRIPTS,
    final_returns,
    groups_of,
    groups_of_ablation,
    is_standard,
    read_ablations,
    read_all,
    read_paper,
    tasks_of,
)

COLORS = {"rpo": "C0", "sapo": "C1", "shac": "C2", "reppo": "C3", "ppo": "C4", "gippo": "C5", "sac": "C6"}
LINES = ("-", "--", ":", "-.")


def curve(group, column):
    """The steps at which all runs of a group logged a column, and its values there, (runs, steps)."""
    logged = [run.logged(column) for run in group]
    steps = sorted(set.intersection(*map(set, logged)))
    return np.array(steps), np.array([[values[step] for step in steps] for values in logged])


def draw(ax, group, column, label, color, line, against_minutes=False):
    """The mean over runs, against steps or wall clock, and of several runs a band of one standard deviation (n - 1)."""
    x, values = curve(group, column)
    if against_minutes:
        x = np.mean([[run.logged("wall_s")[step] / 60 for step in x] for run in group], axis=0)
    else:
        x = x / 1e6
    mean = values.mean(0)
    ax.plot(x, mean, color=color, linestyle=line, linewidth=1.3, label=label)
    if len(group) > 1:
        std = values.std(0, ddof=1)
        low = mean - std
        if ax.get_yscale() == "log":  # which has no room for what is below zero
            low = np.maximum(low, values.min(0))
        ax.fill_between(x, low, mean + std, color=color, alpha=0.2, linewidth=0)


def draw_paper(ax, env_id):
    """RPO's return in its paper."""
    row = read_paper().get((env_id, "rpo"))
    if row:
        ax.axhline(
            float(row["stochastic"]), color="gray", linestyle="--", linewidth=0.8, label="RPO paper, full budget"
        )


def with_style(runs, env_id):
    """Script, line style, runs; a script with several settings has several line styles."""
    for script in SCRIPTS:
        for line, group in zip(itertools.cycle(LINES), groups_of(runs, env_id, script)):
            yield script, line, group


def finish(figure, axes, output, ncols):
    """One legend below all axes, every label once."""
    handles = {}
    for ax in axes:
        ax.grid(alpha=0.3)
        handles |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=ncols, fontsize=9, frameon=False)
    figure.savefig(output, dpi=110)
    plt.close(figure)
    print(output)


def plot_task(env_id, runs, output):
    """Returns against steps and against wall clock."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), sharey=True, layout="constrained")
    for script, line, group in with_style(runs, env_id):
        label = f"{SCRIPTS[script]}, {tables.seeds(group)}: {tables.spread(final_returns(group))}"
        for ax, against_minutes in zip(axes, (False, True)):
            draw(ax, group, "episodic_return", label, COLORS[script], line, against_minutes)
    for ax in axes:
        draw_paper(ax, env_id)
    axes[0].set(xlabel="environment steps [million]", ylabel="return (mean of the last 100 episodes)", title=env_id)
    axes[1].set(xlabel="wall clock [minutes], upper bounds: see RESULTS.md")
    finish(figure, axes, output, ncols=3)


def plot_all(runs, output):
    """Returns of the paper's locomotion tasks against steps, in one row."""
    env_ids = ("hopper", "ant", "anymal", "humanoid")
    figure, axes = plt.subplots(1, len(env_ids), figsize=(13, 3.6), layout="constrained")
    for ax, env_id in zip(axes, env_ids):
        for script, line, group in with_style(runs, env_id):
            draw(ax, group, "episodic_return", SCRIPTS[script], COLORS[script], line)
        draw_paper(ax, env_id)
        ax.set(title=env_id, xlabel="environment steps [million]")
    axes[0].set_ylabel("return")
    finish(figure, axes, output, ncols=len(SCRIPTS) + 1)


def ablation_style(name):
    """RPO's variants differ in colour, those of the other scripts in line style."""
    script = name.split("_")[0]
    position = [other for other in ABLATIONS if other.split("_")[0] == script].index(name)
    return (
        (("C0", "C3", "C4", "C5", "C6", "C7", "C8", "C9")[position], "-")
        if script == "rpo"
        else (COLORS[script], LINES[position])
    )


def plot_ablations(env_id, runs, output):
    """Returns of RPO's variants and of the other scripts', and what becomes of the ratio."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), layout="constrained")
    axes[1, 1].set_yscale("log")
    for name, title in ABLATIONS.items():
        for group in groups_of_ablation(runs, env_id, name):
            style = (title, *ablation_style(name))
            if name.startswith("rpo"):
                draw(axes[0, 0], group, "episodic_return", *style)
                draw(axes[1, 0], group, "effective_sample_ratio", *style)
                draw(axes[1, 1], group, "ratio_max", *style)
            if name == "rpo" or not name.startswith("rpo"):
                draw(axes[0, 1], group, "episodic_return", *style)
    for ax, title in zip(axes.flat, ("return", "return", "effective sample ratio", "largest ratio of an epoch")):
        ax.set(xlabel="environment steps [million]", ylabel=title)
    axes[0, 0].set_title(f"{env_id}: RPO's variants")
    axes[0, 1].set_title(f"{env_id}: SAPO and SHAC")
    finish(figure, axes.flat, output, ncols=3)


def plot_scaling(path):
    """Environment steps per second against the number of environments, with the largest number of threads measured."""
    _, lines = tables.speeds(path, path)
    env_ids = list(dict.fromkeys(line["env_id"] for line in lines))
    figure, axes = plt.subplots(1, len(env_ids), figsize=(4.5 * len(env_ids), 4), squeeze=False, layout="constrained")
    for ax, env_id in zip(axes[0], env_ids):
        rows = {int(line["num_envs"]): line for line in lines if line["env_id"] == env_id}  # the last one wins
        for column in ("forward", "forward_backward", "training"):
            points = {n: int(row[column]) for n, row in rows.items() if row.get(column)}
            if points:
                ax.plot(list(points), list(points.values()), marker="o", label=column.replace("_", " and "))
        ax.set(title=env_id, xlabel="environments", ylabel="environment steps per second", xscale="log", yscale="log")
    finish(figure, axes[0], path.with_suffix(".png"), ncols=3)


def main(results=RESULTS):
    runs = [run for run in read_all(results) if is_standard(run)]
    for env_id in tasks_of(runs):
        plot_task(env_id, runs, results / f"{env_id}.png")
    plot_all(runs, results / "all.png")
    ablations = read_ablations(results)
    for env_id in tasks_of(ablations):
        plot_ablations(env_id, ablations, results / f"ablations_{env_id}.png")
    for path in results.glob("scaling_*.csv"):
        plot_scaling(path)


if __name__ == "__main__":
    main()
