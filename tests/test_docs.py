"""README and docs: links lead somewhere, functions and metrics are those of the scripts, examples run."""

import ast
import dataclasses
import importlib
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path

import pytest
import tyro
from running import run_here

from benchmarks.events import read_rows
from benchmarks.records import SCRIPTS
from benchmarks.tiny import run_dir, total

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "RESULTS.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\[([^\]]*(?:\[[^\]]*\][^\]]*)*)\]\(([^)#]*)(?:#([\w-]+))?\)")


@cache
def defined(path):
    """Names of the functions, classes and methods in a file, these as Class.method."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_a_file_and_to_a_function_or_a_heading_in_it(page):
    links = LINK.findall(page.read_text())
    assert links
    for text, target, anchor in links:
        if target.startswith("http"):
            continue
        path = page.parent / target if target else page
        assert path.exists(), target
        if path.suffix == ".py" and text.startswith("`"):
            assert text.strip("`") in defined(path), f"{text} in {target}"
        if anchor:  # lines of code are named by the function that they are in
            headings = re.findall(r"^#+ (.*)$", path.read_text().lower(), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings]  # as on GitHub
            assert path.suffix == ".md" and anchor in anchors, anchor


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_logged_metric_is_explained(script, tmp_path):
    run_here(tmp_path, script, *total(3))  # SAC learns from the second iteration on
    logged = {tag for row in read_rows(run_dir(tmp_path)) for tag in row if "/" in tag} - {"eval/wall_s"}
    explained = {*re.findall(r"`((?:charts|losses|time|eval)/\w+)`", (ROOT / "docs" / f"{script}.md").read_text())}
    explained.remove("eval/deterministic_")  # "and the same with"
    explained |= {tag.replace("eval/", "eval/deterministic_") for tag in explained if tag.startswith("eval/")}
    assert explained == logged


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_that_a_page_names_is_one_of_the_script(script):
    flags = {field.name for field in dataclasses.fields(importlib.import_module(f"{script}_continuous").Args)}
    named = re.findall(r"--([a-z][a-z0-9-]*)", (ROOT / "docs" / f"{script}.md").read_text())
    assert named
    for name in named:
        assert {name.replace("-", "_"), name.removeprefix("no-").replace("-", "_")} & flags, f"--{name}"


def test_the_readme_lists_every_script():
    rows = re.findall(r"^\| \[(\w+_continuous\.py)\].*\| \d+ \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(path.name for path in ROOT.glob("*_continuous.py"))


@pytest.mark.parametrize(
    "page, printed",
    [
        ("README.md", r"tensor\(\[\["),  # the gradient
        # recovered, of 0.6; the gradient's shape
        ("docs/envs.md", r"friction: 0\.(59|60)\d\ntorch\.Size\(\[16, 1\]\)"),
        ("docs/third_party.md", r"ndarray float32 \(4, 11\)"),
    ],
)
def test_examples_run(page, printed, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})
    assert re.search(printed, capsys.readouterr().out)


def test_commands_in_pages_have_a_module():
    """`python -m benchmarks.x` and `python x.py` in pages, paper.sh and docstrings name something that is there."""
    sources = [*PAGES, ROOT / "benchmarks" / "paper.sh", *ROOT.glob("benchmarks/*.py"), *ROOT.glob("*.py")]
    commands = 0
    for source in sources:
        for module, path in re.findall(r"python (?:-m (\w+\.\w+)|(\w[\w/]*\.py))", source.read_text()):
            target = ROOT / (path or module.replace(".", "/") + ".py")
            assert target.exists(), f"{source.name}: {target.name}"
            commands += 1
    assert commands > 50


def test_the_flags_of_scripts_in_pages_are_accepted():
    commands = 0
    for source in [*PAGES, ROOT / "policies" / "README.md"]:
        text = re.sub(r"\\\n\s*", "", source.read_text())
        for script, flags in re.findall(
            r"^    (?:torchrun .* |python )(\w+)_continuous\.py (--.*)$", text, re.MULTILINE
        ):
            Args = importlib.import_module(f"{script}_continuous").Args
            tyro.cli(Args, args=shlex.split(re.split(r"\s+[>#]", re.sub("<.*?>", "x", flags))[0]))
            commands += 1
    assert commands > 30


def commands_of(module):
    """The flags of every `python -m benchmarks.<module>` with flags in a page, or at the top of the module."""
    for source in [*PAGES, ROOT / "benchmarks" / f"{module}.py"]:
        text = re.sub(r"\\\n\s*", "", source.read_text())
        for line in re.findall(rf"^    python -m benchmarks\.{module} (--.*)$", text, re.MULTILINE):
            yield re.split(r"\s+[>#]", re.sub("<.*?>", "x", line))[0]


@pytest.mark.parametrize(
    "module", ["throughput", "commits", "critic_step", "matmul", "drill", "fuzz", "fuzz_env", "transfer"]
)
def test_the_flags_of_benchmarks_in_pages_are_accepted(module):
    program = importlib.import_module(f"benchmarks.{module}")
    commands = [*commands_of(module)]
    assert commands
    for command in commands:
        args = tyro.cli(program.Args, args=shlex.split(command))  # unknown flags and wrong values end it
        if module == "throughput":
            assert args.iterations >= program.warm_up(args) + 2, command


def test_the_first_screen_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1200


def test_the_index_lists_every_page():
    pages = {path.name for path in (ROOT / "docs").iterdir() if path.suffix in (".md", ".ipynb")} - {"index.md"}
    assert {*re.findall(r"^\| \[\S+\]\((\S+)\)", (ROOT / "docs" / "index.md").read_text(), re.MULTILINE)} == pages


@pytest.mark.parametrize("name, listed", [("requirements", "dependencies"), ("requirements-dev", "dev")])
def test_pyproject_has_the_dependencies_of_the_requirements(name, listed):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lines = (ROOT / f"{name}.txt").read_text().splitlines()
    found = project["project"]["dependencies"] if listed == "dependencies" else project["dependency-groups"][listed]
    assert [line for line in lines if not line.startswith("-r")] == found
