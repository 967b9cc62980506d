"""README and docs: links lead somewhere, quoted lines are where the link says, numbers are those of the files."""

import re
from pathlib import Path

import pytest

import gippo_continuous
import ppo_continuous
import reppo_continuous
import rpo_continuous
import sac_continuous
import sapo_continuous
import shac_continuous

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "RESULTS.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = {
    "rpo": rpo_continuous,
    "shac": shac_continuous,
    "sapo": sapo_continuous,
    "reppo": reppo_continuous,
    "ppo": ppo_continuous,
    "gippo": gippo_continuous,
    "sac": sac_continuous,
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_a_file_and_to_the_quoted_line(page):
    links = re.findall(r"\[([^\]]*(?:\[[^\]]*\][^\]]*)*)\]\(([^)#]*)(?:#([\w-]+))?\)", page.read_text())
    assert links
    for text, target, anchor in links:
        if target.startswith("http"):
            continue
        path = page.parent / target
        assert path.exists(), target
        if anchor and path.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", path.read_text().lower(), re.MULTILINE)
            assert anchor in [heading.replace(" ", "-") for heading in headings]
        elif anchor:
            snippet = text.strip("`")
            lines = path.read_text().splitlines()
            found = [f"L{number}" for number, content in enumerate(lines, 1) if snippet in content]
            assert anchor in found, f"{snippet!r} is in line {found} of {target}, not {anchor}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_logged_metric_is_explained(name):
    text = (ROOT / "docs" / f"{name}.md").read_text()
    explained = {tag.split("/")[1] for tag in re.findall(r"`((?:charts|losses)/\w+)`", text)}
    times = {tag.replace("/", "_") for tag in re.findall(r"`(time/\w+)`", text)}
    logged = {column for column in SCRIPTS[name].COLUMNS if not column.startswith("eval_")} - {"global_step", "wall_s"}
    assert explained | times == logged
    for quantity in ("episodic_return", "return_std", "episodic_length"):
        assert f"`eval/{quantity}`" in text and "`eval/deterministic_`" in text
        assert {f"eval_{quantity}", f"eval_deterministic_{quantity}"} <= set(SCRIPTS[name].COLUMNS)


def test_the_readme_counts_the_lines_of_the_scripts():
    rows = re.findall(r"\| \[(\w+_continuous\.py)\].*\| (\d+) \|", (ROOT / "README.md").read_text())
    assert {name for name, _ in rows} == {path.name for path in ROOT.glob("*_continuous.py")}
    for name, lines in rows:
        assert int(lines) == len((ROOT / name).read_text().splitlines()), name


@pytest.mark.parametrize(
    "page, printed",
    [
        ("README.md", "tensor([["),  # the gradient
        ("docs/envs.md", "torch.Size([16, 1])"),  # the gradient's shape
        ("docs/third_party.md", "ndarray float32 (4, 11)"),
    ],
)
def test_examples_run(page, printed, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})
    assert printed in capsys.readouterr().out
