"""Every flag of every script: beside --checkpoint it takes effect or is refused; what is refused, also of a checkpoint.

A new flag fails test_every_flag_has_its_place until it is given one.
"""

import dataclasses
import importlib
import shutil
import subprocess
import sys
import types

import pytest
import torch
from running import SCRIPTS, path, run_here

import envs
from benchmarks.tiny import ENVIRONMENT, STEPS, assert_same, load, run_dir, total

SOURCES = {script: importlib.import_module(f"{script}_continuous") for script in SCRIPTS}
NAMES = {script: [field.name for field in dataclasses.fields(module.Args)] for script, module in SOURCES.items()}

# what cannot change within a run: it is refused
REFUSED = {"env_id": "ant", "exp_name": "x", "num_envs": 16, "num_steps": 8, "buffer_size": 64, "v_min": -9, "v_max": 9}
REFUSED |= {"num_bins": 9, "hl_gauss": False, "reward_scale": 2.0, "alpha_init": 0.5, "beta_init": 0.5, "num_atoms": 9}
# what changes how the networks are trained, and a value that does so within two tiny iterations
TRAINING = {"seed": 2, "total_timesteps": 999, "learning_rate": 1e-3, "critic_learning_rate": 1e-3, "gamma": 0.5}
TRAINING |= {"final_learning_rate": 1e-3, "td_lambda": 0.5, "gae_lambda": 0.5, "update_epochs": 3, "critic_epochs": 3}
TRAINING |= {"num_minibatches": 4, "surrogate_coef": 9.0, "clip_low": 1e-9, "clip_high": 1e-9, "kl_coef": 9.0}
TRAINING |= {"ent_coef": 3.0, "max_grad_norm": 1e-3, "max_action_grad_norm": 1e-3, "alpha": 0.3, "autotune": False}
TRAINING |= {"alpha_learning_rate": 0.1, "adaptive_lr": False, "target_kl": 1e-9, "norm_adv": False, "clip_coef": 1e-6}
TRAINING |= {"alpha_factor": 1.5, "alpha_epochs": 3, "max_oorr": 1.0, "minibatch_size": 5}
TRAINING |= {"target_critic_keep": 0.9, "dual_learning_rate": 0.1, "weight_decay": 9.0, "num_value_samples": 1}
TRAINING |= {"actor_gradient": "score", "kl_bound": 1e-9, "kl_mode": "full", "kl_estimator": "mc"}
TRAINING |= {"target_entropy_scale": 9.0, "aux_coef": 0.0, "learning_starts": 128, "num_updates": 1}
TRAINING |= {"num_nsteps": 1, "tau": 0.9, "policy_freq": 1, "noise_min": 0.3, "noise_max": 0.9, "target_noise": 0.5}
TRAINING |= {"target_noise_clip": 1e-3}
# what is read only where another flag has a certain value: without it, it is refused
WITH_ANOTHER = {"num_kl_samples": (2, ("--kl-estimator", "mc"))}
# what counts in these tiny runs only beside another flag
BESIDE_ANOTHER = WITH_ANOTHER | {"alpha_interval": (1e-9, ("--max-oorr", 1.0))}
LONG = ("--total-timesteps", 16 * 32)  # the horizon of AHAC stays where it is for ten iterations
FAST = (*LONG, "--horizon-lr", 500)
SOFT, STIFF = ((*FAST, "--stiffness-limit", limit) for limit in (2.0, 0.5))
BESIDE_ANOTHER |= {"horizon_lr": (500.0, (*LONG, "--stiffness-limit", 2.0)), "horizon_dual_lr": (0.1, SOFT)}
BESIDE_ANOTHER |= {"stiffness_limit": (2.0, FAST), "horizon_min": (2, STIFF), "horizon_max": (5, SOFT)}
BESIDE_ANOTHER |= {"critic_tolerance": (1e6, ("--critic-epochs", 6))}
WITHOUT_ANOTHER = {"target_kl": "--no-adaptive-lr", "alpha_learning_rate": "--no-autotune"}
# what does not reach the networks; each has a test of its own here or in test_scripts.py
AROUND = {"cuda", "track", "checkpoint", "checkpoint_freq", "eval_only", "eval_freq", "num_eval_envs", "capture_video"}
COMPUTED = {"batch_size", "num_iterations"}  # no flags, but for the batch_size of SAC and FastTD3
OFF_POLICY = {"batch_size": 8, "learning_rate": 1e-3}


def of_training(script):
    return {
        name: value
        for name, value in (TRAINING | (OFF_POLICY if "buffer_size" in NAMES[script] else {})).items()
        if name in NAMES[script]
    }


def words(name, value):
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{'' if value else 'no-'}{flag}"]
    return [f"--{flag}", value]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The checkpoint of a run of two iterations by the script asked for."""
    made = {}

    def checkpoint(script, *flags):
        if (script, flags) not in made:
            cwd = tmp_path_factory.mktemp(script)
            run_here(cwd, script, *total(2), *flags)
            made[script, flags] = run_dir(cwd) / "checkpoint.pt"
        return made[script, flags]

    return checkpoint


@pytest.fixture(autouse=True)
def tiny_simulations(monkeypatch):
    for name, value in (("max_episode_steps", 6), ("substeps", 2), ("mass_matrix_interval", 2)):
        monkeypatch.setattr(envs.TASKS["cartpole"], name, value)


def resume(folder, checkpoint, script, *flags, expect=0):
    """Two more iterations of a copy of a run: what it prints, and its checkpoint."""
    copy = folder / f"copy{len(list(folder.iterdir()))}"
    copy.mkdir()
    shutil.copy(checkpoint, copy)
    budget = [] if "--total-timesteps" in flags else total(4)
    output = run_here(folder, script, "--checkpoint", copy / "checkpoint.pt", *budget, *flags, expect=expect)
    return output, load(copy / "checkpoint.pt")


def same_training(a, b):
    around = ("args", "env", "process")
    try:
        assert_same(*({name: x for name, x in state.items() if name not in around} for state in (a, b)), "")
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_has_its_place(script):
    known = {*REFUSED, *TRAINING, *BESIDE_ANOTHER, *AROUND, *COMPUTED}
    assert set(NAMES[script]) <= known
    assert known <= set().union(*NAMES.values())


@pytest.mark.parametrize("script", SCRIPTS)
def test_flags_of_the_training_take_effect_beside_a_checkpoint(script, finished, tmp_path):
    _, plain = resume(tmp_path, finished(script), script)
    assert same_training(plain, resume(tmp_path, finished(script), script)[1])
    flags = {name: words(name, value) for name, value in of_training(script).items()}
    for name, (value, others) in BESIDE_ANOTHER.items():
        if name in NAMES[script]:
            _, reference = resume(tmp_path, finished(script), script, *others)
            _, state = resume(tmp_path, finished(script), script, *words(name, value), *others)
            assert not same_training(state, reference), name
    for name, given in flags.items():
        output, state = resume(tmp_path, finished(script), script, *given)
        assert not same_training(state, plain), name
        assert f"    {name}: {state['args'][name]}\n" in output and state["args"][name] == of_training(script)[name]


@pytest.mark.parametrize("script", SCRIPTS)
def test_flags_that_cannot_change_within_a_run_are_refused(script, finished, tmp_path):
    for name, value in REFUSED.items():
        if name in NAMES[script]:
            output, _ = resume(tmp_path, finished(script), script, *words(name, value), expect=2)
            assert output.startswith(f"error: --{name.replace('_', '-')}: expected "), output
            assert ", as in --checkpoint, got " in output and output.count("\n") == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_flags_without_an_effect_are_refused(script, finished, tmp_path):
    for name, (value, _) in WITH_ANOTHER.items():
        if name in NAMES[script]:
            output = run_here(tmp_path, script, *total(2), *words(name, value), expect=2)
            assert output.startswith(f"error: --{name.replace('_', '-')}: expected --") and "no effect" in output
    for name, switch in WITHOUT_ANOTHER.items():
        if name in NAMES[script]:
            output = run_here(tmp_path, script, *total(2), *words(name, TRAINING[name]), switch, expect=2)
            assert output.startswith(f"error: --{name.replace('_', '-')}: expected --") and "no effect" in output
    silent = of_training(script) | {"eval_freq": 1, "track": True, "checkpoint_freq": 3}
    for name in (name for name in silent if name in NAMES[script] and name != "seed"):
        flags = ["--checkpoint", finished(script), "--eval-only", *words(name, silent[name])]
        output = run_here(tmp_path, script, *flags, expect=2)
        assert output.startswith(f"error: --{name.replace('_', '-')}: expected none beside --eval-only"), output
    output = run_here(tmp_path, script, "--checkpoint", finished(script), *total(1), expect=2)
    assert output == "error: --total-timesteps: expected the 64 steps of --checkpoint or more, got 32\n"


def test_a_rate_or_temperature_that_is_no_longer_adapted_is_the_one_that_is_printed(finished, tmp_path):
    _, ppo = resume(tmp_path, finished("ppo"), "ppo", "--no-adaptive-lr")
    assert ppo["actor_optimizer"]["param_groups"][0]["lr"] == ppo["args"]["learning_rate"]
    assert load(finished("ppo"))["actor_optimizer"]["param_groups"][0]["lr"] != ppo["args"]["learning_rate"]
    for script in ("sapo", "sac"):
        before = load(finished(script))["temperature"]["log_alpha"].exp().item()
        _, state = resume(tmp_path, finished(script), script, "--no-autotune")
        assert state["temperature"]["log_alpha"].exp().item() == pytest.approx(state["args"]["alpha"]) != before


def test_a_run_that_does_not_go_on_exactly_has_new_noise(finished, tmp_path):
    resume(tmp_path, finished("fasttd3"), "fasttd3", "--total-timesteps", 3 * STEPS)
    later = tmp_path / "copy0" / "checkpoint.pt"
    # one more iteration with another seed, after the second and after the third; no episode ends in it
    _, a = resume(tmp_path, finished("fasttd3"), "fasttd3", "--seed", 7, "--total-timesteps", 3 * STEPS)
    _, b = resume(tmp_path, later, "fasttd3", "--seed", 7, "--total-timesteps", 4 * STEPS)
    assert (a["noise"]["std"] != b["noise"]["std"]).all()


def test_flags_of_an_evaluation_take_effect_beside_a_checkpoint(finished, tmp_path):
    only = ["--checkpoint", finished("rpo"), "--eval-only"]
    plain, other, fewer = (
        run_here(tmp_path, "rpo", *only, *flags) for flags in ((), ("--seed", 2), ("--num-eval-envs", 3))
    )
    assert "4 episodes" in plain and plain != other and "3 episodes" in fewer
    output, _ = resume(tmp_path, finished("rpo"), "rpo", "--eval-freq", 1)
    assert output.count("eval/episodic_return") == 2
    output, _ = resume(tmp_path, finished("rpo"), "rpo", "--capture-video")
    assert "video of one episode: " in output


@pytest.mark.parametrize(
    "script, flags, sentence",
    [
        ("rpo", ["--checkpoint", ""], "--checkpoint: expected a value, got ''"),
        ("rpo", ["--exp-name="], "--exp-name: expected a value, got ''"),
        ("rpo", ["--env-id", ""], "--env-id: expected a value, got ''"),
        ("rpo", ["--seed", ""], "--seed: expected a value, got ''"),
        ("rpo", ["--cuda=maybe"], "--cuda: expected --cuda or --no-cuda without a value, got 'maybe'"),
        ("rpo", ["--no-cuda", "1"], "--cuda: expected --cuda or --no-cuda without a value, got '1'"),
        ("rpo", ["--eval_only=y"], "--eval-only: expected --eval-only or --no-eval-only without a value, got 'y'"),
        ("rpo", ["--checkpoint", "\udcff"], "--checkpoint: expected characters of UTF-8, got '\\udcff'"),
        ("rpo", ["--num-envs", "3000000"], "--num-envs: expected 1 to 1000000, got 3000000"),
        ("rpo", ["--num-eval-envs", "1000000000"], "--num-eval-envs: expected 1 to 100000, got 1000000000"),
        ("sac", ["--buffer-size", "1000000000000"], "--buffer-size: expected 1 to 1000000000, got 1000000000000"),
        ("sac", ["--track"], "--track: expected the package wandb, which is not installed: pip install wandb"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_under_the_name_of_its_flag(script, flags, sentence, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert run_here(tmp_path, script, *total(9), *flags, expect=2) == f"error: {sentence}\n"
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["a/b", "../../../esc", "/x", "a__b", "..", ".hidden", "a_", "a b", "a\nb", "x" * 101])
def test_a_name_that_would_leave_the_run_folder_is_refused(name, tmp_path):
    output = run_here(tmp_path, "rpo", *total(1), "--exp-name", name, expect=2)
    assert output.startswith("error: --exp-name: expected at most 100 letters, ") and repr(name) in output
    assert not [*tmp_path.iterdir()]
    assert envs.command_line.wrong_name(name) and not envs.command_line.wrong_name("rpo_no_kl_clip_0.1")


@pytest.mark.parametrize(
    "script, flags, sentence",
    [
        ("rpo", "--num-envs 999999", "--num-envs: expected a rollout, --num-envs 999999 x --num-steps 32, within --"),
        ("rpo", "--num-steps 99999", "--num-steps: expected a rollout, --num-envs 1024 x --num-steps 99999, within -"),
        (
            "rpo",
            "--total-timesteps 9",
            "--total-timesteps: expected one rollout, --num-envs 1024 x --num-steps 32, or more",
        ),
        ("sac", "--learning-starts 5000001", "--learning-starts: expected --learning-starts within --total-timesteps"),
        ("sac", "--total-timesteps 4095", "--total-timesteps: expected --learning-starts within --total-timesteps"),
        (
            "sac",
            "--num-envs 99999 --num-nsteps 99",
            "--num-nsteps: expected --num-envs 99999 x --num-nsteps 99 within",
        ),
        (
            "sac",
            "--buffer-size 1000000000",
            "--buffer-size: expected fewer, for it needs 93 GiB or more, this machine ",
        ),
        ("ppo", "--num-envs 9999 --num-minibatches 99999 --num-steps 9", "--num-minibatches: expected at most 89991"),
    ],
)
def test_numbers_that_do_not_go_together_are_refused_under_the_name_of_the_one_given(
    script, flags, sentence, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(envs.command_line, "_memory", lambda args: 24 * 2**30)
    monkeypatch.setattr(sys, "argv", [script, *flags.split()])
    with pytest.raises(SystemExit, match="2"):
        envs.parse_args(SOURCES[script].Args, SOURCES[script].TASK_DEFAULTS, path(script))
    output = capsys.readouterr().err
    assert output.startswith(f"error: {sentence}") and output.count("\n") == 1, output


def test_a_task_without_defaults_is_named(monkeypatch, capsys):
    none = "expected a value, here or in TASK_DEFAULTS of the script, got none"
    for defaults, sentence in (
        ({}, "--env-id: expected a task with a line in TASK_DEFAULTS of rpo_continuous.py, got ant"),
        ({"ant": {"num_envs": 8}}, f"--total-timesteps: {none}"),
    ):
        monkeypatch.setattr(sys, "argv", ["rpo", "--env-id", "ant"])
        with pytest.raises(SystemExit, match="2"):
            envs.parse_args(SOURCES["rpo"].Args, defaults, path("rpo"))
        assert capsys.readouterr().err == f"error: {sentence}\n"


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_begins_with_what_the_script_is(script, tmp_path):
    output = run_here(tmp_path, script, "--help")
    first = SOURCES[script].__doc__.splitlines()[0]
    assert first in " ".join(output.split()) and "arXiv" in first


@pytest.mark.parametrize("script", SCRIPTS)
def test_one_environment_and_one_step_train_without_a_warning(script, tmp_path, recwarn):
    one = "--num-envs 1 --num-steps 1 --num-eval-envs 1 --total-timesteps 4".split()
    own = "--learning-starts 0 --batch-size 1" if "buffer_size" in NAMES[script] else "--num-minibatches 1"
    own += " --horizon-min 1" if script == "ahac" else ""
    output = run_here(tmp_path, script, *one, *own.split(), "--eval-freq", 2)
    assert "done: 4 steps" in output and "+- 0.0" in output
    assert not [
        str(warning.message) for warning in recwarn if "torch" in warning.filename or "var()" in str(warning.message)
    ]
    state = load(run_dir(tmp_path) / "checkpoint.pt")
    for name in ("actor", "critic", "normalizer"):
        assert all(x.isfinite().all() for x in state[name].values()), name
    assert state["normalizer"]["count"] == 5


# what a checkpoint holds
def change(state, where, value):
    """Put a value into a nested state, or remove what is there: where is like "env/joint_q"."""
    *way, last = where.split("/")
    for key in way:
        state = state[int(key) if key.isdigit() else key]
    last = int(last) if last.isdigit() else last
    if value is None:
        del state[last]
    else:
        state[last] = value(state[last]) if callable(value) else value


WRONG = [
    ("rpo", "iteration", None, "iteration: expected int, got nothing"),
    ("rpo", "iteration", -1, "iteration: expected 0 to 1000000000000, got -1"),
    ("rpo", "iteration", True, "iteration: expected int, got True"),
    ("rpo", "rng", None, "rng: expected Tensor, got nothing"),
    ("rpo", "rng", torch.zeros(7), "rng: expected the state of torch's random numbers"),
    ("rpo", "cuda_rng", [torch.zeros(7)], "cuda_rng: expected no states of random numbers"),
    ("rpo", "args", None, "args: expected dict, got nothing"),
    ("rpo", "args/gamma", None, "expected flags of rpo_continuous.py, got no more as well, and without gamma"),
    ("rpo", "args/gamma", "x", "expected flags of rpo_continuous.py, got gamma of str"),
    ("rpo", "args/gamma", 2.0, "expected flags of rpo_continuous.py, got gamma: expected 0.0 to 1.0, got 2.0"),
    ("rpo", "args/num_envs", 16, "env: state"),
    ("rpo", "args/env_id", "bat", "written by rpo_continuous.py for bat"),
    ("rpo", "args/env_id", "ant", "actor: trunk.0.weight: expected (400, 37)"),
    ("rpo", "episodes", [[1.0]], "episodes: expected pairs of a return and a length, got list"),
    ("rpo", "process", [1], "process: expected number, device and seed, got list"),
    ("rpo", "process", [1, "cuda", 1], "cuda_rng: expected the states of random numbers"),
    ("rpo", "env", None, "env: expected dict, got nothing"),
    ("rpo", "env/joint_q", None, "env: state"),
    ("rpo", "env/generator", torch.zeros(3), "env: state"),
    ("rpo", "critic", None, "critic: it: expected dict, got nothing"),
    ("rpo", "actor/mean.bias", torch.zeros(1).double(), "actor: mean.bias: expected (1,) torch.float32, got (1,)"),
    ("rpo", "actor/mean.bias", torch.tensor([torch.nan]), "actor: mean.bias: expected finite numbers"),
    ("rpo", "normalizer/count", None, "normalizer: expected mean, var, count, got 'mean', 'var'"),
    ("rpo", "actor_optimizer/param_groups", [], "actor_optimizer: param_groups: expected one group, got list"),
    ("rpo", "actor_optimizer/param_groups/0/lr", "x", "actor_optimizer: lr: expected a number from 0 to 1, got 'x'"),
    ("rpo", "actor_optimizer/state/0/exp_avg", None, "actor_optimizer: expected step, exp_avg, exp_avg_sq, got 'step'"),
    ("rpo", "actor_optimizer/state/0/step", torch.tensor(-1.0), "actor_optimizer: expected steps and squares of 0 or"),
    ("rpo", "actor_optimizer/state/0/exp_avg", lambda x: x.t(), "actor_optimizer: exp_avg: expected (400, 5)"),
    ("rpo", "actor_optimizer/state/0/exp_avg", lambda x: x[:1].expand(400, 5), "actor_optimizer: exp_avg: expected"),
    ("gippo", "alpha", None, "alpha: it: expected float, got nothing"),
    ("gippo", "alpha", torch.nan, "alpha: expected a finite number, got nan"),
    ("sac", "replay/reward", lambda x: x[:, :, None], "replay: reward: expected columns like those of this task"),
    ("sac", "replay/reward", lambda x: x[:1], "replay: expected columns of the same steps"),
    ("sac", "replay/count", 999, "replay: "),
    ("sac", "replay", None, "replay: it: expected dict, got nothing"),
]  # fmt: skip


MOMENT = ("critic_optimizer/state/1/exp_avg_sq", torch.zeros(3), "critic_optimizer: exp_avg_sq: expected")


@pytest.mark.parametrize("script, where, value, reason", WRONG + [(script, *MOMENT) for script in SCRIPTS])
def test_a_checkpoint_with_something_wrong_is_refused_before_it_is_used(
    script, where, value, reason, finished, tmp_path
):
    state = load(finished(script))
    change(state, where, value)
    torch.save(state, tmp_path / "checkpoint.pt")
    before = (tmp_path / "checkpoint.pt").read_bytes()
    output = run_here(tmp_path, script, "--checkpoint", tmp_path / "checkpoint.pt", *total(4), expect=2)
    assert output.startswith("error: --checkpoint: expected ") and output.count("\n") == 1 and reason in output, output
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_file_that_was_cut_or_changed_is_refused_in_our_own_words(finished, tmp_path):
    whole = finished("rpo").read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    for content, reason in (
        (whole[:-1000], "it is not a whole file of torch.save"),
        (changed, "some of its bytes have"),
    ):
        (tmp_path / "checkpoint.pt").write_bytes(content)
        output = run_here(tmp_path, "rpo", "--checkpoint", "checkpoint.pt", expect=2)
        assert reason in output and "weights_only" not in output and output.count("\n") == 1


def test_an_optimiser_keeps_the_settings_of_the_script_and_gets_the_rate_and_the_moments_of_the_checkpoint():
    parameters = [torch.nn.Parameter(torch.ones(3))]
    old, new = (
        torch.optim.AdamW(parameters, lr=lr, betas=betas) for lr, betas in ((0.1, (0.5, 0.5)), (0.2, (0.9, 0.9)))
    )
    parameters[0].grad = torch.ones(3)
    old.step()
    envs.restore({"optimizer": new, "alpha": 1.0}, {"optimizer": old.state_dict(), "alpha": 0.5})
    assert (new.param_groups[0]["lr"], new.param_groups[0]["betas"]) == (0.1, (0.9, 0.9))
    assert torch.equal(new.state[parameters[0]]["exp_avg"], old.state[parameters[0]]["exp_avg"])


# the folder of a run
def test_a_run_that_goes_on_elsewhere_is_not_resumed_a_second_time(finished, tmp_path):
    folder = finished("rpo").parent
    lock = envs.checkpoint.RunLock(folder)  # as another process would hold it
    output = run_here(tmp_path, "rpo", "--checkpoint", finished("rpo"), *total(3), expect=2)
    assert output == f"error: --checkpoint: expected a run that no other process trains, got {str(folder)!r}\n"
    assert "eval/episodic_return" in run_here(tmp_path, "rpo", "--checkpoint", finished("rpo"), "--eval-only")
    del lock
    run_here(tmp_path, "rpo", "--checkpoint", finished("rpo"))


def test_a_new_run_is_held_as_long_as_it_lives(tmp_path):
    args = types.SimpleNamespace(checkpoint=None)
    envs.claim(tmp_path / "new", args)
    with pytest.raises(ValueError, match="that no other process trains"):
        envs.checkpoint.RunLock(tmp_path / "new")
    with pytest.raises(FileExistsError):
        envs.claim(tmp_path / "new", args)
    # a killed process holds nothing
    code = f"import os, envs; lock = envs.checkpoint.RunLock({str(tmp_path)!r}); print('held'); os.kill(os.getpid(), 9)"
    held = subprocess.run([sys.executable, "-uc", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert held.stdout == "held\n" and held.returncode == -9
    envs.checkpoint.RunLock(tmp_path)


@pytest.mark.parametrize("size", [10, 10**4, 10**7])
def test_a_full_disk_is_said_to_be_full(size, tmp_path, capsys):
    (tmp_path / "checkpoint.pt").write_text("old")
    (tmp_path / "checkpoint.pt.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as caught:
        envs.save_checkpoint({"weights": torch.zeros(size)}, tmp_path)
    assert (tmp_path / "checkpoint.pt").read_text() == "old"
    envs.command_line.explain_failure(caught.type, caught.value, None)
    assert capsys.readouterr().err.startswith("error: the disk is full (No space left on device")


def test_importing_the_environments_prints_nothing():
    """But for Warp's sentence about a missing driver, which its library writes to stderr."""
    code = "import envs; envs.make('cartpole').reset()"
    output = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert output.returncode == 0 and output.stdout == ""
    assert all(line.startswith("Warp CUDA warning: ") for line in output.stderr.splitlines())


def test_a_script_says_why_it_fails_in_a_sentence(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rpo"])
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    envs.parse_args(SOURCES["rpo"].Args, SOURCES["rpo"].TASK_DEFAULTS, path("rpo"))
    assert sys.excepthook is envs.command_line.explain_failure


def test_too_little_memory_is_said_in_a_sentence(capsys):
    for allocate in (lambda: torch.zeros(10**15), lambda: bytearray(10**18)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            allocate()
        envs.command_line.explain_failure(caught.type, caught.value, None)
        error = capsys.readouterr().err
        assert error.startswith("error: there is not enough memory; ") and error.count("\n") == 1
    with pytest.raises(ZeroDivisionError) as caught:
        _ = 1 / 0
    envs.command_line.explain_failure(caught.type, caught.value, caught.tb)
    assert "ZeroDivisionError" in capsys.readouterr().err
