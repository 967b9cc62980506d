"""The benchmark runner as a user calls it: several runs, again, interrupted, failing."""

import csv
import fcntl
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
TINY = "--num-envs 8 --num-steps 4 --num-minibatches 2 --num-eval-envs 2 --critic-epochs 1 --checkpoint-freq 2"


def command(folder, *flags):
    runner = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "--folder", str(folder), "--results", str(folder)]
    return [*runner, "--env-ids", "hopper", *map(str, flags)]


def run(folder, *flags, expect=0):
    result = subprocess.run(command(folder, *flags), capture_output=True, text=True, timeout=240)
    assert result.returncode == expect, result.stdout + result.stderr
    return result.stdout + result.stderr


def read(path):
    header, *lines = path.read_text().splitlines()
    return header, list(csv.DictReader(lines))


def test_scripts_and_seeds_are_run_collected_and_then_skipped(tmp_path):
    flags = ["--scripts", "rpo", "--seeds", 1, 2, "--jobs", 2, f"--flags={TINY} --total-timesteps 64"]
    output = run(tmp_path, *flags)
    names = ["rpo_continuous__hopper__1", "rpo_continuous__hopper__2"]
    assert all(f"{name}: done" in output for name in names)
    for name in names:
        header, rows = read(tmp_path / f"{name}.csv")
        assert header.startswith(f"# command: python rpo_continuous.py --env-id hopper --seed {name[-1]} {TINY}")
        assert [row["global_step"] for row in rows] == ["32", "64", "64"] and rows[-1]["eval_episodic_return"]
    again = run(tmp_path, *flags)
    assert again.count("skipped") == 2 and "started" not in again
    # a finished run whose results file is gone is collected again, not run again
    (tmp_path / f"{names[0]}.csv").unlink()
    assert f"{names[0]}: collected" in run(tmp_path, *flags) and (tmp_path / f"{names[0]}.csv").exists()
    # other flags under the same name are refused, where there is a result and where there is only a run
    other = [*flags[:-1], f"--flags={TINY} --total-timesteps 96"]
    refused = run(tmp_path, *other, expect=1)
    assert all(f"{name}: expected a result of" in refused for name in names)
    assert "use another --name, or move the files away" in refused
    (tmp_path / f"{names[0]}.csv").unlink()
    assert "use another --name" in run(tmp_path, *other, expect=1)


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    flags = ["--scripts", "rpo", "--name", "x", "--jobs", 2, f"--flags={TINY} --total-timesteps 4800"]
    process = subprocess.Popen(command(tmp_path, *flags), stdout=subprocess.PIPE, text=True)
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
    assert 2 <= len((folder / "metrics.csv").read_text().splitlines()) - 1 < 150
    assert "x__hopper__1: done" in run(tmp_path, *flags)
    assert list((tmp_path / "runs").glob("hopper__x__1__*")) == [folder]  # no second start from nothing
    _, rows = read(tmp_path / "x__hopper__1.csv")
    assert [int(row["global_step"]) for row in rows] == [*range(32, 4801, 32), 4800]


def test_a_run_that_is_still_running_is_not_started_again(tmp_path):
    (tmp_path / "runs").mkdir()
    with open(tmp_path / "runs" / "rpo_continuous__hopper__1.log", "a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)  # as the process of a runner that was killed
        output = run(tmp_path, "--scripts", "rpo", f"--flags={TINY} --total-timesteps 32", expect=1)
    assert "rpo_continuous__hopper__1: another process is already running it" in output


def test_a_failing_run_is_reported_and_the_others_go_on(tmp_path):
    flags = f"--flags={TINY} --total-timesteps 32"
    output = run(tmp_path, "--scripts", "rpo", "--seeds", -1, 1, flags, expect=1)
    assert "rpo_continuous__hopper__-1: failed with exit code 2" in output
    assert "rpo_continuous__hopper__1: done" in output
    assert "--seed: expected 0" in (tmp_path / "runs" / "rpo_continuous__hopper__-1.log").read_text()


def test_lengths_of_action_gradients(tmp_path):
    script = [sys.executable, str(ROOT / "benchmarks" / "action_gradients.py"), "--env-ids", "cartpole"]
    flags = ["--num-steps", "2", "8", "--total-steps", "16", "--warm-up", "4", "--output", str(tmp_path / "x.csv")]
    subprocess.run([*script, *flags], check=True, timeout=240)
    header, (short, long) = read(tmp_path / "x.csv")
    assert header.startswith("# command: python") and (short["num_steps"], long["num_steps"]) == ("2", "8")
    for row in (short, long):
        assert row["rows"] == str(128 * 16) and row["num_envs"] == "128"
        assert 0.0 < float(row["median"]) < float(row["p90"]) < float(row["p99"]) < float(row["max"])
    # a longer rollout has more reward that an action can change
    assert float(long["max"]) > float(short["max"])
