"""RESULTS.md, and the tables of the README and of docs/: `python -m benchmarks.tables`.

A number in them comes from a results file or from paper.csv, nowhere else.
"""

import csv
import itertools
import os
import re
from collections import Counter, defaultdict
from statistics import mean, median

from benchmarks.records import (
    ABLATIONS,
    BENCHMARKS,
    ONE_MILLION_TASKS,
    RESULTS,
    ROOT,
    SCRIPTS,
    TASKS,
    final_returns,
    groups_of,
    groups_of_ablation,
    is_standard,
    is_upper_bound,
    lines_of,
    machine_of,
    read,
    read_ablations,
    read_all,
    read_longer,
    read_one_million,
    read_paper,
    timed,
)
from benchmarks.scores import aggregate_iqm, iqm, is_reliable, largest_drop, median_steps_to, spread


def extreme(function, group, column):
    """The lowest or highest value of a logged column over seeds and training, without its first tenth."""
    values = [value for run in group for step, value in run.logged(column).items() if step > run.steps / 10]
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


# tables of Benchmark-1M
def one_million_table(runs, cell):
    """Tasks x scripts; cell(group) makes the text of the runs of one cell."""
    rows = []
    for env_id in ONE_MILLION_TASKS:
        row = {"task": env_id}
        for script, title in SCRIPTS.items():
            found = groups_of(runs, env_id, script)
            if len(found) > 1:
                files = " and ".join(group[0].path.name for group in found)
                raise ValueError(f"results: expected runs of {script} on {env_id} with the same flags, got {files}")
            row[title] = cell(found[0]) if found else "not run"
        rows.append(row)
    return table(rows)


def final_cell(group):
    few = f" ({seeds(group)})" if len(group) < 3 else ""
    return spread(final_returns(group)) + few


def deterministic_cell(group):
    return spread(final_returns(group, "deterministic_"))


def typical_minutes(group):
    return median(run.minutes for run in timed(group))


def minutes_cell(group):
    """^ marks an upper bound."""
    return f"{typical_minutes(group):.1f}" + ("^" if is_upper_bound(timed(group)[0]) else "")


def minutes_by_machine(runs):
    """The minutes of every cell, and marks of the machines that they were measured on, with their meaning."""
    machines = [machine for machine, _ in Counter(map(machine_of, runs)).most_common()]
    marks = {machine: "*" * k for k, machine in enumerate(machines)}

    def cell(group):
        return minutes_cell(group) + marks[machine_of(timed(group)[0])]

    text = one_million_table(runs, cell)
    if len(marks) > 1:
        meanings = ", ".join(f"{mark or 'no mark'}: {machine}" for machine, mark in marks.items())
        text += f"\n\nMachines: {meanings}."
    return text


def half_cell(group):
    """Steps to half of the paper's value, in thousands."""
    steps = median_steps_to(group, paper_value(group[0].env_id) / 2)
    return f"{steps / 1000:.0f}k" if steps else "not reached"


def paper_value(env_id):
    """RPO's stochastic return in its paper, at its full budget: the unit of normalised returns."""
    return float(read_paper()[env_id, "rpo"]["stochastic"])


def scores(runs, env_ids=ONE_MILLION_TASKS):
    """A row for every script that ran all these tasks: aggregate, reliability, largest drop.

    Counted are the seeds that every task has: with more runs of one task than of another, the mean would lean to it.
    """
    rows = []
    for script, title in SCRIPTS.items():
        found = [[run for run in runs if (run.script, run.env_id) == (script, env_id)] for env_id in env_ids]
        counted = set.intersection(*({run.seed for run in group} for group in found))
        if not counted:
            continue
        by_task = [[run for run in group if run.seed in counted] for group in found]
        units = [paper_value(group[0].env_id) for group in by_task]
        center, low, high = aggregate_iqm(
            [[final / unit for final in final_returns(group)] for group, unit in zip(by_task, units)]
        )
        interval = f" [{low:.2f}, {high:.2f}]" if min(map(len, by_task)) >= 3 else ""  # as in iqm()
        all_runs = [(run, unit) for group, unit in zip(by_task, units) for run in group]
        drops = [largest_drop(run) / unit for run, unit in all_runs]
        reliable = [found for run, unit in all_runs if (found := is_reliable(run, unit)) is not None]
        row = {
            "script": title,
            "runs": len(all_runs),
            "IQM of normalised returns [95 %]": f"{center:.2f}{interval}",
            "reliable runs": f"{sum(reliable)} of {len(reliable)}",
            "largest drop, mean over runs": f"{mean(drops):.2f}",
        }
        rows.append(row)
    return table(rows)


def origin(runs):
    """How many runs there are, of which machines, and which scripts are of which commit."""
    if not runs:
        return "Not run."
    scripts = defaultdict(dict)
    for run in runs:
        scripts[run.commit][SCRIPTS[run.script]] = None
    commits = "; ".join(f"{', '.join(titles)} of commit {commit}" for commit, titles in scripts.items())
    dates = " to ".join(dict.fromkeys((min(run.date for run in runs), max(run.date for run in runs))))
    machines = "; ".join(sorted({run.device for run in runs}))
    count = f"{len(runs)} run{'s' if len(runs) > 1 else ''}"
    return f"{count}: {commits}; {dates}, on one core of: {machines}."


# tables of the other runs
def beside_the_paper(runs, paper, page):
    """A row for every task, script and setting of the longer runs, with the paper's returns; also where nothing ran."""
    rows = []
    for env_id, script in itertools.product(TASKS, SCRIPTS):
        reference = paper.get((env_id, script))
        for group in groups_of(runs, env_id, script) or ([[]] if reference else []):
            row = {"task": env_id, "script": SCRIPTS[script]}
            row |= run_at_length(group, page) if group else dict.fromkeys(LENGTH_COLUMNS, "-") | {"seeds": "not run"}
            row["paper, steps"] = reference["steps"] if reference else "-"
            row["paper, stochastic"] = published(reference, "stochastic")
            row["paper, deterministic"] = published(reference, "deterministic")
            rows.append(row | {"commit": ", ".join(dict.fromkeys(run.commit for run in group)) or "-"})
    return table(rows)


LENGTH_COLUMNS = ("seeds", "steps", "flags", "stochastic", "deterministic")


def run_at_length(group, page):
    """The cells of the runs of one setting that differ in their seed only."""
    links = ", ".join(link(run.path, page, run.seed) for run in group)
    flags = group[0].settings.removeprefix(group[0].env_id)
    flags = re.sub(r",? then .*| --total-timesteps \S+", "", flags).strip(" ,;")
    returns = [spread(final_returns(group, kind)) for kind in ("", "deterministic_")]
    return dict(zip(LENGTH_COLUMNS, (links, millions(group[0].steps), code(flags) if flags else "-", *returns)))


def rpo_beside_its_paper(results):
    """A row for every task: RPO after one million steps, in its longest run, and in its paper."""
    million, longer, rows = read_one_million(results), read_longer(results), []
    for env_id in ONE_MILLION_TASKS:
        row, reference = {"task": env_id}, read_paper()[env_id, "rpo"]
        short = groups_of(million, env_id, "rpo")
        row["1M steps, minutes"] = f"{final_cell(short[0])}, {minutes_cell(short[0])}" if short else "not run"
        found = groups_of(longer, env_id, "rpo")
        longest = max(found, key=lambda group: (group[0].steps, group[0].date), default=None)
        row["longest run"] = "not run"
        if longest:
            row["longest run"] = f"{spread(final_returns(longest))}, {seeds(longest)}, {millions(longest[0].steps)}"
        row["paper"] = f"{published(reference, 'stochastic')}, {reference['steps']}"
        rows.append(row)
    return table(rows)


def other_runs(runs, page):
    """A row for every results file of an extra name or flag: quick starts, trials of settings."""
    rows = []
    for run in runs:
        row = {
            "file": link(run.path, page, f"`{run.path.name}`"),
            "command": code(run.command),
            "commit": run.commit,
            "steps": millions(run.steps),
            "stochastic": evaluated(run, ""),
            "deterministic": evaluated(run, "deterministic_"),
            "wall clock": f"{run.minutes:.0f} min",
        }
        rows.append(row)
    return table(rows)


def core_hours(runs, paper):
    """What 12 seeds of the paper's table 1 cost on one core, from the wall clocks of the one-million-step runs."""
    rows, total = [], 0.0
    for env_id in ONE_MILLION_TASKS:
        row = {"task": env_id}
        for script, title in SCRIPTS.items():
            found, reference = groups_of(runs, env_id, script), paper.get((env_id, script))
            if found and reference:
                steps = 1e6 * float(reference["steps"].removeprefix("about ").removesuffix("M"))
                hours = 12 * steps / found[0][0].steps * typical_minutes(found[0]) / 60
                total += hours
                row[title] = f"{hours:.0f}"
            else:
                row[title] = "-"
        rows.append(row)
    missing = sum(
        (env_id, script) in paper and not groups_of(runs, env_id, script)
        for env_id in ONE_MILLION_TASKS
        for script in SCRIPTS
    )
    without = f", without the {missing} cells of the paper that Benchmark-1M lacks" if missing else ""
    return table(rows) + f"\n\nTogether {total:,.0f} core-hours{without}."


def ablations_of(env_id, runs):
    """A row for every ablation of a task, with what became of the ratio."""
    columns = ("variant", "flags", "seeds", "steps", "stochastic", "IQM [95 %]", "deterministic")
    columns += ("lowest effective sample ratio", "largest ratio")
    rows = []
    for name, title in ABLATIONS.items():
        for group in groups_of_ablation(runs, env_id, name):
            row = [title, code(group[0].settings), len(group), millions(group[0].steps), spread(final_returns(group))]
            row += [iqm(final_returns(group)), spread(final_returns(group, "deterministic_"))]
            rows.append([*row, extreme(min, group, "effective_sample_ratio"), extreme(max, group, "ratio_max")])
    return table([dict(zip(columns, row)) for row in rows])


def speeds(path, page):
    """What made a file of throughput.py, and its lines."""
    with open(path, newline="") as file:
        header, *lines = file.read().splitlines()
    commit, machine, date = re.search(r"commit: (.*), device: (.*), torch: .*, date: (.*)", header).groups()
    return f"{machine}, commit {commit}, {date}, {link(path, page, path.name)}:\n\n", list(csv.DictReader(lines))


def throughput(path, page):
    """Environment steps per second of the environments alone: a row for every task, with the most threads."""
    origin, lines = speeds(path, page)
    rows = {}
    for line in lines:  # the last line of a task has the most threads
        row = {"task": line["env_id"], "environments": line["num_envs"], "forward": f"{int(line['forward']):,}"}
        row["forward and backward"] = f"{int(line['forward_backward']):,}"
        rows[line["env_id"], line["num_envs"]] = row
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


def arms(results, columns, env_ids=ONE_MILLION_TASKS):
    """A row for every task; columns: names of runs of Benchmark-1M or of its arms, by their titles."""
    runs, rows = [*read_one_million(results), *read_all(results / "arms")], []
    for env_id in env_ids:
        row = {"task": env_id}
        for title, name in columns.items():
            found = [run for run in runs if (run.env_id, run.name) == (env_id, name)]
            row[title] = arm_cell(found) if found else "not run"
        rows.append(row)
    return table(rows)


def arm_cell(group):
    """Beside runs of other seeds it matters which they are."""
    numbers = sorted(run.seed for run in group)
    which = f"seed{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
    return f"{spread(final_returns(group))} ({which})"


def trials(results, page, titles):
    """A row for every trial of a setting in results/arms; titles by the names of the files."""
    rows = []
    for stem, title in titles.items():
        run = read(results / "arms" / f"{stem}.csv")
        row = {"trial": link(run.path, page, title), "steps": millions(run.steps)}
        row |= {"return": f"{run.evaluation('episodic_return'):,.0f}"}
        row |= {"without noise": f"{run.evaluation('deterministic_episodic_return'):,.0f}"}
        rows.append(row | {"minutes": f"{run.minutes:.1f}", "machine": machine_of(run)})
    return table(rows)


# pages
RESULTS_PAGE = """# Results

Written by `python -m benchmarks.tables`, the figures by `python -m benchmarks.plot`, from the files in
[results](results) and from [paper.csv](paper.csv): do not edit. [docs/results.md](../docs/results.md) says how to run
them, on one machine or many, and lists older runs. Every file names its command, commit, hardware and date.

A return is the undiscounted mean of 128 evaluation episodes of the final policy with its noise. Over several seeds:
mean +- standard deviation (n - 1). The paper is RPO's (arXiv 2508.06214v3), tables 1 and 6: 12 seeds, full budget. It
states only ANYmal's budget; "about" marks our estimates of the others.

## One million steps

Every script for 1,000,000 steps, rounded down to whole rollouts, on one core with one thread
([one_million.sh](one_million.sh)). Settings are each script's own for the task, and learning rate schedules end with
the budget. On hopper all use 128 environments: the default of most, 1,024, suits 20M steps and would give only 30
rollouts (REPPO's is 256, SAC's 64, FastTD3's 128). With 128 the critics' minibatches of RPO, SHAC, SAPO, AHAC and
GI-PPO have 1,024 steps instead of 8,192, PPO's 256 instead of 2,048 and REPPO's 512 instead of 1,024, and SAC makes
half as many updates per step as with its own 64. AHAC is our reading of its paper, not the released code
([ahac.md](../docs/ahac.md)). {origin}

![Returns against steps](results/1m.png)

Lines are means over seeds, bands their 95 % bootstrap interval, which for two or three seeds is their range. Curves are
means over the last 100 finished episodes, averaged in 50 bins of equal width, and lag behind the policy. Environments
start together, so many episodes end together, and a curve rises in steps: on tasks of 1,000 steps every 64,000 to
128,000.

Where no number of seeds is given, there are three:

{final}

Without noise, by each policy's mean action (FastTD3's noise is that of its exploration, 0.1 to 0.4); seeds as above:

{deterministic}

![Returns against minutes on one core](results/1m_minutes.png)

Minutes of training on one core, without start-up and final evaluation. A cell counts the runs that had a core of
their own, on the machine that most of them used; in a tie, on that of the first seed. The figure shows their mean,
the table their median; in both, machines differ between cells. ^: no run had; it is the fastest, and an upper bound.
AHAC and FastTD3 ran at a later commit, with a faster simulator
([two commits in turn](../docs/performance.md#two-commits-in-turn)).

{minutes}

Steps until the curve reaches half of the paper's return of RPO; median over seeds, where one that never gets there
counts as later than all others:

{half}

Normalised returns are divided by the paper's return of RPO at its full budget. IQM: interquartile mean over tasks and
the seeds that have run on every one of them, with three or more seeds also its interval, from a bootstrap that
resamples seeds within tasks. Reliable: of the runs whose curve reaches a tenth of the paper's return, those that from
there on never fall below 0.9 of their highest value so far. (REPPO's paper counts runs that never fall below 0.9 of a
known best return once they have reached it; few do so in a million steps.) Largest drop: of the curve below its highest
value so far, in units of the paper's return. All five tasks:

{scores}

On the hand a mean of 100 returns has a standard error of mostly 10 to 20, so noise alone can cause such a fall. The
four walking tasks, without the hand:

{walking}

What these tables show and what they do not: [results.md](../docs/results.md#what-one-million-steps-show).

### How far the policy moves

![Return and KL per iteration on humanoid](results/1m_kl.png)

KL(old policy || new policy) per iteration beside the return, as in figure 1 of the RPO paper: one line per seed.

## Longer runs beside the paper

Runs of several commits; each file names its own. Flags: those given beside the task's defaults, `--seed` and
`--total-timesteps`.

{beside}

![Returns of the longer runs against steps](results/longer.png)

Dashed: a second setting of the same script.

## Ablations of RPO

One million steps of ant ([ablations.sh](ablations.sh)). Effective sample ratio: share of samples that clipping keeps in
the epochs after the first; 1 where it is off. Largest ratio: the maximum of an epoch, averaged over the epochs after
the first. With one epoch both are 1. The table has the extremes over seeds and over training after its first tenth,
in which the policy moves most; the IQM of three seeds is their mean.

{ablations}
"""


def results_page(results, page):
    """The text of RESULTS.md."""
    million, paper = read_one_million(results), read_paper()
    rpo = [run for run in [*read_ablations(results), *million] if run.script == "rpo"]
    return RESULTS_PAGE.format(
        origin=origin(million),
        final=one_million_table(million, final_cell),
        deterministic=one_million_table(million, deterministic_cell),
        minutes=minutes_by_machine(million),
        half=one_million_table(million, half_cell),
        scores=scores(million),
        walking=scores(million, [env_id for env_id in ONE_MILLION_TASKS if env_id != "hand_reorient"]),
        beside=beside_the_paper(read_longer(results), paper, page),
        ablations=with_figure(ablations_of("ant", rpo), results / "ablations_ant.png", page),
    )


def with_figure(text, path, page):
    return f"{text}\n\n!{link(path, page, 'Returns and ratios of the variants')}" if path.exists() else text


def filled_results(results, page):
    """The text of docs/results.md, with the tables between its markers made anew."""
    runs = [run for run in read_all(results) if not is_standard(run)] + read_all(results / "arms")
    text = filled(page.read_text(), "core hours", core_hours(read_one_million(results), read_paper()))
    text = filled(text, "older ablations", ablations_of("hopper", read_ablations(results)))
    return filled(text, "other runs", other_runs(runs, page))


def all_files(kind, results, page):
    """throughput() or training() of every file of its kind."""
    paths = sorted(results.glob(f"{kind.__name__}_*.csv"))
    return "\n\n".join(kind(path, page) for path in paths) or "Not run."


def filled_readme(results, page):
    """The text of the README, with the tables between its markers made anew, and the lengths of the scripts."""
    text = re.sub(r"(\| \[(\w+_continuous\.py)\].* \|) \d+ \|", with_length, page.read_text())
    text = filled(text, "paper", rpo_beside_its_paper(results))
    text = filled(text, "transfer", transfers_in_short(results, page))
    return filled(text, "throughput", all_files(throughput, results, page))


def commits(path, page):
    """A row for every task: environment steps per second of every commit, and how often those of the first."""
    origin, lines = speeds(path, page)
    rows = {}
    for line in lines:
        row, first = rows.setdefault(line["env_id"], ({"task": line["env_id"]}, line))
        for column, title in (("training", "RPO"), ("forward_backward", "forward and backward")):
            ratio = f" ({int(line[column]) / int(first[column]):.2f} x)" if line is not first else ""
            row[f"{title}, {line['commit']}"] = f"{int(line[column]):,}{ratio}"
    return origin + table([row for row, _ in rows.values()])


def with_length(row):
    return f"{row[1]} {len((ROOT / row[2]).read_text().splitlines())} |"


def critic_steps(path, page):
    """A row for every variant: milliseconds per step by number of threads, and the seconds of the first step."""
    origin, lines = speeds(path, page)
    rows = {}
    for line in lines:
        row = rows.setdefault(line["variant"], {"variant": line["variant"]})
        row[f"{line['threads']} thread{'s' if line['threads'] != '1' else ''}"] = f"{line['step_ms']} ms"
        row.setdefault("first step", f"{line['first_s']} s")
    return origin + table(list(rows.values()))


def filled_performance(results, page):
    """The text of docs/performance.md, with the tables between its markers made anew."""
    text = filled(page.read_text(), "training", all_files(training, results, page))
    text = filled(text, "commits", all_files(commits, results, page))
    path = results / "critic_step_cpu.csv"
    return filled(text, "critic step", critic_steps(path, page) if path.exists() else "Not run.")


def by_simulator(path):
    """The lines of a file of transfer.py, one per episode, by the simulator that they are of."""
    found = defaultdict(list)
    for line in lines_of(path):
        found[line["simulator"]].append(line)
    return found


def transfers(results):
    """A row for every simulator of every file of transfer.py: means over episodes."""
    rows = []
    for path in sorted(results.glob("transfer_*.csv")):
        for simulator, among in by_simulator(path).items():
            means = {name: mean(float(line[name]) for line in among) for name in ("return", "length", "distance")}
            row = {"file": f"[{path.stem}](../benchmarks/results/{path.name})", "simulator": simulator}
            row |= {"return": f"{means['return']:.0f}", "steps": f"{means['length']:.0f}"}
            fell = sum(line["fell"] == "1" for line in among)
            rows.append(row | {"distance": f"{means['distance']:.1f} m", "fell": f"{fell} of {len(among)}"})
    return table(rows)


def transfers_in_short(results, page):
    """Of every robot in files of transfer.py the returns of its policies here and in MuJoCo, in a sentence."""
    robots = defaultdict(list)
    for path in sorted(set(results.glob("transfer_*.csv")) - set(results.glob("*_elliptic.csv"))):
        among = by_simulator(path)
        here, there = (mean(float(line["return"]) for line in among[name]) for name in ("ours", "MuJoCo"))
        robot = re.sub(r"_\d+$", "", path.stem.removeprefix("transfer_"))
        robots[robot].append(link(path, page, f"{here:.0f}, {there:.0f}"))
    return "; ".join(f"{robot} {', '.join(policies)}" for robot, policies in robots.items()) + "."


def filled_robots(results, page):
    """The text of docs/robots.md, with the table between its markers made anew."""
    return filled(page.read_text(), "transfer", transfers(results))


def robustness(results):
    """A row for every drill and what was seen, with the scripts that it was seen of."""
    lines = []
    for path in sorted(results.glob("robustness_*.csv")):
        lines += [line for line in lines_of(path) if "drill" in line]
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


def fuzz(results):
    """How the cases of fuzz.py have ended, a row for each kind of input, over all scripts."""
    path = results / "robustness_fuzz.csv"
    if not path.exists():
        return "Not run."
    with open(path, newline="") as file:
        lines = list(csv.DictReader(file.read().splitlines()[1:]))
    return table(list(totals(lines, "input", "scripts", ("refused", "accepted", "stopped", "failed"))))


def fuzz_env(results):
    """How the calls of fuzz_env.py have ended, a row for each method, over all tasks."""
    lines = lines_of(results / "robustness_env.csv")
    return table(list(totals(lines, "method", "tasks", ("refused", "accepted", "failed"))))


def totals(lines, kind, among, ends):
    """A row for each value of a column, with the number of lines that have it and the sums of their ends."""
    for value in dict.fromkeys(line[kind] for line in lines):
        ours = [line for line in lines if line[kind] == value]
        counts = {end: sum(int(line[end]) for line in ours) for end in ends}
        yield {kind: value, among: len(ours), "cases": sum(counts.values())} | counts


def memory(results):
    """The resident memory of a whole run, a row for every tenth of it."""
    lines = lines_of(results / "memory_anymal.csv")
    last = int(lines[-1]["global_step"]) if lines else 0
    rows = []
    for tenth in range(1, 11) if lines else ():
        seen = [line for line in lines if int(line["global_step"]) <= last * tenth / 10]
        rows.append({"steps": millions(int(seen[-1]["global_step"])), "resident memory": f"{seen[-1]['rss_mib']} MiB"})
    return table(rows)


def filled_robustness(results, page):
    """The text of docs/robustness.md, with the tables between its markers made anew."""
    tables = {"drill": robustness, "fuzz": fuzz, "fuzz env": fuzz_env, "memory": memory}
    text = page.read_text()
    for name, block in tables.items():
        text = filled(text, name, block(results))
    return text


def filled_rpo(results, page):
    """The text of docs/rpo.md, with the table between its markers made anew."""
    columns = {"RPO": "rpo_continuous", "faster critics": "rpo_critic_lr", "constant rates": "rpo_constant_lr"}
    return filled(page.read_text(), "learning rates", arms(results, columns, ("ant", "anymal")))


def filled_ahac(results, page):
    """The text of docs/ahac.md, with the table between its markers made anew."""
    columns = {"SHAC": "shac_continuous", "AHAC, horizon fixed": "ahac_fixed_horizon", "AHAC": "ahac_continuous"}
    return filled(page.read_text(), "fixed horizon", arms(results, columns))


FASTTD3_TRIALS = {
    "fasttd3_200k__hopper__1": "as it comes: 128 environments, an update per 16 steps, batch 256, K = 101",
    "fasttd3_updates_2__hopper__1": "an update per 64 steps",
    "fasttd3_updates_16__hopper__1": "an update per 8 steps",
    "fasttd3_batch_1024__hopper__1": "batch 1,024",
    "fasttd3_atoms_251__hopper__1": "K = 251",
    "fasttd3_envs_64__hopper__1": "64 environments",
    "fasttd3_envs_1024__hopper__1": "1,024 environments",
    "fasttd3_envs_1024_long__hopper__1": "1,024 environments, a million steps",
}


def filled_fasttd3(results, page):
    """The text of docs/fasttd3.md, with the tables between its markers made anew."""
    text = filled(page.read_text(), "trials", trials(results, page, FASTTD3_TRIALS))
    columns = {"SAC": "sac_continuous", "SAC, FastTD3's samples": "sac_many_updates", "FastTD3": "fasttd3_continuous"}
    return filled(text, "samples", arms(results, columns, ("hopper", "ant")))


def filled(text, name, block):
    pattern = rf"(<!-- {name}: begin.*? -->\n).*?(<!-- {name}: end -->)"
    if not re.search(pattern, text, re.DOTALL):
        raise ValueError(f"expected the lines <!-- {name}: begin --> and <!-- {name}: end -->, got none")
    return re.sub(pattern, lambda match: f"{match[1]}\n{block}\n\n{match[2]}", text, flags=re.DOTALL)


PAGES = {
    BENCHMARKS / "RESULTS.md": results_page,
    ROOT / "README.md": filled_readme,
    ROOT / "docs" / "results.md": filled_results,
    ROOT / "docs" / "performance.md": filled_performance,
    ROOT / "docs" / "robustness.md": filled_robustness,
    ROOT / "docs" / "robots.md": filled_robots,
    ROOT / "docs" / "rpo.md": filled_rpo,
    ROOT / "docs" / "ahac.md": filled_ahac,
    ROOT / "docs" / "fasttd3.md": filled_fasttd3,
}


def main():
    for page, text in PAGES.items():
        page.write_text(text(RESULTS, page))
        print(page)


if __name__ == "__main__":
    main()
