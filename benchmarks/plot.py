"""The figures of benchmarks/results: `python -m benchmarks.plot`; `python -m benchmarks.tables` writes the tables.

results/1m.png, 1m_minutes.png, 1m_kl.png: Benchmark-1M; results/longer.png: longer runs;
results/ablations_<env_id>.png; results/scaling_<device>.png: speed against the number of environments;
results/1m/horizons.png and results/full/horizons.png: AHAC's horizon during training.
"""

import itertools

import matplotlib.pyplot as plt
import numpy as np

from benchmarks import tables
from benchmarks.records import (
    ABLATIONS,
    ONE_MILLION_TASKS,
    RESULTS,
    SCRIPTS,
    groups_of,
    groups_of_ablation,
    read_ablations,
    read_longer,
    read_one_million,
    read_paper,
    tasks_of,
    timed,
)
from benchmarks.scores import mean_interval

COLORS = {"rpo": "C0", "sapo": "C1", "shac": "C2", "reppo": "C3", "ppo": "C4", "gippo": "C5", "sac": "C6"}
COLORS |= {"ahac": "C8", "fasttd3": "C9"}
LINES = ("-", "--", ":", "-.")


def curve(group, column):
    """The steps at which the first run of a group logged a column, and the values of all of them there, (runs, steps).

    Values of runs that logged at other steps, as AHAC's do with each seed, are interpolated.
    """
    logged = [sorted(run.logged(column).items()) for run in group]
    if not all(logged):  # some have no such column
        return np.array([]), np.zeros((len(group), 0))
    first, last = max(values[0][0] for values in logged), min(values[-1][0] for values in logged)
    steps = [step for step, _ in logged[0] if first <= step <= last]
    return np.array(steps), np.array([np.interp(steps, *zip(*values)) for values in logged])


def condensed(x, values, bins):
    """Means over bins of equal width from 0 to the last x, without the empty ones: (steps,) and (runs, steps)."""
    ends = np.searchsorted(x, np.linspace(0, x[-1], bins + 1)[1:-1])
    parts = [part for part in np.split(np.arange(len(x)), ends) if len(part)]
    return np.array([x[part].mean() for part in parts]), np.stack([values[:, part].mean(1) for part in parts], axis=1)


def draw(ax, group, column, label, color, line, against_minutes=False, bins=None):
    """The mean over runs, against steps or wall clock, and of several runs the 95 % interval of the mean as a band.

    bins: see condensed(); default: none.
    """
    x, values = curve(group, column)
    if against_minutes:
        clocks = [sorted(run.logged("wall_s").items()) for run in timed(group)]
        x = np.mean([np.interp(x, *zip(*clock)) / 60 for clock in clocks], axis=0)
    else:
        x = x / 1e6
    if bins:
        x, values = condensed(x, values, bins)
    ax.plot(x, values.mean(0), color=color, linestyle=line, linewidth=1.3, label=label)
    if len(group) > 1:
        ax.fill_between(x, *mean_interval(values), color=color, alpha=0.2, linewidth=0)


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


def finish(figure, axes, output, ncols=2, corner=None):
    """One legend, every label once: below all axes, or in a corner that is left free for it."""
    handles = {}
    for ax in axes:
        ax.grid(alpha=0.3)
        handles |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels())}
    legend = {"ncols": ncols, "frameon": False, "fontsize": 9 if corner is None else 12}
    if corner is None:
        figure.legend(handles.values(), handles, loc="outside lower center", **legend)
    else:
        corner.legend(handles.values(), handles, loc="center", **legend)
    figure.savefig(output, dpi=110)
    plt.close(figure)
    print(output)


def plot_tasks(runs, output, against_minutes=False):
    """Returns of all scripts, a panel per task."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 8), layout="constrained")
    *axes, corner = axes.flat
    for ax, env_id in zip(axes, ONE_MILLION_TASKS, strict=True):
        for script, line, group in with_style(runs, env_id):
            draw(ax, group, "episodic_return", SCRIPTS[script], COLORS[script], line, against_minutes, bins=50)
        draw_paper(ax, env_id)
        xlabel = "minutes on one core" if against_minutes else "environment steps [million]"
        ax.set(title=env_id, xlabel=xlabel, xscale="log" if against_minutes else "linear")
        if against_minutes:
            ax.set_xlim(left=0.3)
    for ax in (axes[0], axes[3]):
        ax.set_ylabel("return (mean of the last 100 episodes)")
    corner.axis("off")
    finish(figure, axes, output, corner=corner)


def plot_kl(runs, output, env_id="humanoid", scripts=("rpo", "shac", "sapo")):
    """Return and KL per iteration, a column per script, a line per seed: as figure 1 of the RPO paper."""
    figure, axes = plt.subplots(
        2, len(scripts), figsize=(11, 5), sharex=True, sharey="row", squeeze=False, layout="constrained"
    )
    for script, (above, below) in zip(scripts, axes.T):
        for group in groups_of(runs, env_id, script):
            for run, color in zip(group, itertools.cycle(("C0", "C1", "C2"))):
                draw(above, [run], "episodic_return", f"seed {run.seed}", color, "-")
                draw(below, [run], "approx_kl", f"seed {run.seed}", color, "-")
        above.set_title(f"{SCRIPTS[script]}, {env_id}")
        below.set(xlabel="environment steps [million]", yscale="log")
    axes[0, 0].set_ylabel("return")
    axes[1, 0].set_ylabel("KL per iteration")
    finish(figure, axes.flat, output, ncols=3)


def plot_ablations(env_id, runs, output):
    """Returns of RPO's variants, and what becomes of the ratio."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    axes[2].set_yscale("log")
    variants = [name for name in ABLATIONS if name.startswith("rpo")]
    for position, name in enumerate(variants):
        for group in groups_of_ablation(runs, env_id, name):
            for ax, column in zip(axes, ("episodic_return", "effective_sample_ratio", "ratio_max")):
                draw(ax, group, column, ABLATIONS[name], f"C{position}", LINES[position % len(LINES)])
    for ax, title in zip(axes, ("return", "effective sample ratio", "largest ratio of an epoch")):
        ax.set(xlabel="environment steps [million]", ylabel=title)
    axes[0].set_title(env_id)
    finish(figure, axes, output, ncols=4)


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


def plot_horizons(runs, output):
    """AHAC's horizon, and the stiffness that moves it, in multiples of the limit; a mean of ten iterations."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for env_id, color in zip(tasks_of(runs), itertools.cycle(f"C{k}" for k in range(10))):
        for group in groups_of(runs, env_id, "ahac"):
            for line, run in zip(itertools.cycle(LINES), group):
                style = {"color": color, "linestyle": line, "label": f"{env_id}, seed {run.seed}"}
                steps, stiffness = curve([run], "stiffness")
                relative = stiffness[0] / stiffness[0][:10].mean()
                smooth = [relative[max(0, k - 9) : k + 1].mean() for k in range(len(relative))]
                axes[1].plot(steps / 1e6, smooth, linewidth=1.0, **style)
                steps, horizons = curve([run], "horizon")
                steps, horizons = steps[:-1], horizons[:, :-1]  # the last rollout is cut to the budget
                axes[0].plot(steps / 1e6, horizons[0], linewidth=1.3, **style)
    axes[0].set(xlabel="environment steps [million]", ylabel="horizon [steps]")
    axes[1].set(xlabel="environment steps [million]", ylabel="stiffness / limit")
    axes[1].axhline(1.0, color="gray", linestyle="--", linewidth=0.8)
    finish(figure, axes, output, ncols=4)


def main(results=RESULTS):
    plot_tasks(read_longer(results), results / "longer.png")
    million = read_one_million(results)
    plot_tasks(million, results / "1m.png")
    plot_tasks(million, results / "1m_minutes.png", against_minutes=True)
    plot_kl(million, results / "1m_kl.png")
    ablations = [*read_ablations(results), *(run for run in million if (run.script, run.env_id) == ("rpo", "ant"))]
    for env_id in tasks_of(ablations):
        plot_ablations(env_id, ablations, results / f"ablations_{env_id}.png")
    for path in results.glob("scaling_*.csv"):
        plot_scaling(path)
    for name, found in {"1m": million, "full": read_longer(results)}.items():
        adaptive = [run for run in found if run.script == "ahac"]
        if adaptive:
            plot_horizons(adaptive, results / name / "horizons.png")


if __name__ == "__main__":
    main()
