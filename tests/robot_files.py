"""Robots' files for the tests: Gymnasium's, and those of other wheels where they are installed."""

import importlib.util
from pathlib import Path

import pytest

FOLDERS = {
    "gymnasium": "envs/mujoco/assets",
    "mjlab": "asset_zoo/robots",
    "dm_control": "suite",
}


def find(name):
    """The path of a file such as "gymnasium/ant.xml"; the test is skipped where the wheel is not installed."""
    package, file = name.split("/", 1)
    spec = importlib.util.find_spec(package)  # which does not import it
    if spec is None:
        pytest.skip(f"the files of {package} are not installed: pip install --no-deps {package.replace('_', '-')}")
    return Path(spec.submodule_search_locations[0]) / FOLDERS[package] / file
