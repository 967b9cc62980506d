"""The benchmark runner as a user calls it, and what reads a run: its log, whether it is finished, its results file."""

import csv
import fcntl
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

import envs
import rpo_continuous as rpo
from benchmarks import hand_successes
from benchmarks import run as runner
from benchmarks.collect import EVALUATION, collect, is_finished
from benchmarks.events import read_rows
from benchmarks.provenance import current_commit
from benchmarks.tiny import assert_same
from envs.hand_reorient import HandReorient

ROOT = Path(__file__).parent.parent
TINY = "--num-envs 8 --num-steps 4 --num-minibatches 2 --num-eval-envs 2 --critic-epochs 1"


def module(name, *flags):
    return [sys.executable, "-m", f"benchmarks.{name}", *map(str, flags)]


def command(folder, *flags):
    return module("run", "--folder", folder, "--results", folder, "--env-ids", "hopper", *flags)


def run(folder, *flags, expect=0):
    result = subprocess.run(command(folder, *flags), cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert result.returncode == expect, result.stdout + result.stderr
    return result.stdout + result.stderr


def read(path):
    header, *lines = path.read_text().splitlines()
    return header, list(csv.DictReader(lines))


def test_scripts_and_seeds_are_run_collected_and_then_skipped(tmp_path):
    flags = ["--scripts", "rpo", "--seeds", 1, 2, "--jobs", 2, f"--flags={TINY} --total-timesteps 64 --eval-freq 1"]
    output = run(tmp_path, *flags)
    names = ["rpo_continuous__hopper__1", "rpo_continuous__hopper__2"]
    assert all(f"{name}: done" in output for name in names)
    for name in names:
        header, rows = read(tmp_path / f"{name}.csv")
        assert header.startswith(f"# command: python rpo_continuous.py --env-id hopper --seed {name[-1]} {TINY}")
        assert [row["global_step"] for row in rows] == ["32", "64", "64"]
        # evaluated after every iteration; of the last one only the last line tells
        assert [bool(row["eval_episodic_return"]) for row in rows] == [True, False, True]
        assert [bool(row["SPS"]) for row in rows] == [True, True, False]
    again = run(tmp_path, *flags)
    assert again.count("skipped") == 2 and "started" not in again
    # a finished run whose results file is gone is collected again, not run again
    content = (tmp_path / f"{names[0]}.csv").read_text()
    (tmp_path / f"{names[0]}.csv").unlink()
    assert f"{names[0]}: collected" in run(tmp_path, *flags)
    assert (tmp_path / f"{names[0]}.csv").read_text() == content
    # other flags under the same name are refused, where there is a result and where there is only a run
    other = [*flags[:-1], f"--flags={TINY} --total-timesteps 96"]
    refused = run(tmp_path, *other, expect=1)
    assert all(f"{name}: expected a result of" in refused for name in names)
    assert "use another --name, or move the files away" in refused
    (tmp_path / f"{names[0]}.csv").unlink()
    assert "use another --name" in run(tmp_path, *other, expect=1)


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    flags = ["--scripts", "rpo", "--name", "x", "--jobs", 2, f"--flags={TINY} --total-timesteps 1600"]
    process = subprocess.Popen(command(tmp_path, *flags), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 240
        while not list((tmp_path / "runs").glob("hopper__x__1__*/checkpoint.pt")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGTERM)  # which stops its runs as well
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 130 and "the same command goes on" in output
    (folder,) = (tmp_path / "runs").glob("hopper__x__1__*")
    assert 1 <= len(read_rows(folder)) < 50 and not is_finished(folder)
    assert "x__hopper__1: done" in run(tmp_path, *flags)
    assert list((tmp_path / "runs").glob("hopper__x__1__*")) == [folder]  # no second start from nothing
    _, rows = read(tmp_path / "x__hopper__1.csv")
    assert [int(row["global_step"]) for row in rows] == [*range(32, 1601, 32), 1600]
    log = (tmp_path / "runs" / "x__hopper__1.log").read_text()
    assert log.count("step 32/1,600 ") == 1


def test_a_run_that_is_still_running_is_not_started_again(tmp_path):
    (tmp_path / "runs").mkdir()
    with open(tmp_path / "runs" / "rpo_continuous__hopper__1.log", "a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)  # as the process of a runner that was killed
        output = run(tmp_path, "--scripts", "rpo", f"--flags={TINY} --total-timesteps 32", expect=1)
    assert "rpo_continuous__hopper__1: another process is already running it" in output


@pytest.mark.parametrize("given, expected", [({}, "4"), ({"OMP_NUM_THREADS": "1"}, "1")])
def test_the_number_of_threads_that_the_user_has_set_counts(given, expected, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(runner.os, "environ", given)
    monkeypatch.setattr(runner, "current_commit", lambda: "abc1234")
    monkeypatch.setattr(runner.subprocess, "Popen", lambda *args, env, **options: started.append(env))
    runner.Run("x", "rpo", "hopper", 1, "python rpo_continuous.py", tmp_path, tmp_path).start(4)
    assert [env["OMP_NUM_THREADS"] for env in started] == [expected]


def test_a_failing_run_is_reported_and_the_others_go_on(tmp_path):
    flags = f"--flags={TINY} --total-timesteps 32"
    output = run(tmp_path, "--scripts", "rpo", "--seeds", -1, 1, flags, expect=1)
    assert "rpo_continuous__hopper__-1: failed with exit code 2" in output
    assert "rpo_continuous__hopper__1: done" in output
    assert "--seed: expected 0" in (tmp_path / "runs" / "rpo_continuous__hopper__-1.log").read_text()


def log(folder, start, steps, value, monkeypatch, evaluated=None):
    """The events of a process that starts at a time and logs one iteration of 10 s after the other."""
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: start)
        writer = SummaryWriter(folder)
        writer.add_text("hyperparameters", "x")
    for k, step in enumerate(steps, 1):
        writer.add_scalar("charts/SPS", value, step, walltime=start + 10 * k)
        writer.add_scalar("time/rollout", 2 * value, step, walltime=start + 10 * k + 1)
    if evaluated is not None:
        for tag in EVALUATION:
            writer.add_scalar(tag, value, evaluated, walltime=start + 10 * len(steps) + 5)
    writer.close()


def test_what_a_resumed_run_did_again_counts_once_and_its_pause_not_at_all(tmp_path, monkeypatch):
    log(tmp_path, 1000, [32, 64, 96, 128], 1.0, monkeypatch)  # its last checkpoint is that of step 64
    log(tmp_path, 5000, [], 2.0, monkeypatch)  # killed before its first iteration
    log(tmp_path, 9000, [96], 3.0, monkeypatch, evaluated=96)
    rows = read_rows(tmp_path)
    assert [(row["global_step"], row["charts/SPS"]) for row in rows] == [(32, 1.0), (64, 1.0), (96, 3.0)]
    assert [row["wall_s"] for row in rows] == pytest.approx([11, 21, 32])
    assert rows[-1]["eval/wall_s"] == pytest.approx(36)
    # the run goes on to a larger number of steps; the evaluation of step 96 remains
    log(tmp_path, 20000, [128], 4.0, monkeypatch, evaluated=128)
    rows = read_rows(tmp_path)
    assert [row.get("eval/return_std") for row in rows] == [None, None, 3.0, 4.0]
    assert rows[-1]["wall_s"] == pytest.approx(43) and rows[-1]["eval/wall_s"] == pytest.approx(47)
    # a finished run that is started again only evaluates
    log(tmp_path, 30000, [], 5.0, monkeypatch, evaluated=128)
    assert len(read_rows(tmp_path)) == 4 and read_rows(tmp_path)[-1]["charts/SPS"] == 4.0
    assert read_rows(tmp_path)[-1]["eval/return_std"] == 5.0


def test_a_log_that_was_cut_off_is_read_up_to_there(tmp_path, monkeypatch):
    assert read_rows(tmp_path) == []
    log(tmp_path, 1000, [32, 64], 1.0, monkeypatch)
    (path,) = tmp_path.iterdir()
    os.truncate(path, path.stat().st_size - 5)
    first, second = read_rows(tmp_path)
    assert "time/rollout" in first and "time/rollout" not in second and second["charts/SPS"] == 1.0


def save_checkpoint(folder, iteration, total=64):
    args = {"env_id": "hopper", "num_envs": 8, "num_steps": 4, "total_timesteps": total, "cuda": True}
    torch.save({"args": args, "iteration": iteration, "cuda_rng": []}, folder / "checkpoint.pt")


def test_a_run_is_finished_with_the_evaluation_after_its_last_step(tmp_path, monkeypatch):
    folder = tmp_path / "hopper__rpo_continuous__7__1000000000"
    log(folder, 1000, [32, 64], 1.0, monkeypatch)
    assert not is_finished(folder)  # no checkpoint
    save_checkpoint(folder, iteration=2)
    assert not is_finished(folder)  # not evaluated
    with pytest.raises(SystemExit, match="expected a finished run"):
        collect(folder, "python x", commit="abc", results=tmp_path)
    log(folder, 2000, [], math.pi, monkeypatch, evaluated=64)
    assert is_finished(folder)
    save_checkpoint(folder, iteration=1)
    assert not is_finished(folder)  # the evaluation was one of --eval-freq, killed before the checkpoint
    save_checkpoint(folder, iteration=2, total=96)
    assert not is_finished(folder)  # nor was this the last one
    save_checkpoint(folder, iteration=2, total=70)  # a run makes whole iterations

    path = collect(folder, "python x", commit="abc", results=tmp_path)
    assert path == tmp_path / "rpo_continuous__hopper__7.csv"
    header, rows = read(path)
    assert header.startswith("# command: python x, commit: abc, device: ") and "date: 2001-09-09" in header
    evaluation = [f"eval_{tag.removeprefix('eval/')}" for tag in EVALUATION]
    assert list(rows[0]) == ["global_step", "wall_s", "SPS", "time_rollout", *evaluation]
    assert [(row["global_step"], row["wall_s"]) for row in rows] == [("32", "11.00"), ("64", "21.00"), ("64", "26.00")]
    assert [row["time_rollout"] for row in rows] == ["2", "2", ""]
    assert [row["eval_return_std"] for row in rows] == ["", "", "3.141593"]

    # a result of another command is not overwritten, and one that could not be written leaves the old one
    before = path.read_text()
    with pytest.raises(SystemExit, match="expected no file or one of `python y`, got one of `python x`"):
        collect(folder, "python y", commit="abc", results=tmp_path)
    monkeypatch.setattr(csv.DictWriter, "writerows", lambda self, rows: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        collect(folder, "python x", commit="def", results=tmp_path)
    assert path.read_text() == before


def test_only_starts_that_made_a_run_count(tmp_path):
    attempt = runner.Run("x", "rpo", "hopper", 1, "python b", tmp_path, tmp_path)
    attempt.log.parent.mkdir()
    attempt.log.write_text(
        "# command: python a, commit: 1\nerror: --kl: unrecognised\n# command: python b, commit: 2\nrun folder runs/r; "
        "--checkpoint runs/r/checkpoint.pt continues it\n# command: python b, commit: 3\n    gamma: 0.99\nrun folder "
        "/where/it/was/runs/r; --checkpoint /where/it/was/runs/r/checkpoint.pt continues it\n"
    )
    assert [*attempt.attempts()] == [("python b", "2"), ("python b", "3")]
    attempt.check_command()
    assert attempt.run_dir() == tmp_path / "runs" / "r"
    attempt.log.write_text(attempt.log.read_text().replace("python b", "python c"))
    with pytest.raises(SystemExit, match="expected a run of `python b`, got one of `python c` .* or --folder"):
        attempt.check_command()


def test_a_result_is_no_change_of_the_commit_that_made_it(tmp_path):
    """A file of code that differs from its commit is; one that git does not know is neither."""
    for path in ("code.py", "benchmarks/results/a.csv"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("before")
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    commit = current_commit(tmp_path)
    assert len(commit) >= 7 and "+" not in commit
    (tmp_path / "benchmarks/results/a.csv").write_text("after")
    (tmp_path / "benchmarks/results/b.csv").write_text("new")
    assert current_commit(tmp_path) == commit
    (tmp_path / "code.py").write_text("after")
    assert current_commit(tmp_path) == commit + "+changes"


def test_lengths_of_action_gradients(tmp_path):
    flags = ["--env-ids", "cartpole", "--num-steps", 2, 8, "--total-steps", 16, "--warm-up", 4]
    path = tmp_path / "x.csv"
    subprocess.run(module("action_gradients", *flags, "--output", path), cwd=ROOT, check=True, timeout=240)
    header, (short, long) = read(path)
    assert header.startswith("# command: python -m benchmarks.action_gradients --env-ids cartpole --num-steps 2 8 ")
    assert (short["num_steps"], long["num_steps"]) == ("2", "8")
    for row in (short, long):
        assert row["rows"] == str(128 * 16) and row["num_envs"] == "128"
        assert 0.0 < float(row["median"]) < float(row["p90"]) < float(row["p99"]) < float(row["max"])
    # a longer rollout has more reward that an action can change
    assert float(long["max"]) > float(short["max"])


def test_what_the_hand_does_is_measured_in_the_scripts_evaluation(tmp_path, monkeypatch):
    monkeypatch.setattr(HandReorient, "success_angle", 2.0)  # so that an untrained hand reaches goals
    torch.manual_seed(0)
    actor, normalizer = rpo.Actor(72, 16), rpo.ObsNormalizer(72)
    checkpoint = {"script": "rpo_continuous.py", "iteration": 5, "actor": actor.state_dict()}
    checkpoint |= {"normalizer": normalizer.state_dict()}
    checkpoint["args"] = {"env_id": "hand_reorient", "seed": 7, "num_envs": 8, "num_steps": 4}
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    args = hand_successes.Args((tmp_path / "checkpoint.pt",), episodes=4)
    noisy, calm = hand_successes.measure(tmp_path / "checkpoint.pt", args)
    assert (noisy["policy"], calm["policy"], calm["global_step"], calm["seed"]) == (
        "stochastic",
        "deterministic",
        160,
        7,
    )
    policy, _ = envs.load_policy(tmp_path / "checkpoint.pt")
    returns, lengths = envs.evaluate(envs.make("hand_reorient", num_envs=4), policy, seed=1)
    assert calm["return"] == f"{returns.mean():.4g}" and calm["length"] == f"{lengths.mean():.4g}"
    for row in (noisy, calm):
        assert 0 < float(row["first_angle"]) < math.pi and 0 < float(row["angle"]) < math.pi
        assert 0 < float(row["at_goal"]) <= min(1, float(row["goals"]))
        # 125 at most for the goal, and what every step has; less where the cube falls in the same step
        assert 50 < float(row["goal_reward"]) < 130


def test_the_drill_sees_a_difference_of_one_bit():
    state = {"actor": {"w": torch.ones(3)}, "episodes": [[1.0, math.nan]], "iteration": 4}
    assert_same(state, {**state, "actor": {"w": torch.ones(3)}}, "x")
    for other in (
        {"actor": {"w": torch.tensor([1.0, 1.0, 1.0 + 1e-7])}},
        {"episodes": [[1.0, 2.0]]},
        {"iteration": 5},
        {"more": 1},
    ):
        with pytest.raises(AssertionError):
            assert_same(state, state | other, "x")
