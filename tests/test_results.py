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


def test_the_pages_are_those_of_the_files_and_scripts():
    advice = "not up to date: python -m benchmarks.tables"
    for page, text in tables.PAGES.items():
        assert text(RESULTS, page) == page.read_text(), advice


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


def page(path, *names):
    """A page with empty tables."""
    path.write_text("".join(f"<!-- {name}: begin -->\n<!-- {name}: end -->\n" for name in names))
    return path


def test_the_tables_of_a_page_are_filled_and_the_rest_of_it_stays(results):
    readme = page(results / "README.md", "results", "rpo", "throughput")
    readme.write_text(readme.read_text() + "| [rpo_continuous.py](x) | RPO | 7 |\nthe rest | 7 |")
    length = len((ROOT / "rpo_continuous.py").read_text().splitlines())
    text = tables.filled_readme(results, readme)
    assert "5100 +- 141" in text and text.endswith(f"| [rpo_continuous.py](x) | RPO | {length} |\nthe rest | 7 |")
    (results / "critic_step_cpu.csv").write_text("# x\nvariant,threads,step_ms,first_s\nplain,1,20.00,0.10\n")
    performance = page(results / "performance.md", "training", "critic step")
    assert "| plain | 20.00 ms | 0.10 s |" in tables.filled_performance(results, performance)
    lines = ["# x", "script,drill,seen", "a,kill,fine", "b,kill,fine", "a,starve,x", "b,starve,y"]
    (results / "robustness_1.csv").write_text("\n".join(lines))
    (results / "memory_anymal.csv").write_text("# x\nglobal_step,rss_mib\n1000000,900\n10000000,905\n")
    text = tables.filled_robustness(results, page(results / "robustness.md", "drill", "memory"))
    assert "| kill | a, b | fine |" in text and "| starve | a | x |" in text and "| starve | b | y |" in text
    assert "| 10.00M | 905 MiB |" in text
    with pytest.raises(ValueError, match="expected the lines <!-- rpo: begin -->"):
        tables.filled_readme(results, page(results / "README.md", "results"))


def test_plot_writes_the_figures_that_the_results_page_shows(results):
    plot.main(results)
    names = {path.name for path in results.glob("*.png")}
    assert names == {"hopper.png", "all.png", "ablations_hopper.png"}
    text = tables.results_page(results, results / "RESULTS.md")
    assert "![hopper](hopper.png)" in text and "![ablations_hopper](ablations_hopper.png)" in text


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
    for command in commands:
        args = tyro.cli(run.Args, args=command)
        assert (
            args.results == RESULTS or args.results == Path("benchmarks/results/ablations") and args.name in ABLATIONS
        )
        args.seeds = (1,)
        for one in run.all_runs(args):
            _, script, *flags = shlex.split(one.command)
            tyro.cli(importlib.import_module(script.removesuffix(".py")).Args, args=flags)  # unknown ones would exit
