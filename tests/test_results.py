"""Tables and figures are those of the results files; the commands for the paper's tables have flags that exist."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tyro

from benchmarks import plot, records, run, scores, tables
from benchmarks.records import (
    ABLATIONS,
    BENCHMARKS,
    ONE_MILLION_TASKS,
    RESULTS,
    ROOT,
    SCRIPTS,
    read,
    read_ablations,
    read_all,
    read_longer,
    read_one_million,
    read_paper,
)

COLUMNS = (
    "global_step wall_s episodic_return SPS effective_sample_ratio ratio_max "
    "eval_episodic_return eval_return_std eval_episodic_length "
    "eval_deterministic_episodic_return eval_deterministic_return_std eval_deterministic_episodic_length"
).split()


def write(path, command, final, last_step=2_000_000):
    """A results file of two iterations and a final evaluation."""
    lines = [f"# command: {command}, commit: abc1234, device: toaster, cores: 2, torch: 2, warp: 1, date: 2026-11-21"]
    lines += [",".join(COLUMNS), "1000000,60,nan,9000,0.7,12.5,,,,,,", f"{last_step},120,{final},9000,0.9,3.5,,,,,,"]
    lines += [f"{last_step},130,,,,,{final},5,1000,{final + 100},5,1000"]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def row(text, title):
    """The cells of the row of a Markdown table that begins with a title."""
    (line,) = re.findall(rf"^\| {re.escape(title)} \|(.*) \|$", text, re.MULTILINE)
    return [cell.strip() for cell in line.split(" | ")]


@pytest.fixture
def results(tmp_path, monkeypatch):
    """RPO on the hopper with two seeds and other flags, a quick start, SAPO, two ablations, Benchmark-1M of RPO."""
    bounds = {"rpo_continuous__ant__3"} | {f"rpo_continuous__hand_reorient__{seed}" for seed in (1, 2, 3)}
    monkeypatch.setattr(records, "UPPER_BOUNDS", bounds)
    command = "python rpo_continuous.py --env-id hopper"
    write(tmp_path / "rpo_continuous__hopper__1.csv", command, 5000)
    write(tmp_path / "rpo_continuous__hopper__2.csv", f"{command} --seed 2", 5200)
    write(tmp_path / "rpo_continuous__hopper__3.csv", f"{command} --seed 3 --gamma 0.9", 100)
    write(tmp_path / "quickstart_1.csv", f"{command} --total-timesteps 7", 42)
    write(tmp_path / "sapo_continuous__hopper__1.csv", "python sapo_continuous.py --env-id hopper", 4000)
    for name, flag, final in (("rpo", "", 5000), ("rpo_no_kl", " --kl-coef 0", 3000)):
        write(tmp_path / "ablations" / f"{name}__hopper__1.csv", f"{command} --exp-name {name}{flag}", final)
    for env_id in ONE_MILLION_TASKS:
        for seed in (1, 2, 3):
            command = f"python rpo_continuous.py --env-id {env_id} --seed {seed} --total-timesteps 1000000"
            write(tmp_path / "1m" / f"rpo_continuous__{env_id}__{seed}.csv", command, 1000 * seed)
    return tmp_path


def with_curve(path, curve):
    """A run whose logged returns are those given, at steps 1000, 2000, ..."""
    lines = ["# command: python rpo_continuous.py --env-id hopper, commit: abc1234, device: toaster, cores: 2, "]
    lines[0] += "torch: 2, warp: 1, date: 2026-11-21"
    lines += [",".join(COLUMNS), *(f"{1000 * (i + 1)},60,{x},9000,1,1,,,,,," for i, x in enumerate(curve))]
    path.write_text("\n".join([*lines, f"{1000 * len(curve)},130,,,,,7,5,1000,7,5,1000"]) + "\n")
    return read(path)


def test_the_pages_are_those_of_the_files_and_scripts():
    advice = "not up to date: python -m benchmarks.tables"
    for page, text in tables.PAGES.items():
        assert text(RESULTS, page) == page.read_text(), advice


def test_statistics_need_seeds():
    assert scores.spread([10.0]) == "10" and scores.spread([10.0, 14.0]) == "12 +- 3"
    assert scores.iqm([1.0, 2.0]) == "-"
    found = re.fullmatch(r"(\d+) \[(\d+), (\d+)\]", scores.iqm([0.0, 10.0, 20.0, 1000.0]))
    center, low, high = map(int, found.groups())
    assert center == 15  # without the lowest and the highest
    assert 0 <= low < center < high <= 1000


def test_the_band_is_the_bootstrap_of_the_mean():
    values = np.array([[0.0], [0.0], [3.0]])
    # of the 27 resamples 8 have mean 0 and 1 has mean 3, more than 2.5 % of all
    assert [float(end[0]) for end in scores.mean_interval(values)] == [0.0, 3.0]
    low, high = scores.mean_interval(np.array([[0.0], [0.0], [0.0], [0.0], [1.0]]))  # mean 0: 33 %, mean 1: 0.03 %
    assert low[0] == 0.0 and high[0] < 1.0
    low, high = scores.mean_interval(np.arange(12.0)[:, None])  # the paper's seeds: mean 5.5, standard error 1.0
    assert [float(low[0]), float(high[0])] == pytest.approx([3.6, 7.4], abs=0.2)


def test_the_aggregate_draws_seeds_within_tasks():
    center, low, high = scores.aggregate_iqm([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [30.0, 30.0]])
    assert center == low == high == 1.5  # equal seeds leave nothing to chance: a drawn task would
    center, low, high = scores.aggregate_iqm([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]])
    assert low < center < high


def test_sample_efficiency_and_reliability_are_those_of_the_curve(tmp_path):
    run_ = with_curve(tmp_path / "a.csv", [1, 0, 50, 46, 100, "nan", 90])
    assert scores.steps_to(run_, 50) == 3000 and scores.steps_to(run_, 101) is None
    assert scores.is_reliable(run_, 100)  # 0 after 1 is below a tenth of the scale, 90 is just not below 0.9 x 100
    assert scores.largest_drop(run_) == 10.0
    other = with_curve(tmp_path / "b.csv", [20, 17, 100])
    assert scores.is_reliable(other, 100) is False and scores.is_reliable(other, 1000)
    assert scores.is_reliable(other, 1001) is None  # it never gets to a tenth
    assert scores.median_steps_to([run_, other, other], 60) == 3000
    assert scores.median_steps_to([run_, other], 101) is None


def test_the_tables_of_benchmark_1m(results):
    runs = read_one_million(results)
    text = tables.one_million_table(runs, tables.final_cell)
    assert row(text, "hopper")[:2] == ["2000 +- 1000", "not run"]
    assert row(tables.one_million_table(runs, tables.minutes_cell), "ant")[0] == "2.0"
    assert row(tables.minutes_by_machine(runs), "ant")[0] == "2.0"
    other = [replace(run_, device="toaster (family 6 model 1)") if run_.env_id == "ant" else run_ for run_ in runs]
    text = tables.minutes_by_machine(other)
    assert (row(text, "ant")[0], row(text, "anymal")[0]) == ("2.0*", "2.0")
    assert text.endswith("\n\nMachines: no mark: toaster, *: toaster (family 6 model 1).")
    # a cell counts the runs of the machine that most of them were on, without those whose wall clock is an upper bound
    minutes = {1: 100, 2: 4, 3: 2}
    mixed = [
        replace(
            run_,
            device="kettle" if run_.seed == 1 else run_.device,
            rows=tuple(line | {"wall_s": str(60 * minutes[run_.seed])} for line in run_.rows),
        )
        for run_ in runs
    ]
    text = tables.minutes_by_machine(mixed)
    assert row(text, "hopper")[0] == "3.0" and row(text, "hand_reorient")[0] == "2.0^"
    assert row(text, "ant")[0] == "100.0*"
    two = [run_ for run_ in mixed if run_.seed < 3]
    assert row(tables.minutes_by_machine(two), "hopper")[0] == "100.0"  # of equally many the first seed's
    # half of the paper's 5,526 is reached by one seed of three; half of the hand's 238 by all, in the second line
    half = tables.one_million_table(runs, tables.half_cell)
    assert row(half, "hopper")[0] == "not reached" and row(half, "hand_reorient")[0] == "2000k"
    lines = tables.scores(runs).splitlines()
    assert len(lines) == 3 and lines[2].startswith("| RPO | 15 | ")  # SHAC and the others have not run everything
    assert tables.origin(runs) == "15 runs: RPO of commit abc1234; 2026-11-21, on one core of: toaster."
    newer = [replace(run_, script="shac", commit="def5678") if run_.seed == 3 else run_ for run_ in runs]
    assert tables.origin(newer).startswith("15 runs: RPO of commit abc1234; SHAC of commit def5678; 2026-11-21, on")
    # a wall clock that is an upper bound has a mark
    assert row(tables.minutes_by_machine(runs), "hand_reorient")[0] == "2.0^"
    few = [run_ for run_ in runs if run_.seed < 3]
    assert row(tables.one_million_table(few, tables.final_cell), "hopper")[0] == "1500 +- 707 (2 seeds)"
    with_interval, without = (row(tables.scores(found), "RPO")[1] for found in (runs, few))
    assert re.fullmatch(r"[\d.]+ \[[\d.]+, [\d.]+\]", with_interval) and re.fullmatch(r"[\d.]+", without)
    # a seed that not every task has would give the others more weight
    uneven = [run_ for run_ in runs if run_.seed < 3 or run_.env_id == "hopper"]
    assert tables.scores(uneven) == tables.scores(few)
    without_ant = [run_ for run_ in runs if run_.env_id != "ant"]
    assert tables.scores(without_ant) == "Not run."
    others = [env_id for env_id in ONE_MILLION_TASKS if env_id != "ant"]
    assert row(tables.scores(without_ant, others), "RPO")[0] == "12"


def test_a_cell_of_benchmark_1m_has_one_setting(results):
    command = "python rpo_continuous.py --env-id ant --seed 4 --total-timesteps 1000000 --gamma 0.9"
    write(results / "1m" / "rpo_continuous__ant__4.csv", command, 7)
    with pytest.raises(ValueError, match="runs of rpo on ant with the same flags, got .*__1.csv and .*__4.csv"):
        tables.one_million_table(read_one_million(results), tables.final_cell)


def test_arms_stand_beside_benchmark_1m(results):
    write(results / "arms" / "rpo_odd__ant__1.csv", "python rpo_continuous.py --env-id ant --exp-name rpo_odd", 700)
    text = tables.arms(results, {"RPO": "rpo_continuous", "odd": "rpo_odd", "other": "rpo_other"}, ("hopper", "ant"))
    assert row(text, "ant") == ["2000 +- 1000 (seeds 1, 2, 3)", "700 (seed 1)", "not run"]
    assert row(text, "hopper") == ["2000 +- 1000 (seeds 1, 2, 3)", "not run", "not run"]


def test_trials_of_settings_have_a_row_each(results):
    write(results / "arms" / "rpo_odd__ant__1.csv", "python rpo_continuous.py --env-id ant --exp-name rpo_odd", 1700)
    text = tables.trials(results, results / "page.md", {"rpo_odd__ant__1": "an odd one"})
    assert row(text, "[an odd one](arms/rpo_odd__ant__1.csv)") == ["2.00M", "1,700", "1,800", "2.0", "toaster"]


def test_a_curve_is_condensed_to_means(results):
    group, ax = read_one_million(results)[:3], plot.plt.figure().gca()
    plot.draw(ax, group, "ratio_max", "", "C0", "-", bins=1)
    (line,) = ax.lines
    assert line.get_xydata().tolist() == [[1.5, 8.0]]  # of 12.5 after 1M steps and 3.5 after 2M
    plot.draw(ax, group, "ratio_max", "", "C0", "-", bins=50)
    assert ax.lines[1].get_ydata().tolist() == [12.5, 3.5]  # no more bins than values
    x, values = plot.condensed(np.array([1.0, 2.0, 3.0, 100.0]), np.array([[1.0, 2.0, 6.0, 5.0]]), bins=2)
    assert x.tolist() == [2.0, 100.0] and values.tolist() == [[3.0, 5.0]]  # equally wide, whatever is in them
    plot.plt.close()


def test_core_hours_are_those_of_twelve_seeds_at_the_papers_length(results):
    text = tables.core_hours(read_one_million(results), read_paper())
    assert row(text, "anymal")[:2] == ["2", "-"]  # 12 seeds x 5 times the two minutes of two million steps
    missing = sum(env_id in ONE_MILLION_TASKS and script != "rpo" for env_id, script in read_paper())
    assert f"Together 11 core-hours, without the {missing} cells" in text and missing > 10  # 4 + 2 + 2 + 2 + 0.8


def test_longer_runs_stand_beside_the_paper(results):
    write(results / "full" / "shac_continuous__ant__1.csv", "python shac_continuous.py --env-id ant", 8000)
    text = tables.beside_the_paper(read_longer(results), read_paper(), results / "RESULTS.md")
    assert "| ant | SHAC | [1](full/shac_continuous__ant__1.csv) | 2.00M | - | 8000 | 8100 |" in text
    assert "| hopper | RPO | [1](rpo_continuous__hopper__1.csv), [2](rpo_continuous__hopper__2.csv) | 2.00M |" in text
    assert "| - | 5100 +- 141 | 5200 +- 141 | about 20M | 5526 +- 3 | 5585 +- 6 | abc1234 |" in text
    assert "| 2.00M | `--gamma 0.9` | 100 | 200 |" in text
    assert "| hopper | GI-PPO | not run | - | - | - | - | about 20M | 5512 +- 286 | 5514 +- 286 | - |" in text
    assert "quickstart" not in text
    assert "`quickstart_1.csv`" in tables.other_runs([read(results / "quickstart_1.csv")], results / "RESULTS.md")


def test_a_run_that_repeats_an_older_one_replaces_it(results):
    write(results / "full" / "rpo_continuous__hopper__1.csv", "python rpo_continuous.py --env-id hopper", 5400)
    text = tables.beside_the_paper(read_longer(results), read_paper(), results / "RESULTS.md")
    assert "| [1](full/rpo_continuous__hopper__1.csv), [2](rpo_continuous__hopper__2.csv) | 2.00M |" in text
    assert "| 5300 +- 141 |" in text


def test_ablations_have_a_table_and_no_unknown_names(results):
    text = tables.ablations_of("hopper", read_ablations(results))
    found = row(text, "RPO without the KL term")
    assert found == ["`hopper --kl-coef 0`", "1", "2.00M", "3000", "-", "3100", "0.70", "12.50"]
    assert "one epoch" not in text
    plain = tables.ablations_of("ant", read_one_million(results))
    assert row(plain, "RPO")[1:4] == ["3", "2.00M", "2000 +- 1000"]  # the unchanged algorithm is Benchmark-1M's
    (results / "ablations" / "rpo__hopper__1.csv").rename(results / "ablations" / "rpo_odd__hopper__1.csv")
    with pytest.raises(ValueError, match="expected the name of an ablation.*got rpo_odd"):
        read_ablations(results)


def page(path, *names):
    """A page with empty tables."""
    path.write_text("".join(f"<!-- {name}: begin -->\n<!-- {name}: end -->\n" for name in names))
    return path


def test_the_tables_of_a_page_are_filled_and_the_rest_of_it_stays(results):
    readme = page(results / "README.md", "paper", "transfer", "throughput")
    readme.write_text(readme.read_text() + "| [rpo_continuous.py](x) | RPO | 7 |\nthe rest | 7 |")
    lines = ["# x", "simulator,return,length,distance,fell", "ours,150,9,1,0", "ours,250,9,1,0"]
    lines += ["MuJoCo,80,9,1,0", "MuJoCo,120,9,1,1", "Gymnasium Ant-v5,7,9,1,0"]
    (results / "transfer_ant.csv").write_text("\n".join(lines))
    (results / "transfer_ant_elliptic.csv").write_text("\n".join(lines))
    (results / "transfer_ant_2.csv").write_text("\n".join(lines).replace("120", "20"))
    header = "# command: x, commit: new, device: y, cores: 2, torch: 2, warp: 1, date: 2026-11-26"
    lines = [header, "env_id,num_envs,device,threads,forward,forward_backward", "ant,128,cpu,1,40,20"]
    lines += ["ant,128,cpu,2,70,30", "cartpole,128,cpu,1,90,50"]
    (results / "throughput_cpu.csv").write_text("\n".join(lines))
    length = len((ROOT / "rpo_continuous.py").read_text().splitlines())
    text = tables.filled_readme(results, readme)
    assert "| hopper | 2000 +- 1000, 2.0 | 5100 +- 141, 2 seeds, 2.00M | 5526 +- 3, about 20M |" in text
    assert "\nant [200, 100](transfer_ant.csv), [200, 50](transfer_ant_2.csv).\n" in text
    assert "| ant | 128 | 70 | 30 |" in text and "| cartpole | 128 | 90 | 50 |" in text
    assert text.endswith(f"| [rpo_continuous.py](x) | RPO | {length} |\nthe rest | 7 |")
    (results / "critic_step_cpu.csv").write_text(f"{header}\nvariant,threads,step_ms,first_s\nplain,1,20.00,0.10\n")
    lines = [header, "env_id,commit,training,forward_backward", "ant,old,2000,10000", "ant,new,3000,12500"]
    (results / "commits_cpu.csv").write_text("\n".join(lines))
    text = tables.filled_performance(results, page(results / "performance.md", "training", "commits", "critic step"))
    assert "| plain | 20.00 ms | 0.10 s |" in text
    assert "| ant | 2,000 | 10,000 | 3,000 (1.50 x) | 12,500 (1.25 x) |" in text
    lines = ["# x", "script,drill,seen", "a,kill,fine", "b,kill,fine", "a,starve,x", "b,starve,y"]
    (results / "robustness_1.csv").write_text("\n".join(lines))
    (results / "memory_anymal.csv").write_text("# x\nglobal_step,rss_mib\n1000000,900\n10000000,905\n")
    lines = ["# x", "script,input,refused,accepted,stopped,failed", "a,flags,5,3,0,1", "b,flags,2,1,1,0"]
    (results / "robustness_fuzz.csv").write_text("\n".join(lines))
    lines = ["# x", "env_id,method,refused,accepted,failed", "ant,step,8,2,0", "hopper,step,7,3,1", "ant,reset,1,1,0"]
    (results / "robustness_env.csv").write_text("\n".join(lines))
    text = tables.filled_robustness(results, page(results / "robustness.md", "drill", "memory", "fuzz", "fuzz env"))
    assert "| step | 2 | 21 | 15 | 5 | 1 |" in text and "| reset | 1 | 2 | 1 | 1 | 0 |" in text
    assert "| flags | 2 | 13 | 7 | 4 | 1 | 1 |" in text
    assert "| kill | a, b | fine |" in text and "| starve | a | x |" in text and "| starve | b | y |" in text
    assert "| 10.00M | 905 MiB |" in text
    text = tables.filled_results(results, page(results / "results.md", "core hours", "older ablations", "other runs"))
    assert "core-hours" in text and "RPO without the KL term" in text and "quickstart_1.csv" in text
    with pytest.raises(ValueError, match="expected the lines <!-- throughput: begin -->"):
        tables.filled_readme(results, page(results / "README.md", "paper", "transfer"))


def test_plot_writes_the_figures_that_the_results_page_shows(results):
    plot.main(results)
    names = {path.name for path in results.glob("*.png")}
    assert names == {"longer.png", "1m.png", "1m_minutes.png", "1m_kl.png", "ablations_hopper.png", "ablations_ant.png"}
    text = tables.results_page(results, results / "RESULTS.md")
    assert {*re.findall(r"!\[.*?\]\(results/(.*?)\)", text)} <= names


def test_horizons_of_seeds_whose_iterations_differ_are_drawn(tmp_path):
    head = "# command: python ahac_continuous.py --env-id ant, commit: abc1234, device: toaster, cores: 2, torch: 2, "
    columns = "global_step,wall_s,episodic_return,SPS,horizon,stiffness,eval_episodic_return"
    for seed, length in ((1, 32), (2, 40)):
        rows = [f"{length * k},{k},{length * k},9000,{length},{200 + k}," for k in range(1, 30)]
        path = tmp_path / "1m" / f"ahac_continuous__ant__{seed}.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join([f"{head}warp: 1, date: 2026-11-26", columns, *rows, "928,30,,,,,10"]) + "\n")
    runs = read_one_million(tmp_path)
    steps, values = plot.curve(runs, "episodic_return")
    assert list(steps) == [*range(64, 929, 32)] and (values == steps).all()  # between the steps of the other one
    plot.plot_horizons(runs, tmp_path / "horizons.png")
    assert (tmp_path / "horizons.png").exists()


def write_speeds(path):
    path.write_text(
        "# command: x, commit: abc1234, device: toaster, cores: 2, torch: 2, warp: 1, date: 2026-11-21\n"
        "env_id,num_envs,device,threads,forward,forward_backward,training,rollout_ms,critic_ms\n"
        "hopper,16,cpu,2,4000,1000,500,30.0,90.0\nhopper,64,cpu,2,16000,3000,1500,40.0,60.0\n"
    )


def test_the_parts_of_the_training_are_shares(results):
    assert tables.all_files(tables.training, results, results / "RESULTS.md") == "Not run."
    write_speeds(results / "training_cpu.csv")
    text = tables.all_files(tables.training, results, results / "RESULTS.md")
    assert "toaster, cores: 2, commit abc1234, 2026-11-21, [training_cpu.csv](training_cpu.csv)" in text
    assert "| hopper | 16 | 2 | 500 | 120 ms | 25 % | 75 % |" in text


def test_speeds_against_the_number_of_environments_are_drawn(results):
    write_speeds(results / "scaling_cpu.csv")
    plot.plot_scaling(results / "scaling_cpu.csv")
    assert (results / "scaling_cpu.png").exists()
    assert len(read_all(results)) == 5  # not a run


def test_the_commands_of_the_paper_can_be_run():
    lines = [shlex.split(line, comments=True) for line in (BENCHMARKS / "paper.sh").read_text().splitlines()]
    commands = [line[3:] for line in lines if line[:3] == ["python", "-m", "benchmarks.run"]]
    assert len(commands) > 10
    for *command, further in commands:
        assert further == "$@"  # --list
        args = tyro.cli(run.Args, args=command)
        assert (
            args.results == RESULTS or args.results == Path("benchmarks/results/ablations") and args.name in ABLATIONS
        )
        args.seeds = (1,)
        for one in run.all_runs(args):
            _, script, *flags = shlex.split(one.command)
            tyro.cli(importlib.import_module(script.removesuffix(".py")).Args, args=flags)  # unknown ones would exit


@pytest.mark.parametrize(
    "name, count",
    [
        ("one_million", len(SCRIPTS) * len(ONE_MILLION_TASKS)),
        ("ablations", 3),
        ("ahac_fasttd3", 7),
        ("full_length", 11),
    ],
)
def test_every_run_of_a_benchmark_is_listed_as_a_command_of_its_own(name, count, tmp_path, monkeypatch, capsys):
    """As GNU parallel or a Slurm array job takes them."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which the scripts set
    python = tmp_path / "python"  # says what it is called with; the module runs here, where it is imported already
    python.write_text('#!/bin/bash\nprintf "%q " "$OMP_NUM_THREADS" "$@"\necho\n')
    python.chmod(0o755)
    list_runs = ["bash", str(BENCHMARKS / f"{name}.sh"), "2", "--list"]
    options = {"capture_output": True, "text": True, "env": os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}}
    for call in subprocess.run(list_runs, check=True, **options).stdout.splitlines():
        threads, option, module, *flags = shlex.split(call)
        assert (threads, option, module) == ("1", "-m", "benchmarks.run")
        monkeypatch.setattr(sys, "argv", ["run", *flags])
        run.main()
    commands = capsys.readouterr().out.splitlines()
    assert len(set(commands)) == count
    for command in commands:
        words = shlex.split(command)
        assert words[:4] == ["OMP_NUM_THREADS=1", "python", "-m", "benchmarks.run"]
        args = tyro.cli(run.Args, args=words[4:])
        (one,) = run.all_runs(args)
        assert run.command_of(one, args) == command and one.seed == 2
        assert ("--total-timesteps 1000000" in one.command) != (name == "full_length")  # of the scripts' own lengths
        assert args.results.parent == Path("benchmarks/results")
        assert args.results.name in ("1m", "ablations", "arms", "full")
        _, script, *flags = shlex.split(one.command)
        tyro.cli(importlib.import_module(script.removesuffix(".py")).Args, args=flags)
