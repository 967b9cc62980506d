"""Data-parallel training: two processes on one machine do what one process does with all environments.

Starting two processes costs more than all their work here, so that torchrun starts them once, with this file as their
program: they run one script after the other, and leave what the tests ask for.
"""

import contextlib
import functools
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from running import SCRIPTS, events, run_here

import envs
from benchmarks.tiny import ENVIRONMENT, STEPS, load, run_dir, total

NUM_ENVS = 8
SEED = 5
GRADIENTS = ("rpo", "shac", "sapo", "ahac", "gippo", "ppo")
# one iteration on the whole batch, without clipping, which would hide a wrong length
ONE_ITERATION = f"--num-minibatches 1 --max-grad-norm 1e9 --num-eval-envs {NUM_ENVS} --total-timesteps {STEPS}".split()


# AHAC's horizon moves from the eleventh iteration on
MOVING = "--horizon-min 2 --horizon-max 8 --horizon-lr 50 --horizon-dual-lr 1".split()
MOVING += ["--total-timesteps", 16 * STEPS]


def observed(cwd, script, *flags):
    """A run inside this process: what it prints, its optimisers' first gradients and last weights, and its noise."""
    optimizers, first = [], []
    create, step = torch.optim.Optimizer.__init__, torch.optim.AdamW.step

    def remember(self, *args, **options):
        create(self, *args, **options)
        optimizers.append(self)

    def parameters(self):
        return self.param_groups[0]["params"]

    def stepped(self, *args, **options):
        if not any(self is other for other, _ in first):
            first.append((self, torch.cat([p.grad.flatten() for p in parameters(self)])))
        return step(self, *args, **options)

    with (
        mock.patch.object(torch.optim.Optimizer, "__init__", remember),
        mock.patch.object(torch.optim.AdamW, "step", stepped),
        mock.patch.object(envs, "make", wraps=envs.make) as make,
    ):
        output = run_here(cwd, script, "--seed", SEED, *flags)
    return {
        "output": output,
        "gradients": [gradient for _, gradient in first],
        "weights": [[p.detach() for p in parameters(optimizer)] for optimizer in optimizers],
        "learning_rates": [optimizer.param_groups[0]["lr"] for optimizer in optimizers],
        "rng": torch.get_rng_state(),
        "env": {name: make.call_args_list[0].kwargs[name] for name in ("num_envs", "seed")},
    }


@contextlib.contextmanager
def numbers_of_each_environment(rank, size):
    """Noise and first states depend on the number of an environment, however many processes share them."""
    noise, reset, share = torch.Generator().manual_seed(0), envs.VectorEnv.reset, NUM_ENVS // size

    def numbers(rows, width, generator=noise):  # one row or several, time first, of this process's environments
        every = torch.randn(rows // share, NUM_ENVS, width, generator=generator)
        return every[:, rank * share : (rank + 1) * share].reshape(rows, width)

    def first_state(self, **options):
        result = reset(self, **options)
        if self.num_envs == share:
            generator = torch.Generator().manual_seed(1)  # the same states, however often they are asked for
            self.set_state(*(0.1 * numbers(*x.shape, generator) for x in (self.joint_q, self.joint_qd)))
        return result

    with (
        mock.patch.object(torch, "randn_like", lambda x: numbers(*x.shape)),
        mock.patch.object(envs.VectorEnv, "reset", first_state),
    ):
        yield


def jobs(cwd):
    """Folder, script, flags and whose numbers of the runs that two processes make."""
    for script in SCRIPTS:
        yield cwd / script, script, total(3), False
    for script in GRADIENTS:
        yield cwd / f"{script}-gradients", script, ONE_ITERATION, True
    yield cwd / "moving", "ahac", MOVING, False
    yield cwd / "resumed", "rpo", ["--checkpoint", "checkpoint.pt", *total(4)], False


def main():
    """What each of the two processes does."""
    rank, size, results = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), {}
    join = dist.init_process_group
    for k, (cwd, script, flags, same_numbers) in enumerate(jobs(Path.cwd())):
        # torchrun's own meeting point serves only once
        meet = functools.partial(join, init_method=f"file://{cwd}.store", rank=rank, world_size=size) if k > 0 else join
        numbers = numbers_of_each_environment(rank, size) if same_numbers else contextlib.nullcontext()
        with mock.patch.object(dist, "init_process_group", meet), numbers:
            results[cwd.name] = observed(cwd, script, *flags)
    torch.save(results, f"rank{rank}.pt")


if __name__ == "__main__":
    main()
    sys.exit()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of two processes, and what each of them has observed."""
    cwd = tmp_path_factory.mktemp("torchrun")
    # the run that they are to resume has been made by one process
    run_here(cwd, "rpo", "--seed", SEED, *total(2))
    run_dir(cwd).rename(cwd / "resumed")
    launcher = [sys.executable, *"-m torch.distributed.run --standalone --nproc-per-node 2".split(), __file__]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    process = subprocess.Popen(launcher, cwd=cwd, env=ENVIRONMENT, **options)
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        with contextlib.suppress(ProcessLookupError):  # the launcher and its processes have ended
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    return cwd, [torch.load(cwd / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_processes_stay_alike_and_one_of_them_reports(script, two):
    cwd, results = two
    first, second = (result[script] for result in results)
    assert len(first["weights"]) >= 2 and first["learning_rates"] == second["learning_rates"]
    for ours, theirs in zip(first["weights"], second["weights"], strict=True):
        assert all(map(torch.equal, ours, theirs))
    assert f"done: {3 * STEPS} steps" in first["output"] and "step 96/96" in first["output"]
    assert "step" not in second["output"] and "eval" not in second["output"] and "runs" not in second["output"]
    folder = run_dir(cwd / script)
    assert [step for step, _ in events(folder)["charts/SPS"]] == [STEPS, 2 * STEPS, 3 * STEPS]
    # of the observations of all environments, which are shared out, each process with noise of its own
    assert load(folder / "checkpoint.pt")["normalizer"]["count"] == 1 + 3 * STEPS
    for rank, result in enumerate(results):
        assert result[script]["env"] == {"num_envs": 4, "seed": 2 * SEED + rank}
    assert not torch.equal(first["rng"], second["rng"])


@pytest.mark.parametrize("script", GRADIENTS)
def test_two_processes_compute_the_gradients_of_one(script, two, tmp_path):
    cwd, results = two
    name = f"{script}-gradients"
    with numbers_of_each_environment(0, 1):
        whole = observed(tmp_path / name, script, *ONE_ITERATION)
    assert len(whole["gradients"]) >= 2
    shares = [result[name] for result in results]
    for ours, *theirs in zip(*(result["gradients"] for result in (whole, *shares)), strict=True):
        # sums of float32 numbers in another order
        assert ours.norm() > 0 and all((x - ours).norm() < 1e-4 * ours.norm() for x in theirs)
    ours, theirs = (load(run_dir(folder / name) / "checkpoint.pt")["normalizer"] for folder in (tmp_path, cwd))
    for key, x in ours.items():
        assert torch.allclose(x, theirs[key], rtol=1e-5, atol=1e-6), key


def test_a_horizon_moves_alike_in_all_processes(two):
    """They measure the stiffness of other environments; the mean of all decides."""
    cwd, (first, second) = two
    for ours, theirs in zip(first["moving"]["weights"], second["moving"]["weights"], strict=True):
        assert all(map(torch.equal, ours, theirs))
    log = events(run_dir(cwd / "moving"))
    lengths = [int(length) for _, length in log["charts/horizon"]]
    assert set(lengths[:11]) == {4} and len(set(lengths[11:])) > 1
    assert log["charts/horizon"][-1][0] == NUM_ENVS * sum(lengths) == 16 * STEPS


def test_a_run_goes_on_with_another_number_of_processes(two, tmp_path):
    cwd, results = two
    assert "step 96/128" in results[0]["resumed"]["output"]
    assert load(cwd / "resumed" / "checkpoint.pt")["iteration"] == 4
    assert all(map(torch.equal, *(result["resumed"]["weights"][0] for result in results)))
    # and that of two processes with one
    checkpoint = run_dir(cwd / "rpo") / "checkpoint.pt"
    output = run_here(tmp_path, "rpo", "--checkpoint", checkpoint, *total(4))
    assert "step 128/128" in output and "step 96/" not in output
    assert load(checkpoint)["env"]["joint_q"].shape[0] == NUM_ENVS


def test_environments_must_divide_evenly(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    output = run_here(tmp_path, "rpo", *total(1), expect=2)
    assert output == "error: --num-envs: expected a multiple of the 3 processes, got 8\n"
    assert not (tmp_path / "runs").exists()
