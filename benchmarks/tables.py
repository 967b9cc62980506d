"""RESULTS.md, and the tables of the README, docs/performance.md and docs/robustness.md: `python -m benchmarks.tables`.

A number in them comes from a results file or from paper.csv, nowhere else.
"""

import csv
import os
import re
from collections import defaultdict
from statistics import mean, stdev

from scipy.stats import bootstrap, trim_mean

from benchmarks.records import (
    ABLATIONS,
    BENCHMARKS,
    RESULTS,
    ROOT,
    SCRIPTS,
    TASKS,
    final_returns,
    groups,
    groups_of,
    groups_of_ablation,
    is_standard,
    read_ablations,
    read_all,
    read_paper,
    tasks_of,
)


# statistics over seeds
def spread(values):
    """Mean and, of several seeds, their standard deviation (n - 1)."""
    return f"{mean(values):.0f}" + (f" +- {stdev(values):.0f}" if len(values) > 1 else "")


def iqm(values):
    """Interquartile mean with its 95 % percentile bootstrap interval over seeds, "-" for fewer than three of them."""
    if len(values) < 3:
        return "-"

    def statistic(x, axis):
        return trim_mean(x, 0.25, axis=axis)

    interval = bootstrap((values,), statistic, method="percentile", rng=0).confidence_interval
    return f"{trim_mean(values, 0.25):.0f} [{interval.low:.0f}, {interval.high:.0f}]"


def extreme(function, group, column):
    """The lowest or highest value of a logged column over training and seeds."""
    values = [value for run in group for value in run.logged(column).values()]
    return f"{function(values):.2f}" if values else "-"


# cells
def millions(steps):
    return f"{steps / 1e6:.2f}M"


def seeds(group):
    return f"{len(group)} seed{'s' if len(group) > 1 else ''}"


def link(path, page, text):
    return f"[{text}]({os.path.relpath(path, page.parent)})"


def code(command):
    """The flags as code; what follows them in a header is words."""
    flags, _, words = command.partition("; ")
    return f"`{flags}`" + (f", {words}" if words else "")


def wall_clock(group):
    shortest, longest = (f"{function(run.minutes for run in group):.0f}" for function in (min, max))
    return f"{shortest} min" if shortest == longest else f"{shortest} to {longest} min"


def evaluated(run, kind):
    """Mean and deviation over the episodes of one evaluation."""
    return f"{run.evaluation(f'{kind}episodic_return'):.0f} +- {run.evaluation(f'{kind}return_std'):.0f}"


def published(row, kind):
    return f"{float(row[kind]):.0f} +- {float(row[f'{kind}_std']):.0f}" if row else "-"


def table(rows):
    """Markdown of rows that are dictionaries with the same keys, the titles of the columns."""
    if not rows:
        return "Not run."
    lines = [rows[0], ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


# tables
def overview(runs, paper):
    """Tasks x scripts: final stochastic returns, each above the paper's."""
    standard = [run for run in runs if is_standard(run)]
    rows = [{"task": env_id} for env_id in TASKS]
    for row in rows:
        for script, title in SCRIPTS.items():
            found = groups_of(standard, row["task"], script)
            cell = [
                f"**{spread(final_returns(group))}**<br>{seeds(group)}, {millions(group[0].steps)}" for group in found
            ]
            reference = paper.get((row["task"], script))
            cell = (cell or ["not run"]) + ([f"paper: {published(reference, 'stochastic')}"] if reference else [])
            row[title] = "<br>".join(cell)
    return table(rows)


def settings_of(script, runs, paper, page):
    """A row for every setting that a script ran with; the paper's below those of a task."""
    columns = (f"`{script}_continuous.py --env-id`", "seeds", "steps", "stochastic", "deterministic", "wall clock")
    rows = []
    for env_id in TASKS:
        found = groups_of(runs, env_id, script)
        for group in found:
            files = ", ".join(link(run.path, page, run.seed) for run in group)
            returns = [spread(final_returns(group, kind)) for kind in ("", "deterministic_")]
            rows.append([code(group[0].settings), files, millions(group[0].steps), *returns, wall_clock(group)])
        if found and (env_id, script) in paper:
            reference = paper[env_id, script]
            returns = [published(reference, kind) for kind in ("stochastic", "deterministic")]
            rows.append([f"{SCRIPTS[script]} paper, {env_id}", "12 seeds", reference["steps"], *returns, ""])
    return table([dict(zip(columns, row)) for row in rows])


def statistics(runs, paper):
    """A row for every script and setting, with the interquartile mean, beside the paper's numbers."""
    rows = []
    for group in groups(runs):
        first = group[0]
        reference = paper.get((first.env_id, first.script))
        row = {
            "script": SCRIPTS[first.script],
            "`--env-id`": code(first.settings),
            "seeds": len(group),
            "steps": millions(first.steps),
            "stochastic": spread(final_returns(group)),
            "IQM [95 %]": iqm(final_returns(group)),
            "deterministic": spread(final_returns(group, "deterministic_")),
            "hardware": "; ".join(sorted({run.hardware for run in group})),
            "paper, stochastic": published(reference, "stochastic"),
            "paper, deterministic": published(reference, "deterministic"),
            "paper, steps": reference["steps"] if reference else "-",
        }
        rows.append(row)
    return table(rows)


def ablations_of(env_id, runs):
    """A row for every ablation of a task, with what became of the ratio."""
    columns = ("variant", "flags", "seeds", "steps", "stochastic", "IQM [95 %]", "deterministic")
    columns += ("lowest effective sample ratio", "largest ratio")
    rows = []
    for name, title in ABLATIONS.items():
        found = groups_of_ablation(runs, env_id, name)
        for group in found:
            row = [title, code(group[0].settings), len(group), millions(group[0].steps), spread(final_returns(group))]
            row += [iqm(final_returns(group)), spread(final_returns(group, "deterministic_"))]
            rows.append([*row, extreme(min, group, "effective_sample_ratio"), extreme(max, group, "ratio_max")])
        if not found:
            rows.append([title, "", "", "", "not run", "", "", "", ""])
    return table([dict(zip(columns, row)) for row in rows])


def files(runs, page):
    """A row for every results file."""
    rows = []
    for run in runs:
        lengths = [f"{run.evaluation(f'{kind}episodic_length'):.0f}" for kind in ("", "deterministic_")]
        row = {
            "file": link(run.path, page, f"`{run.path.name}`"),
            "command": code(run.command),
            "commit": run.commit,
            "seed": run.seed,
            "steps": millions(run.steps),
            "stochastic": evaluated(run, ""),
            "deterministic": evaluated(run, "deterministic_"),
            "length": " / ".join(lengths),
            "wall clock": f"{run.minutes:.0f} min",
            "hardware": run.hardware,
            "date": run.date,
        }
        rows.append(row)
    return table(rows)


def speeds(path, page):
    """What made a file of throughput.py, and its lines."""
    with open(path, newline="") as file:
        header, *lines = file.read().splitlines()
    commit, machine, date = re.search(r"commit: (.*), device: (.*), torch: .*, date: (.*)", header).groups()
    return f"{machine}, commit {commit}, {date}, {link(path, page, path.name)}:\n\n", list(csv.DictReader(lines))


def throughput(path, page):
    """Environment steps per second of the environments alone: a row for every task, below what made it."""
    origin, lines = speeds(path, page)
    rows = {}
    for line in lines:
        row = {"task": line["env_id"], "environments": line["num_envs"]}
        row = rows.setdefault(tuple(row.values()), row)
        threads = {"": "", "1": ", 1 thread"}.get(line["threads"], f", {line['threads']} threads")
        row[f"forward{threads}"] = f"{int(line['forward']):,}"
        row[f"forward and backward{threads}"] = f"{int(line['forward_backward']):,}"
    return origin + table(list(rows.values()))


def training(path, page):
    """Environment steps per second of RPO, everything included, and the shares of an iteration's parts."""
    origin, lines = speeds(path, page)
    rows = []
    for line in lines:
        parts = {name.removesuffix("_ms").replace("_", " "): float(line[name]) for name in line if name.endswith("_ms")}
        total = sum(parts.values())
        row = {"task": line["env_id"], "environments": line["num_envs"], "threads": line["threads"] or "-"}
        row |= {"start": f"{line['start_s']} s"} if "start_s" in line else {}
        row |= {"steps per second": f"{int(line['training']):,}", "iteration": f"{total:.0f} ms"}
        rows.append(row | {name: f"{round(100 * part / total)} %" for name, part in parts.items()})
    return origin + table(rows)


# pages
RESULTS_PAGE = """# Results

Written by `python -m benchmarks.tables`, the figures by `python -m benchmarks.plot`, from the files in
[results](results) and from [paper.csv](paper.csv): do not edit.

A return is the mean of 128 evaluation episodes of the final policy, undiscounted, with the policy's noise
(stochastic) or without it (deterministic). Over several seeds: mean +- standard deviation (n - 1) of these means, and
the interquartile mean (a quarter of the seeds, rounded down, left out at either end) with its 95 % percentile
bootstrap interval; "-" for fewer than three seeds. One seed has no spread: an example, not a statistic.

The paper is RPO's (arXiv 2508.06214v3), tables 1 and 6: 12 seeds, at its full budget. It states only ANYmal's budget;
"about" marks our estimates of the others.

Wall clocks are those of the training, without the final evaluation. They are upper bounds, because the machine was
shared with other work.

## Tasks and scripts

Final stochastic returns, each above the paper's.

{overview}

## Statistics

Runs that differ in their seed only are one row.

{statistics}

## Ablations

Effective sample ratio: share of samples that the clipping keeps in the epochs after the first; without clipping, that
it would have kept. Largest ratio: of an epoch, mean over the epochs after the first. With one epoch both are 1. The
table has the extremes over training and seeds.

{ablations}

## Files

Here the deviations are over the 128 evaluation episodes. Length: mean, stochastic / deterministic; the time limit is
1000 steps (hand_reorient: 600, cartpole: 240).

{files}

## Speed of the environments

The environments alone, random actions, environment steps per second; backward is through 32 steps.

{throughput}

## Speed of the training

RPO with its defaults, learning and logging included, and what an iteration spends its time on.

{training}

## Learning curves

Mean over the last 100 episodes to end, no further smoothing; over several seeds their mean, the band is one standard
deviation. The legends have the final stochastic returns.

{figures}
"""


def results_page(results, page):
    """The text of RESULTS.md."""
    runs, ablations, paper = read_all(results), read_ablations(results), read_paper()
    ablation_tasks = tasks_of(ablations) or ["hopper"]
    figures = [
        *tasks_of(run for run in runs if is_standard(run)),
        *(f"ablations_{env_id}" for env_id in tasks_of(ablations)),
    ]
    return RESULTS_PAGE.format(
        overview=overview(runs, paper),
        statistics=statistics(runs, paper),
        ablations="\n\n".join(f"### {env_id}\n\n{ablations_of(env_id, ablations)}" for env_id in ablation_tasks),
        files=files([*runs, *ablations], page),
        throughput=all_files(throughput, results, page),
        training=all_files(training, results, page),
        figures="\n".join("!" + link(results / f"{name}.png", page, name) for name in figures),
    )


def all_files(kind, results, page):
    """throughput() or training() of every file of its kind."""
    paths = sorted(results.glob(f"{kind.__name__}_*.csv"))
    return "\n\n".join(kind(path, page) for path in paths) or "Not run."


def filled_readme(results, page):
    """The text of the README, with the tables between its markers made anew, and the lengths of the scripts."""
    runs, paper = read_all(results), read_paper()
    text = re.sub(r"(\| \[(\w+_continuous\.py)\].* \|) \d+ \|", with_length, page.read_text())
    text = filled(text, "results", overview(runs, paper))
    text = filled(text, "rpo", settings_of("rpo", runs, paper, page))
    return filled(text, "throughput", all_files(throughput, results, page))


def with_length(row):
    return f"{row[1]} {len((ROOT / row[2]).read_text().splitlines())} |"


def critic_steps(path):
    """A row for every variant: milliseconds per step by number of threads, and the first step."""
    with open(path, newline="") as file:
        lines = list(csv.DictReader(file.read().splitlines()[1:]))
    rows = {}
    for line in lines:
        row = rows.setdefault(line["variant"], {"variant": line["variant"]})
        row[f"{line['threads']} thread{'s' if line['threads'] != '1' else ''}"] = f"{line['step_ms']} ms"
        row.setdefault("first step", f"{line['first_s']} s")
    return table(list(rows.values()))


def filled_performance(results, page):
    """The text of docs/performance.md, with the tables between its markers made anew."""
    text = filled(page.read_text(), "training", all_files(training, results, page))
    return filled(text, "critic step", critic_steps(results / "critic_step_cpu.csv"))


def robustness(results):
    """A row for every drill and what was seen, with the scripts that it was seen of."""
    lines = []
    for path in sorted(results.glob("robustness_*.csv")):
        with open(path, newline="") as file:
            lines += csv.DictReader(file.read().splitlines()[1:])
    scripts = defaultdict(list)
    for line in lines:
        scripts[line["drill"], line["seen"]].append(line["script"])
    order = list(dict.fromkeys(line["drill"] for line in lines))
    rows = []
    for drill, seen in sorted(scripts, key=lambda found: order.index(found[0])):
        names = scripts[drill, seen]
        rows.append(
            {"drill": drill, "scripts": "all" if len(names) == len(SCRIPTS) else ", ".join(names), "seen": seen}
        )
    return table(rows) if rows else "Not run."


def memory(results):
    """The resident memory of a whole run, a row for every tenth of it."""
    with open(results / "memory_anymal.csv", newline="") as file:
        lines = list(csv.DictReader(file.read().splitlines()[1:]))
    last = int(lines[-1]["global_step"])
    rows = []
    for tenth in range(1, 11):
        seen = [line for line in lines if int(line["global_step"]) <= last * tenth / 10]
        rows.append({"steps": millions(int(seen[-1]["global_step"])), "resident memory": f"{seen[-1]['rss_mib']} MiB"})
    return table(rows)


def filled_robustness(results, page):
    """The text of docs/robustness.md, with the tables between its markers made anew."""
    text = filled(page.read_text(), "drill", robustness(results))
    return filled(text, "memory", memory(results))


def filled(text, name, block):
    pattern = rf"(<!-- {name}: begin.*? -->\n).*?(<!-- {name}: end -->)"
    if not re.search(pattern, text, re.DOTALL):
        raise ValueError(f"expected the lines <!-- {name}: begin --> and <!-- {name}: end -->, got none")
    return re.sub(pattern, lambda match: f"{match[1]}\n{block}\n\n{match[2]}", text, flags=re.DOTALL)


PAGES = {
    BENCHMARKS / "RESULTS.md": results_page,
    ROOT / "README.md": filled_readme,
    ROOT / "docs" / "performance.md": filled_performance,
    ROOT / "docs" / "robustness.md": filled_robustness,
}


def main():
    for page, text in PAGES.items():
        page.write_text(text(RESULTS, page))
        print(page)


if __name__ == "__main__":
    main()
