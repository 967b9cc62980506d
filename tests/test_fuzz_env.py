"""A short version of benchmarks/fuzz_env.py, and what it notices."""

import time

import pytest

import envs
from benchmarks import fuzz_env


@pytest.fixture(autouse=True)
def few_buffers(monkeypatch):
    monkeypatch.setattr("envs.physics.simulator.KEPT_STEPS", 1)


@pytest.mark.parametrize(
    "env_id, methods", [("cartpole", (*fuzz_env.METHODS, "envs.make")), ("ant", ("step", "reset"))]
)
def test_odd_values_are_refused_by_name_or_have_their_effect(env_id, methods):
    found = fuzz_env.fuzz(env_id, methods, num_random=4)
    assert set(found) == set(methods)
    for name, counts in found.items():
        assert set(counts) <= {"refused", "accepted"}, counts
        assert counts["refused"] > 30 and (counts["accepted"] > 0 or name == "close")


def test_no_method_and_no_option_is_left_out(monkeypatch):
    assert fuzz_env.forgotten() == set()
    monkeypatch.delitem(fuzz_env.METHODS, "render")
    monkeypatch.delitem(fuzz_env.EFFECTS, "device")
    assert fuzz_env.forgotten() == {"render", "device"}


def failures(method):
    return [result for result in fuzz_env.fuzz("cartpole", (method,)).get(method) if "FAILED" in result]


def test_what_is_accepted_and_ignored_is_noticed(monkeypatch):
    monkeypatch.setattr("envs.vector_env.VectorEnv._rows_to_reset", lambda self, options: None)
    found = failures("reset")
    assert any("reset_mask=tensor) FAILED: Ignored: expected new episodes in these rows" in line for line in found)


def test_other_exceptions_are_noticed(monkeypatch):
    monkeypatch.setattr("envs.vector_env.check_tensor", lambda *args, **options: None)
    assert any("step(action=flat) FAILED: IndexError" in line for line in failures("step"))


def test_a_hang_is_noticed(monkeypatch):
    monkeypatch.setattr(fuzz_env, "TIMEOUT", 0.05)
    monkeypatch.setattr(fuzz_env, "odd_numbers", lambda: [("two", 2)])
    monkeypatch.setattr(envs.VectorEnv, "render", lambda self, index: time.sleep(5.0))
    assert failures("render") == ["cartpole, render(index=two) FAILED: TimeoutError: no end after 0 s"]
