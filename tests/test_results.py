"""Tables and figures are those of the results files; the commands for the paper's tables have flags that exist."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import tyro

from benchmarks import plot, run, tables
from benchmarks.records import ABLATIONS, BENCHMARKS, RESULTS, ROOT, read_ablations, read_all, read_paper

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
def results(tmp_path):
    """RPO on the hopper with two seeds and with other flags, a quick start, SAPO with one seed, two ablations."""
    command = "python rpo_continuous.py --env-id hopper"
    write(tmp_path / "rpo_continuous__hopper__1.csv", command, 5000)
    write(tmp_path / "rpo_continuous__hopper__2.csv", f"{command} --seed 2", 5200)
    write(tmp_path / "rpo_continuous__hopper__3.csv", f"{command} --seed 3 --gamma 0.9", 100)
    write(tmp_path / "quickstart_1.csv", f"{command} --total-timesteps 7", 42)
    write(tmp_path / "sapo_continuous__hopper__1.csv", "python sapo_continuous.py --env-id hopper", 4000)
    for name, flag, final in (("rpo", "", 5000), ("rpo_no_kl", " --kl-coef 0", 3000)):
        write(tmp_path / "ablations" / f"{name}__hopper__1.csv", f"{command} --exp-name {name}{flag}", final)
    return tmp_path


def test_results_page_and_readme_are_those_of_the_files():
    advice = "not up to date: python benchmarks/plot.py"
    assert tables.results_page(RESULTS, BENCHMARKS / "RESULTS.md") == (BENCHMARKS / "RESULTS.md").read_text(), advice
    assert tables.filled_readme(RESULTS, ROOT / "README.md") == (ROOT / "README.md").read_text(), advice
    performance = ROOT / "docs" / "performance.md"
    assert tables.filled_performance(RESULTS, performance) == performance.read_text(), advice
    robustness = ROOT / "docs" / "robustness.md"
    assert tables.filled_robustness(RESULTS, robustness) == robustness.read_text(), advice


def test_statistics_need_seeds():
    assert tables.spread([10.0]) == "10" and tables.spread([10.0, 14.0]) == "12 +- 3"
    assert tables.iqm([1.0, 2.0]) == "-"
    center, low, high = map(
        int, re.fullmatch(r"(\d+) \[(\d+), (\d+)\]", tables.iqm([0.0, 10.0, 20.0, 1000.0])).groups()
    )
    assert center == 15  # without the lowest and the highest
    assert 0 <= low < center < high <= 1000


def test_the_overview_averages_runs_that_differ_in_their_seed_only(results):
    hopper = row(tables.overview(read_all(results), read_paper()), "hopper")
    assert hopper[0] == (
        "**5100 +- 141**<br>2 seeds, 2.00M<br>**100**<br>1 seed, 2.00M<br>paper: 5526 +- 3"
    )  # and no quick start
    assert hopper[1] == "not run<br>paper: 5067 +- 299"
    assert hopper[2] == "**4000**<br>1 seed, 2.00M<br>paper: 5408 +- 4"
    assert hopper[6] == "not run"


def test_the_table_of_a_script_has_quick_starts_and_the_paper(results):
    text = tables.settings_of("rpo", read_all(results), read_paper(), results / "README.md")
    assert row(text, "`hopper --total-timesteps 7`") == ["[1](quickstart_1.csv)", "2.00M", "42", "142", "2 min"]
    assert row(text, "`hopper`")[0] == "[1](rpo_continuous__hopper__1.csv), [2](rpo_continuous__hopper__2.csv)"
    assert row(text, "RPO paper, hopper") == ["12 seeds", "about 20M", "5526 +- 3", "5585 +- 6", ""]


def test_ablations_have_a_table_and_no_unknown_names(results):
    text = tables.ablations_of("hopper", read_ablations(results))
    found = row(text, "RPO without the KL term")
    assert found == ["`hopper --kl-coef 0`", "1", "2.00M", "3000", "-", "3100", "0.70", "12.50"]
    assert "not run" in row(text, "RPO, one epoch")
    (results / "ablations" / "rpo__hopper__1.csv").rename(results / "ablations" / "rpo_odd__hopper__1.csv")
    with pytest.raises(ValueError, match="expected the name of an ablation.*got rpo_odd"):
        read_ablations(results)


def test_plot_writes_the_figures_and_the_pages(results):
    readme = results / "README.md"
    readme.write_text("".join(f"<!-- {x}: begin -->\n<!-- {x}: end -->\n" for x in ("results", "rpo", "throughput")))
    performance = results / "performance.md"
    performance.write_text("".join(f"<!-- {x}: begin -->\n<!-- {x}: end -->\n" for x in ("training", "critic step")))
    (results / "critic_step_cpu.csv").write_text("# x\nvariant,threads,step_ms,first_s\nplain,1,20.00,0.10\n")
    robustness = results / "robustness.md"
    robustness.write_text("".join(f"<!-- {x}: begin -->\n<!-- {x}: end -->\n" for x in ("drill", "memory")))
    lines = ["# x", "script,drill,seen", "a,kill,fine", "b,kill,fine", "a,starve,x", "b,starve,y"]
    (results / "robustness_1.csv").write_text("\n".join(lines))
    (results / "memory_anymal.csv").write_text("# x\nglobal_step,rss_mib\n1000000,900\n10000000,905\n")
    plot.main(results, (results / "RESULTS.md", readme, performance, robustness))
    text = robustness.read_text()
    assert "| kill | a, b | fine |" in text and "| starve | a | x |" in text and "| starve | b | y |" in text
    assert "| 10.00M | 905 MiB |" in text
    assert "| plain | 20.00 ms | 0.10 s |" in performance.read_text()
    assert {path.name for path in results.glob("*.png")} == {"hopper.png", "all.png", "ablations_hopper.png"}
    assert "5100 +- 141" in readme.read_text() and "![ablations_hopper]" in (results / "RESULTS.md").read_text()


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
    commands = [line[2:] for line in lines if line[:2] == ["python", "benchmarks/run.py"]]
    assert len(commands) > 10
    for command in commands:
        args = tyro.cli(run.Args, args=command)
        assert (
            args.results == RESULTS or args.results == Path("benchmarks/results/ablations") and args.name in ABLATIONS
        )
        args.seeds = (1,)
        for one in run.all_runs(args):
            _, script, *flags = shlex.split(one.command)
            tyro.cli(importlib.import_module(script.removesuffix(".py")).Args, args=flags)  # unknown ones would exit
