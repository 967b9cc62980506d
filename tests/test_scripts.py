"""Every script as a user runs it, in tiny sizes: whole runs, kill and resume, Ctrl-C, flags, NaN, and its text."""

import ast
import contextlib
import dataclasses
import importlib
import itertools
import math
import re
import shutil
import signal
import subprocess
import sys
import time
import types
import typing
from functools import cache

import pytest
import torch
import tyro
from running import CARTPOLE, SCRIPTS, events, path, run_here, state_of_this_process

import envs
from benchmarks.collect import is_finished
from benchmarks.provenance import steps_of
from benchmarks.tiny import (
    CLOCKS,
    STEPS,
    assert_same,
    assert_same_training,
    iterations,
    load,
    run,
    run_dir,
    start,
    total,
)

ANALYTIC = ("rpo", "shac", "sapo", "ahac", "gippo")  # with the simulator's gradient
RELATIVES = ("rpo", "shac", "sapo", "ahac")
OFF_POLICY = ("sac", "fasttd3")
TOTAL = 8 * STEPS  # of a whole run
# RPO's first ant falls in the fifth iteration; SHAC's stands for 1,000 steps of an evaluation
ROBOTS = dict.fromkeys(SCRIPTS, "ant") | dict.fromkeys(("shac", "ahac"), "hopper")


@pytest.fixture(scope="module", params=SCRIPTS)
def whole(request, tmp_path_factory):
    """A script, what it prints in a run of 8 iterations, evaluated on the way, and its run folder."""
    cwd = tmp_path_factory.mktemp(request.param)
    output = run_here(cwd, request.param, "--env-id", ROBOTS[request.param], "--seed", 3, *total(8), "--eval-freq", 5)
    return request.param, output, run_dir(cwd)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The checkpoint of a short run by the script asked for; nobody writes to its folder."""
    made = {}

    def checkpoint(script):
        if script not in made:
            cwd = tmp_path_factory.mktemp(f"finished-{script}")
            run_here(cwd, script, *total(2))
            made[script] = run_dir(cwd) / "checkpoint.pt"
            time.sleep(1.0)  # the logs of two processes are read in the order of the seconds in their names
        return made[script]

    return checkpoint


@pytest.fixture
def go_on(finished, tmp_path):
    """Resumes a copy of such a run for two more iterations: what it prints, and its folder."""

    def resume(script, *flags):
        folder = tmp_path / f"{script}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(finished(script).parent, folder)
        return run_here(tmp_path, script, "--checkpoint", folder / "checkpoint.pt", *total(4), *flags), folder

    return resume


def evaluations(output):
    return [line for line in output.splitlines() if line.startswith("eval/")]


# whole runs
def test_a_whole_run(whole):
    script, output, folder = whole
    assert re.fullmatch(rf"{ROBOTS[script]}__{script}_continuous__3__\d+", folder.name)
    assert sorted(file.name for file in folder.glob("*"))[0] == "checkpoint.pt" and len(list(folder.glob("*"))) == 2
    assert output.count("eval/episodic_return") == output.count("eval/deterministic_episodic_return") == 2
    steps = [int(step.replace(",", "")) for step in re.findall(r"^step ([\d,]+)/256 ", output, re.MULTILINE)]
    assert steps == [*range(STEPS, TOTAL + 1, STEPS)]
    assert f"runs/{folder.name}" in output and f"done: {TOTAL} steps" in output
    state = load(folder / "checkpoint.pt")
    assert (state["script"], state["iteration"]) == (path(script).name, 8)
    assert state["normalizer"]["count"] == 1 + TOTAL  # every observation that the policy acted on, and an imaginary one
    for name, value in state["args"].items():  # the table shows what is in use, the task's defaults included
        assert f"    {name}: {value}\n" in output and (value is not None or name == "checkpoint")


def test_the_log_of_a_whole_run(whole):
    script, _, folder = whole
    log = events(folder)
    own = {
        "rpo": "losses/entropy losses/clipfrac losses/ratio_max losses/effective_sample_ratio",
        "sapo": "losses/entropy losses/alpha",
        "ahac": "charts/horizon charts/horizon_dual charts/stiffness losses/critic_passes",
        "gippo": "losses/entropy losses/alpha losses/out_of_range_ratio losses/clipfrac losses/ratio_max",
        "ppo": "losses/entropy losses/clipfrac losses/ratio_max losses/effective_sample_ratio",
        "reppo": "losses/entropy losses/clipfrac losses/alpha losses/beta losses/aux_loss losses/target_clip_frac",
        "sac": "losses/entropy losses/alpha losses/q_value losses/approx_kl",
        "fasttd3": "losses/q_value losses/q_at_the_ends losses/saturation charts/noise_std",
    }
    tags = """charts/episodic_return charts/episodic_length charts/SPS charts/learning_rate charts/diverged
        losses/value_loss losses/actor_grad_norm losses/critic_grad_norm
        time/rollout time/actor time/critic"""
    tags += " losses/action_grad_norm losses/nonfinite_action_grads time/backward" if script in ANALYTIC else ""
    tags += " losses/explained_variance losses/approx_kl" if script not in OFF_POLICY else ""
    every = [*range(STEPS, TOTAL + 1, STEPS)]
    for tag in f"{tags} {own.get(script, '')}".split():
        steps = [step for step, _ in log[tag]]
        # the first updates wait for the buffer
        assert steps == (every[1:] if script in OFF_POLICY and len(steps) == 7 else every), tag
        assert tag.startswith("charts/episodic") or all(math.isfinite(value) for _, value in log[tag]), tag
    assert all(value > 0 for _, value in log["losses/actor_grad_norm"])
    for tag in ("episodic_return", "return_std", "episodic_length"):
        for mode in ("eval/", "eval/deterministic_"):
            assert [step for step, _ in log[mode + tag]] == [5 * STEPS, TOTAL]


def test_the_learning_rate_and_the_optimisers(whole):
    script, _, folder = whole
    log, state = events(folder), load(folder / "checkpoint.pt")
    if script in RELATIVES:
        k = torch.arange(8) / 8
        rates = 5e-4 * 0.02**k if script == "rpo" else 2e-3 + (1e-5 - 2e-3) * k
        assert [rate for _, rate in log["charts/learning_rate"]] == pytest.approx(rates.tolist())
    usual, short = ((0.9, 0.999), 1e-8, 0.01), ((0.7, 0.95), 1e-8, 0.01)
    settings = {"ppo": 2 * [((0.9, 0.999), 1e-5, 0.01)], "reppo": 2 * [((0.9, 0.999), 1e-8, 0.0)]}
    settings |= {"sac": [usual, usual], "gippo": [usual, short], "fasttd3": 2 * [((0.9, 0.999), 1e-8, 0.1)]}
    settings = dict(zip(("actor_optimizer", "critic_optimizer"), settings.get(script, [short, short])))
    third = {"sapo": short, "gippo": short, "sac": usual, "reppo": ((0.9, 0.999), 1e-8, 0.0)}
    settings |= {"dual_optimizer" if script == "reppo" else "alpha_optimizer": third[script]} if script in third else {}
    assert settings.keys() == {name for name in state if name.endswith("optimizer")}
    for name, expected in settings.items():
        (group,) = state[name]["param_groups"]
        assert (tuple(group["betas"]), group["eps"], group["weight_decay"]) == expected, name


def test_an_evaluation_is_that_of_envs_evaluate(whole):
    script, output, folder = whole
    log = events(folder)
    for mode, deterministic in (("eval/", False), ("eval/deterministic_", True)):
        policy, args = envs.load_policy(folder / "checkpoint.pt", deterministic)
        with state_of_this_process():
            envs.use_onednn()  # as the script does: the same bits
            returns, lengths = envs.evaluate(envs.make(args["env_id"], args["num_eval_envs"]), policy, args["seed"])
        expected = {"episodic_return": returns.mean(), "return_std": returns.std(correction=0)}
        for tag, value in (expected | {"episodic_length": lengths.mean()}).items():
            assert log[mode + tag][-1] == (TOTAL, pytest.approx(value.item(), rel=1e-6)), tag
    again = run_here(folder.parent, script, "--checkpoint", folder / "checkpoint.pt", "--eval-only")
    assert evaluations(again) == evaluations(output)[-2:] and "step " not in again
    assert len(list(folder.glob("*"))) == 2  # it leaves nothing


KILLED = """
import os, signal, torch
save, calls = torch.save, []
def save_and_die(content, file):
    calls.append(file)
    save(content, file)
    if len(calls) == 6:
        os.truncate(file.name, os.path.getsize(file.name) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = save_and_die
"""


def test_kill_and_resume_is_bit_identical(whole, tmp_path):
    script, _, uninterrupted = whole
    # killed while it writes the checkpoint of the sixth iteration, whose scalars are in the log
    run(tmp_path, script, "--env-id", ROBOTS[script], "--seed", 3, *total(8), code=KILLED, expect=-signal.SIGKILL)
    folder = run_dir(tmp_path)
    saved = load(folder / "checkpoint.pt")
    assert saved["iteration"] == 5 and (saved["episodes"] or script != "rpo")
    time.sleep(1.0)  # the logs of two processes are read in the order of the seconds in their names
    output = run_here(tmp_path, script, "--checkpoint", folder / "checkpoint.pt")
    assert re.findall(r"^step (\d+)/", output, re.MULTILINE) == ["192", "224", "256"]
    # networks, optimisers, normaliser, environment, random numbers; the other run has been evaluated on the way
    ours, theirs = load(folder / "checkpoint.pt"), load(uninterrupted / "checkpoint.pt")
    assert {"actor", "critic", "actor_optimizer", "critic_optimizer", "normalizer", "env", "rng"} <= set(ours)
    assert ours["args"].pop("checkpoint") and theirs["args"].pop("eval_freq") and ours["args"].pop("eval_freq") == 0
    assert theirs["args"].pop("checkpoint") is None
    assert_same(ours, theirs, script)
    ours, theirs = events(folder), events(uninterrupted)
    for tag in theirs.keys() - {*CLOCKS}:
        assert_same(ours[tag], theirs[tag][-1:] if tag.startswith("eval/") else theirs[tag], tag)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(finished, tmp_path):
    states = [load(finished("rpo"))]
    for seed in (1, 2):
        run_here(tmp_path / str(seed), "rpo", *total(2), "--seed", seed)
        states.append(load(run_dir(tmp_path / str(seed)) / "checkpoint.pt"))
    first, same, other = states
    assert_same(first, same, "rpo")
    assert_all_different(first, other)


def assert_all_different(a, b):
    for name in ("actor", "critic", "normalizer", "env", "rng"):
        with pytest.raises(AssertionError):
            assert_same(a[name], b[name], name)


@pytest.mark.parametrize("env_id", [env_id for env_id in envs.ENV_IDS if env_id not in ("ant", "cartpole")])
def test_every_task_trains_and_evaluates(tmp_path, env_id):
    film = ["--capture-video"] if env_id == "hopper" else []
    output = run_here(tmp_path, "rpo", "--env-id", env_id, "--num-eval-envs", 1, *total(3), *film)
    assert "eval/deterministic_episodic_return" in output and f"done: {3 * STEPS} steps" in output
    norms = events(run_dir(tmp_path))["losses/actor_grad_norm"]
    assert norms and all(0 < norm < math.inf for _, norm in norms)
    video = [*run_dir(tmp_path).glob(f"video-{3 * STEPS}.*")]
    assert len(video) == len(film) and all(str(file.relative_to(tmp_path)) in output for file in video)


# Ctrl-C, and going on
def test_ctrl_c_loses_at_most_the_current_iteration(tmp_path):
    process = start(tmp_path, "rpo", *CARTPOLE, *total(10**6))
    try:
        while iterations(tmp_path) < 3:
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
    assert "Traceback" not in (tmp_path / "log").read_text()
    saved = load(run_dir(tmp_path) / "checkpoint.pt")["iteration"]
    assert iterations(tmp_path) - saved in (0, 1)


def test_a_finished_run_says_so_and_a_larger_budget_goes_on(finished, tmp_path):
    folder = tmp_path / "moved"  # the checkpoint alone is enough
    folder.mkdir()
    shutil.copy(finished("rpo"), folder)
    output = run_here(tmp_path, "rpo", "--checkpoint", "moved/checkpoint.pt")
    assert "the run is finished: it is only evaluated; a larger --total-timesteps continues it" in output
    assert not re.search("^step ", output, re.MULTILINE) and len(evaluations(output)) == 2
    output = run_here(tmp_path, "rpo", "--checkpoint", "moved/checkpoint.pt", *total(4))
    assert "is finished" not in output
    assert re.findall(r"^step (\d+)/128 ", output, re.MULTILINE) == ["96", "128"]
    state = load(folder / "checkpoint.pt")
    assert state["iteration"] == 4 and state["args"]["total_timesteps"] == 4 * STEPS
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_learning_rates_beside_a_checkpoint_take_effect(script, finished, go_on):
    # half of each, also where it ends: every schedule is half as high
    rates = {name: value for name, value in load(finished(script))["args"].items() if name.endswith("learning_rate")}
    halved = [f"--{name.replace('_', '-')}={0.5 * value}" for name, value in rates.items()]
    plain, half = (load(go_on(script, *flags)[1] / "checkpoint.pt") for flags in ([], halved))
    optimizers = [name for name in plain if name.endswith("optimizer")]
    assert len(optimizers) >= 2
    for name in optimizers:
        before, after = (state[name]["param_groups"][0]["lr"] for state in (plain, half))
        # PPO and GI-PPO adapt theirs
        assert after == pytest.approx(0.5 * before) or (script in ("ppo", "gippo") and after != before), name
    assert {name: half["args"][name] for name in rates} == {name: 0.5 * value for name, value in rates.items()}


def test_a_seed_beside_a_checkpoint_gives_other_random_numbers(go_on):
    flags = ([], ["--seed", 2], ["--seed", 2])
    same, other, again = (load(go_on("rpo", *seed)[1] / "checkpoint.pt") for seed in flags)
    del other["args"], again["args"]  # they name their own checkpoints
    assert_same(other, again, "rpo")
    assert_all_different(same, other)


def test_a_temperature_beside_a_checkpoint_takes_effect(go_on):
    alphas = {}
    for flags in ((), ("--alpha", 0.25)):
        _, folder = go_on("sapo", *flags)
        alphas[flags] = [value for _, value in events(folder)["losses/alpha"]]
    # two iterations before, two after
    assert alphas[()] == pytest.approx([1.0] * 4, abs=0.1) and len(set(alphas[()])) == 4
    first, second, third, fourth = alphas["--alpha", 0.25]
    assert [first, second] == alphas[()][:2] and third == 0.25 != fourth == pytest.approx(0.25, abs=0.025)


@pytest.mark.parametrize("script", SCRIPTS)
def test_flags_on_which_the_state_of_a_run_depends_are_refused_beside_its_checkpoint(script, finished, tmp_path):
    for flag, value, ours in (
        ("env-id", "ant", "cartpole"),
        ("exp-name", "x", f"{script}_continuous"),
        ("num-envs", 16, "8"),
        ("num-steps", 8, "4"),
    ):
        flags = ["--checkpoint", finished(script), f"--{flag}", value]
        output = run_here(tmp_path, script, *flags, *total(9), expect=2)
        assert output == f"error: --{flag}: expected {ours}, as in --checkpoint, got {value}\n"


def test_two_runs_that_start_in_the_same_second_do_not_share_a_folder(tmp_path, monkeypatch):
    for start_again in (False, True):
        ticks = itertools.count()
        monkeypatch.setattr(time, "time", lambda ticks=ticks: 1e9 + 1e-3 * next(ticks))
        with pytest.raises(FileExistsError) if start_again else contextlib.nullcontext():
            run_here(tmp_path, "rpo", *total(1))
    assert load(run_dir(tmp_path) / "checkpoint.pt")["iteration"] == 1


def test_wandb_gets_the_id_of_the_run_again_when_it_is_resumed(go_on, monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **options: calls.append(options)))
    _, folder = go_on("rpo", "--track")
    (call,) = calls
    assert call["id"] == folder.name and call["resume"] == "allow" and call["sync_tensorboard"]
    assert call["config"]["env_id"] == "cartpole"


@pytest.mark.parametrize("flags, new_episodes", [((), False), (("--seed", 7), True)])
@pytest.mark.parametrize("script", OFF_POLICY)
def test_no_window_crosses_into_the_new_episodes_of_a_resumed_run(script, go_on, flags, new_episodes):
    _, folder = go_on(script, *flags)
    truncated = load(folder / "checkpoint.pt")["replay"]["truncated"]  # four iterations of four steps
    assert truncated[7].all() == new_episodes and not truncated[[6, 8, 15]].any()


ADAPTED = ("--horizon-min", 2, "--horizon-max", 8, "--horizon-lr", 50, "--total-timesteps", 28 * STEPS)


def test_a_horizon_that_changes_is_resumed_bit_identically_and_the_budget_kept(tmp_path):
    folders = {}
    for name, options in (("whole", {}), ("killed", {"code": KILLED.replace("== 6", "== 16"), "expect": -9})):
        run(tmp_path / name, "ahac", *CARTPOLE, *ADAPTED, **options)
        folders[name] = run_dir(tmp_path / name)
    assert load(folders["killed"] / "checkpoint.pt")["iteration"] == 15
    time.sleep(1.0)  # the logs of two processes are read in the order of the seconds in their names
    run_here(tmp_path, "ahac", "--checkpoint", folders["killed"] / "checkpoint.pt")
    assert_same_training(*folders.values())
    state, log = load(folders["killed"] / "checkpoint.pt"), events(folders["whole"])
    lengths = [value for _, value in log["charts/horizon"]]
    assert set(lengths[:11]) == {4} and len(set(lengths[11:])) > 1  # ten iterations make the limit
    steps = [step for step, _ in log["charts/horizon"]]
    assert [8 * length for length in lengths] == [b - a for a, b in zip([0, *steps], steps)]
    assert steps[-1] == steps_of(state) == 28 * STEPS  # the last rollout is cut
    assert is_finished(folders["killed"]) and state["iteration"] == len(steps)


# flags
@pytest.mark.parametrize(
    "script, flags, sentence",
    [
        ("rpo", "--seed -1", "--seed: expected 0 to 4294967295, got -1"),
        ("rpo", "--num-envs 0", "--num-envs: expected 1 to 1000000, got 0"),
        ("rpo", "--gamma 1.5", "--gamma: expected 0.0 to 1.0, got 1.5"),
        ("rpo", "--learning-rate 0", "--learning-rate: expected 1e-12 to 1.0, got 0.0"),
        ("rpo", "--kl-coef nan", "--kl-coef: expected 0.0 to 1000000.0, got nan"),
        (
            "rpo",
            "--total-timesteps 5",
            "--total-timesteps: expected one rollout, --num-envs 8 x --num-steps 4, or more, got 5",
        ),
        ("rpo", "--eval-only", "--eval-only: expected --checkpoint beside it, the run to evaluate, got none"),
        ("shac", "--max-action-grad-norm 0", "--max-action-grad-norm: expected 1e-12 to inf, got 0.0"),
        (
            "ppo",
            "--num-minibatches 33",
            "--num-minibatches: expected at most 32, the steps of a rollout (--num-envs 8 x --num-steps 4), got 33",
        ),
        ("sapo", "--alpha 0", "--alpha: expected 1e-12 to 1000000.0, got 0.0"),
        (
            "ahac",
            "--horizon-max 3",
            "--horizon-min: expected --horizon-min 4 <= --num-steps 4 <= --horizon-max 3, got 4",
        ),
        ("fasttd3", "--noise-min 0.5", "--noise-min: expected --noise-min 0.5 <= --noise-max 0.4, got 0.5"),
    ],
)
def test_a_bad_flag_ends_a_script_with_one_sentence(tmp_path, script, flags, sentence):
    assert run_here(tmp_path, script, *total(1), *flags.split(), expect=2) == f"error: {sentence}\n"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--env-id hoper", ["--env-id", "hoper", "hopper"]),
        ("--no-such-flag 1", ["--no-such-flag"]),
        ("--seed one", ["--seed", "one"]),
    ],
)
def test_a_flag_that_is_none_and_a_value_of_another_type_are_refused(tmp_path, flags, words):
    output = run_here(tmp_path, "rpo", *flags.split(), expect=2)
    assert all(word in output for word in words) and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_number_refuses_what_it_cannot_mean(script, tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(tyro, "cli", lambda Args, default=None, **_: dataclasses.replace(default or Args(), **given))
    numbers = {}
    for field in dataclasses.fields(importlib.import_module(f"{script}_continuous").Args):
        kinds = typing.get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
        numbers |= {field.name: [-1, -(10**13), 10**13]} if int in kinds else {}
        numbers |= {field.name: [-1e30, math.nan, -math.inf]} if float in kinds else {}
    assert len(numbers) > 10
    if "v_min" in numbers:
        numbers["v_min"] = [1.0, math.nan, -math.inf]  # this one has to be negative or 0
    for name, refused in numbers.items():
        for value in refused:
            given = {name: value}
            output = run_here(tmp_path, script, expect=2)
            beginning, end = f"error: --{name.replace('_', '-')}: expected ", f", got {value}\n"
            assert output.startswith(beginning) and output.endswith(end) and output.count("\n") == 1, output
    assert not (tmp_path / "runs").exists()


def test_files_that_are_no_checkpoint_of_the_script_are_refused(finished, tmp_path):
    (tmp_path / "corrupt.pt").write_bytes(b"not a checkpoint")
    (tmp_path / "cut.pt").write_bytes(finished("rpo").read_bytes()[:-1000])
    torch.save({"script": "rpo_continuous.py", "args": {"horizon": 32}}, tmp_path / "foreign.pt")
    changed = torch.load(finished("rpo"), weights_only=True)
    changed["args"]["horizon"] = 32
    torch.save(changed, tmp_path / "changed.pt")
    ours = [("rpo", name) for name in ("missing.pt", "corrupt.pt", "cut.pt", "foreign.pt")]
    for script, name in (*ours, ("shac", finished("rpo"))):
        output = run_here(tmp_path, script, "--checkpoint", name, expect=2)
        assert output.startswith("error: --checkpoint: expected a checkpoint.pt") and str(name) in output
        assert len(output.splitlines()) == 1
    output = run_here(tmp_path, "rpo", "--checkpoint", "changed.pt", expect=2)
    assert output.startswith("error: --checkpoint: ") and "horizon" in output
    assert not (tmp_path / "runs").exists()


# numbers that are not finite
BROKEN = """
import torch, envs
detach, calls = envs.VectorEnv.detach, []
actors, create = [], torch.optim.AdamW.__init__
def remember(self, parameters, *args, **options):
    actors.append([*parameters])
    create(self, actors[-1], *args, **options)
def spoil(self):
    calls.append(self)
    if len(calls) == 3:  # at the beginning of the third iteration
        actors[0][-1].data.fill_(torch.nan)
    return detach(self)
torch.optim.AdamW.__init__, envs.VectorEnv.detach = remember, spoil
"""


def assert_finite(state):
    for name in ("actor", "critic", "normalizer"):
        assert all(x.isfinite().all() for x in state[name].values()), name


def test_networks_that_are_not_finite_end_the_run(tmp_path):
    output = run(tmp_path, "rpo", *CARTPOLE, *total(8), code=BROKEN, expect=1)
    assert output.splitlines()[-1].startswith("ValueError: action: expected numbers, got NaN")
    state = load(run_dir(tmp_path) / "checkpoint.pt")
    assert state["iteration"] == 2
    assert_finite(state)


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_gradient_that_is_not_finite_ends_the_run_before_it_is_learned_from(script, which, tmp_path, monkeypatch):
    create, step, optimizers, calls = torch.optim.Optimizer.__init__, envs.VectorEnv.step, [], []

    def remember(self, parameters, defaults):
        parameters, number = [*parameters], len(optimizers)
        create(self, parameters, defaults)
        optimizers.append(self)
        # from the fifth iteration on the gradient of one parameter of one optimiser is NaN
        parameters[-1].register_hook(lambda grad: grad * torch.nan if number == which and len(calls) > 16 else grad)

    monkeypatch.setattr(torch.optim.Optimizer, "__init__", remember)
    monkeypatch.setattr(envs.VectorEnv, "step", lambda self, action: calls.append(self) or step(self, action))
    if which > 1 and script in ("rpo", "shac", "ahac", "ppo", "fasttd3"):
        run_here(tmp_path, script, *total(3))
        assert len(optimizers) == 2  # it has no third one
        return
    # so that the price of KL, once NaN, does not reach the actor's gradient
    flags = ["--kl-mode", "value"] if which > 1 and script == "reppo" else []
    with pytest.raises(RuntimeError, match="non-finite"):
        run_here(tmp_path, script, *total(20), *flags)
    state = load(run_dir(tmp_path) / "checkpoint.pt")
    assert state["iteration"] == 4
    assert_finite(state)


@pytest.mark.parametrize("script", RELATIVES)
def test_action_gradients_that_are_not_finite_are_dropped_and_counted(script, tmp_path, monkeypatch):
    step, calls = envs.VectorEnv.step, []

    def spoiled(self, action):
        calls.append(self)
        if 4 < len(calls) <= 8 and action.requires_grad:  # in the second iteration, for environment 2
            action.register_hook(lambda grad: torch.where(torch.arange(8)[:, None] == 2, torch.nan, grad))
        return step(self, action)

    monkeypatch.setattr(envs.VectorEnv, "step", spoiled)
    run_here(tmp_path, script, *total(3))
    log = events(run_dir(tmp_path))
    assert [value for _, value in log["losses/nonfinite_action_grads"]] == [0, 4, 0]
    assert all(0 < value < math.inf for _, value in log["losses/actor_grad_norm"])
    assert_finite(load(run_dir(tmp_path) / "checkpoint.pt"))


@pytest.mark.parametrize("script", RELATIVES)
def test_long_rows_of_the_action_gradient_are_shortened(script, tmp_path):
    run_here(tmp_path, script, *total(1), "--max-action-grad-norm", 1e-5)
    # all rows are longer than this in the first iteration: their mean length is that of each
    assert events(run_dir(tmp_path))["losses/action_grad_norm"] == [(STEPS, pytest.approx(1e-5, rel=1e-4))]


@pytest.mark.parametrize("num_updates, critic, actor", [(1, 9, 4), (2, 18, 9), (8, 72, 36)])
def test_fasttd3_updates_its_actor_after_every_second_update_of_its_critics(num_updates, critic, actor, tmp_path):
    run_here(tmp_path, "fasttd3", *total(4), "--num-updates", num_updates, "--tau", 1)
    state = load(run_dir(tmp_path) / "checkpoint.pt")
    # 16 steps of all environments; from the eighth on the buffer holds enough of them
    for name, expected in (("critic_optimizer", critic), ("actor_optimizer", actor)):
        assert {moments["step"].item() for moments in state[name]["state"].values()} == {expected}
    assert_same(state["target_critic"], state["critic"], "tau 1")


# returns of cartpole's are about 0 and its values need no wide support here
BANDIT = {"fasttd3": "--gamma 0.5 --reward-scale 1 --v-min -2 --v-max 1 --critic-learning-rate 3e-3 --num-updates 4"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_learns(script, tmp_path, monkeypatch):
    """The action 0.5, in 40 tiny iterations: -(a - 0.5)^2 at each of six steps, -1.5 for the first policies."""
    task = envs.TASKS["cartpole"]
    for name, value in (("max_episode_steps", 6), ("substeps", 1), ("mass_matrix_interval", 1)):
        monkeypatch.setattr(task, name, value)
    monkeypatch.setattr(task, "reward", lambda self, obs, action: -((action - 0.5) ** 2).sum(-1))
    output = run_here(tmp_path, script, *total(40), *BANDIT.get(script, "").split())
    assert float(re.search(r"eval/deterministic_episodic_return (\S+)", output)[1]) > -1.0


@pytest.mark.parametrize("script", OFF_POLICY)
def test_a_checkpoint_with_a_buffer_is_written_now_and_then_and_at_the_end(script, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(envs, "save_checkpoint", lambda state, folder: saved.append(state["iteration"]))
    run_here(tmp_path, script, *total(5), "--checkpoint-freq", 3)
    assert saved == [3, 5]


@pytest.mark.parametrize("script", SCRIPTS)
def test_environments_that_have_blown_up_are_counted_in_the_log(script, tmp_path, monkeypatch):
    step, calls = envs.VectorEnv.step, []

    def spoiled(self, action):
        calls.append(self)
        if len(calls) == 6:  # in the second iteration
            self.joint_q = torch.where(torch.arange(8)[:, None] == 2, torch.nan, self.joint_q)
        return step(self, action)

    monkeypatch.setattr(envs.VectorEnv, "step", spoiled)
    run_here(tmp_path, script, *total(3))
    assert [value for _, value in events(run_dir(tmp_path))["charts/diverged"]] == [0, 1, 1]


@pytest.mark.parametrize("script, flags", [("sac", ["--tau", 1]), ("gippo", ["--target-critic-keep", 0])])
def test_target_critics_move_towards_the_critics(script, flags, tmp_path):
    run_here(tmp_path, script, *total(4), *flags)
    state = load(run_dir(tmp_path) / "checkpoint.pt")
    assert_same(state["target_critic"], state["critic"], "all of the way")


def test_reppo_warns_once_of_targets_outside_its_support(tmp_path):
    assert "warning: " not in run_here(tmp_path / "wide", "reppo", *total(2))
    output = run_here(tmp_path / "narrow", "reppo", *total(3), "--v-min", -1e-3, "--v-max", 1e-3)
    assert output.count("of the targets are outside --v-min -0.001 .. --v-max 0.001; widen it") == 1


def test_the_temperature_of_sapo_stays_where_it_is_told_to(tmp_path):
    run_here(tmp_path, "sapo", *total(3), "--no-autotune", "--alpha", 0.25)
    assert {value for _, value in events(run_dir(tmp_path))["losses/alpha"]} == {0.25}


# the text of the scripts
BUDGETS = {"shac": 450, "rpo": 510, "ppo": 510, "sapo": 510, "sac": 510, "gippo": 580, "reppo": 620}
BUDGETS |= {"ahac": 560, "fasttd3": 560}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_short(script):
    assert len(path(script).read_text().splitlines()) <= BUDGETS[script]


def test_functions_of_the_environments_are_short():
    """At most 30 lines each, docstring included."""
    files = path("rpo").parent.glob("envs/**/*.py")
    nodes = [(file, node) for file in files for node in ast.walk(ast.parse(file.read_text()))]
    found = [(file.name, x.name, x.end_lineno - x.lineno + 1) for file, x in nodes if isinstance(x, ast.FunctionDef)]
    assert len(found) > 300 and [place for place in found if place[-1] > 30] == []


@pytest.mark.skipif(shutil.which("diff") is None, reason="needs diff")
@pytest.mark.parametrize("a, b, limit", (("shac", "rpo", 200), ("shac", "sapo", 120), ("shac", "ahac", 200)))
def test_siblings_differ_in_the_algorithm(a, b, limit):
    result = subprocess.run(["diff", path(a), path(b)], capture_output=True, text=True)
    assert len(re.findall("^[<>]", result.stdout, re.MULTILINE)) < limit


SHARED = {  # functions and classes, and the scripts in which they are the same
    "ObsNormalizer": [script for script in SCRIPTS if script != "gippo"],  # GI-PPO gathers rows of other kinds, too
    "evaluate": SCRIPTS,
    **dict.fromkeys(("layer_init", "mlp", "Actor", "Critic", "limit_rows"), RELATIVES),
    **dict.fromkeys(("td_lambda_targets", "critic_loss", "gaussian_kl"), RELATIVES),
    "squashed_entropy": ("rpo", "sapo"),
    "Temperature": ("sapo", "sac"),
    "Replay": OFF_POLICY,
}
PLUMBING = (  # beginnings of the statements of the main block that are the same in all scripts
    "signal.signal",
    "run_dir = ",
    "use_cuda = ",
    "device = ",
    "rank, world_size = ",
    "if world_size > 1:\n        dist.",
    "machine = ",
    "torch.manual_seed",
    "seed = ",
    "env = ",
    "env.reset",
    "num_threads = ",
    "num_obs, num_actions = ",
    "start = ",
    "episodes = ",
    "if checkpoint and world_size == 1",
    "if args.eval_only",
    "if rank == 0",
    "start_time = ",
    "if rank > 0",
    "global_step = ",
    "mean_return, mean_length = ",
    "sps = ",
    "left = ",
    "progress = ",
    "print(",
    "if args.eval_freq",
    "for tag, value in metrics",
    "writer.flush",
    'parts |= {"actor_optimizer"',
    'checkpoint |= {"script"',
    'checkpoint |= {"iteration"',
    'checkpoint |= {"rng"',
    "envs.save_checkpoint",
)

AHAC = {  # its iterations have different lengths: what it says instead of the others
    ', "horizon": horizon}, checkpoint)': "}, checkpoint)",
    "video-{int(horizon.total_steps) * args.num_envs}": "video-{start * args.batch_size}",
    "    first_step = int(horizon.total_steps) * args.num_envs\n": "",
    "if first_step + args.num_envs > args.total_timesteps:": "if start >= args.num_iterations:",
    "(global_step - first_step) / (": "(iteration - start) * args.batch_size / (",
    "(args.total_timesteps - global_step) / sps": "(args.num_iterations - iteration) * args.batch_size / sps",
    "({global_step / args.total_timesteps:.0%})": "({iteration / args.num_iterations:.0%})",
    "and not is_last:": "and iteration < args.num_iterations:",
    "first_step": "start * args.batch_size",
    "        episodes.extend": "        global_step = iteration * args.batch_size\n        episodes.extend",
    "        for tag, value in evaluate": (
        "        global_step = max(start, args.num_iterations) * args.batch_size\n        for tag, value in evaluate"
    ),
}


@pytest.mark.parametrize("name", SHARED)
def test_functions_that_scripts_share_are_the_same_word_for_word(name):
    texts = set()
    for script in SHARED[name]:
        source = path(script).read_text()
        (node,) = (node for node in ast.parse(source).body if getattr(node, "name", None) == name)
        texts.add(ast.get_source_segment(source, node))
    assert len(texts) == 1, texts


@pytest.mark.parametrize("beginning", PLUMBING)
def test_what_stands_around_the_algorithms_is_the_same_word_for_word(beginning):
    texts = {script: [text for text in statements(script) if text.startswith(beginning)] for script in SCRIPTS}
    assert texts["rpo"]
    assert {script: text for script, text in texts.items() if text != texts["rpo"]} == {}


@pytest.mark.parametrize("script", SCRIPTS)
def test_processes_share_gradients_and_batches(script):
    """Of all that is learned, averaged as test_torchrun.py checks it of most scripts."""
    source = path(script).read_text()
    (learned,) = re.findall(
        r"for parameter in \((.*)\):\n +parameter.register_post_accumulate_grad_hook\((.*)\)", source
    )
    assert learned[1] == "lambda p: dist.all_reduce(p.grad.div_(world_size))"
    networks = re.findall(r"torch.optim.Adam\w*\((\w+\.parameters\(\))", source)
    assert {f"*{network}" for network in networks} == {*learned[0].split(", ")}
    assert script not in OFF_POLICY or "replay.sample(args.batch_size // world_size, " in source


@cache
def statements(script):
    """The statements of a script's main block and of the loop in it."""
    # SAC calls the product of N and H rollout_size, because its batches come from the replay buffer
    source = path(script).read_text().replace("rollout_size", "args.batch_size")
    source = re.sub(r'\n +replay.data\["truncated"\].*', "", source)  # and beside new episodes it closes the old ones
    source = source.replace('{"env": env, "noise": noise}, checkpoint', '{"env": env}, checkpoint')  # FastTD3
    source = re.sub(r"\n +noise.redraw\(torch.ones_like.*", "", source)  # which draws the noise of an episode once
    for counted_in_steps, counted_in_iterations in AHAC.items() if script == "ahac" else ():
        assert counted_in_steps in source
        source = source.replace(counted_in_steps, counted_in_iterations)
    (main,) = (node for node in ast.parse(source).body if isinstance(node, ast.If))
    (loop,) = (node for node in main.body if isinstance(node, ast.For | ast.While))
    return [ast.get_source_segment(source, node) for node in (*main.body, *loop.body) if node is not loop]
