"""The script as a user runs it: whole runs with tiny sizes, resume, kill, signals, bad flags, bad numbers."""

import csv
import dataclasses
import importlib
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import envs

ROOT = Path(__file__).parent.parent
TINY = "--num-envs 8 --num-steps 4 --critic-epochs 2 --num-minibatches 2 --num-eval-envs 4".split()
TINY_LEARNED = ["--update-epochs" if flag == "--critic-epochs" else flag for flag in TINY]
TINY_SAC = "--num-envs 8 --num-steps 4 --num-updates 2 --batch-size 16 --learning-starts 64 --num-eval-envs 4".split()
ANALYTIC = ("rpo", "shac", "sapo", "gippo")  # with the simulator's gradient
LEARNED = ("ppo", "reppo")
SCRIPTS = (*ANALYTIC, *LEARNED, "sac")
# one thread a process: tiny batches gain nothing from two, and waiting for each other costs a lot on a busy machine
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


STARTED = []


@pytest.fixture(autouse=True)
def no_process_outlives_its_test():
    yield
    while STARTED:
        STARTED.pop().kill()  # of a process that has ended nothing


def start(cwd, *flags, code=None, script="rpo"):
    command = [sys.executable, *(["-c", code] if code else [str(ROOT / f"{script}_continuous.py")]), *map(str, flags)]
    options = {"cwd": cwd, "env": ENVIRONMENT, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    STARTED.append(subprocess.Popen(command, **options))
    return STARTED[-1]


def run(cwd, *flags, expect=0, code=None, script="rpo"):
    process = start(cwd, *flags, code=code, script=script)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == expect, output
    return output


def tiny(script):
    return TINY_SAC if script == "sac" else TINY_LEARNED if script in LEARNED else TINY


def run_dir(cwd):
    (folder,) = (Path(cwd) / "runs").iterdir()
    return folder


def metrics(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_same_training(a, b):
    """Bit-identical networks, optimisers, normaliser, environment and random state."""
    states = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (a, b)]
    assert states[0]["global_step"] == states[1]["global_step"]

    def compare(x, y, name):
        if isinstance(x, dict):
            assert x.keys() == y.keys(), name
            for key in x:
                compare(x[key], y[key], f"{name}/{key}")
        elif isinstance(x, list):
            assert len(x) == len(y), name
            for k, (left, right) in enumerate(zip(x, y)):
                compare(left, right, f"{name}/{k}")
        else:
            assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, name

    modules = {"actor", "critic", "normalizer", "actor_optimizer", "critic_optimizer", "shares"}
    own = {"temperature", "alpha_optimizer", "return_normalizer", "multipliers", "dual_optimizer"}
    own |= {"target_critic", "gains", "alpha"}
    for name in modules | (states[0].keys() & own):
        compare(states[0][name], states[1][name], name)
    clocks = {"wall_s", "SPS", "time_rollout", "time_backward", "time_actor", "time_critic"}
    lines = [[{k: v for k, v in row.items() if k not in clocks} for row in metrics(folder)] for folder in (a, b)]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_whole_run(tmp_path, script):
    flags = [*tiny(script), "--total-timesteps", 320, "--eval-freq", 5, "--save-model", "--seed", 3]
    output = run(tmp_path, *flags, script=script)
    folder = run_dir(tmp_path)
    assert re.fullmatch(rf"hopper__{script}_continuous__3__\d+", folder.name)
    assert output.count("eval stochastic: return") == 3 and output.count("eval deterministic: return") == 3
    assert "step 320/320 (100 %)" in output
    if script == "rpo":
        assert "ent_coef: 0.25" in output and "kl_coef: 0.2" in output
    rows = metrics(folder)
    assert [int(row["global_step"]) for row in rows] == [*range(32, 321, 32), 320]
    assert rows[-1]["eval_episodic_return"] and rows[4]["eval_episodic_return"] and not rows[0]["eval_episodic_return"]
    assert list(folder.glob("events.out.tfevents.*"))
    if script in ("rpo", "shac", "sapo"):
        first, last = (5e-4, 5e-4 * 0.02**0.9) if script == "rpo" else (2e-3, 2e-3 - 0.9 * (2e-3 - 1e-5))
        assert float(rows[0]["learning_rate"]) == pytest.approx(first)
        assert float(rows[9]["learning_rate"]) == pytest.approx(last)
    usual, short = ((0.9, 0.999), 1e-8, 0.01), ((0.7, 0.95), 1e-8, 0.01)
    settings = {"ppo": 2 * [((0.9, 0.999), 1e-5, 0.01)], "reppo": 2 * [((0.9, 0.999), 1e-8, 0.0)]}
    settings |= {"sac": [usual, usual], "gippo": [usual, short]}
    for name, expected in zip(("actor_optimizer", "critic_optimizer"), settings.get(script, [short, short])):
        (group,) = torch.load(folder / "checkpoint.pt", weights_only=True)[name]["param_groups"]
        assert (group["betas"], group["eps"], group["weight_decay"]) == expected
    model = torch.load(folder / f"{script}_continuous.cleanrl_model", weights_only=True)
    # every observation of a rollout and its successor; SAC has no successor of the last one yet
    assert model["normalizer"]["count"] == 1 + 10 * (4 if script == "sac" else 5) * 8

    # --eval-only on the checkpoint repeats the final evaluation to the digit
    again = run(tmp_path, "--checkpoint", folder / "checkpoint.pt", "--eval-only", script=script)
    evaluations = [[line for line in text.splitlines() if line.startswith("eval")] for text in (output, again)]
    assert evaluations[1] == evaluations[0][-2:]
    assert run_dir(tmp_path) == folder


CASES = [("rpo", env_id) for env_id in envs.ENV_IDS if env_id != "hopper"] + [("shac", "ant"), ("sapo", "ant")]
CASES += [(script, env_id) for script in (*LEARNED, "gippo", "sac") for env_id in ("ant", "cartpole")]


@pytest.mark.parametrize("script, env_id", CASES)
def test_every_task_trains_and_evaluates(tmp_path, script, env_id):
    flags = [*tiny(script), "--num-eval-envs", 1, "--env-id", env_id, "--total-timesteps", 128]
    output = run(tmp_path, *flags, script=script)
    assert "eval deterministic: return" in output and "done: 128 steps" in output
    learning = metrics(run_dir(tmp_path))[1 if script == "sac" else 0 : -1]  # SAC's first rollout is too few steps
    assert learning and all(float(row["actor_grad_norm"]) > 0 for row in learning)


def test_a_video_shows_one_episode_up_to_its_end(tmp_path):
    flags = [*TINY, "--env-id", "cartpole", "--capture-video"]
    output = run(tmp_path, *flags, "--total-timesteps", 32)
    folder = run_dir(tmp_path)
    (path,) = folder.glob("video-32.*")
    assert f"video of one deterministic episode: runs/{folder.name}/{path.name}" in output
    if path.suffix == ".webp":
        video = Image.open(path)
        frames = [(frame.convert("RGB"), frame.info["duration"]) for frame in ImageSequence.Iterator(video)]
        # every second one of 240 steps, 33 ms each; WebP shows a frame for longer where the next one is the same
        assert sum(duration for _, duration in frames) == 120 * 33
        assert all(frame.size == (320, 240) and np.asarray(frame).std() > 10 for frame, _ in frames)
    path.unlink()
    run(tmp_path, "--checkpoint", folder / "checkpoint.pt", "--eval-only", "--capture-video")
    assert list(folder.glob("video-32.*"))


def test_a_video_ends_with_the_first_episode(tmp_path):
    flags = [*TINY, "--num-eval-envs", 1, "--total-timesteps", 32, "--capture-video"]
    output = run(tmp_path, *flags)  # an untrained hopper soon falls
    length = float(re.search(r"eval deterministic: .*length ([\d.]+)", output).group(1))
    assert 2 < length < 500
    (path,) = run_dir(tmp_path).glob("video-32.*")
    if path.suffix == ".webp":
        frames = [(frame.convert("RGB"), frame.info["duration"]) for frame in ImageSequence.Iterator(Image.open(path))]
        assert sum(duration for _, duration in frames) == 33 * math.ceil(length / 2)


def test_a_video_is_an_mp4_where_the_encoder_is_installed(tmp_path):
    code = """
import sys, types
import numpy as np
sent = []
def write_frames(path, size, fps):
    sent.append((path, size, fps))
    try:
        while True:
            sent.append((yield).shape)
    except GeneratorExit:
        sent.append("closed")
sys.modules["imageio_ffmpeg"] = types.SimpleNamespace(write_frames=write_frames)
import rpo_continuous
assert rpo_continuous.write_video([np.zeros((240, 320, 3), np.uint8)] * 2, "v") == "v.mp4"
assert sent == [("v.mp4", (320, 240), 30), (240, 320, 3), (240, 320, 3), "closed"], sent
"""
    run(tmp_path, code=code)


@pytest.mark.parametrize("script", SCRIPTS)
def test_tensorboard_tags(tmp_path, script):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, *tiny(script), "--total-timesteps", 128, script=script)
    events = EventAccumulator(str(run_dir(tmp_path)))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    expected = """charts/episodic_return charts/episodic_length charts/SPS charts/learning_rate charts/diverged
        losses/value_loss losses/actor_grad_norm
        time/rollout time/actor time/critic eval/episodic_return"""
    own = {
        "ppo": "losses/entropy losses/clipfrac losses/ratio_max losses/effective_sample_ratio",
        "sac": "losses/entropy losses/alpha losses/q_value",
        "gippo": "losses/entropy losses/alpha losses/out_of_range_ratio losses/clipfrac losses/ratio_max",
        "reppo": "losses/entropy losses/clipfrac losses/alpha losses/beta losses/aux_loss losses/target_clip_frac",
        "rpo": "losses/entropy losses/clipfrac losses/ratio_max losses/effective_sample_ratio",
        "sapo": "losses/entropy losses/alpha",
    }
    expected += " " + own.get(script, "")
    expected += " losses/action_grad_norm time/backward" if script in ANALYTIC else ""
    expected += " losses/approx_kl losses/explained_variance" if script != "sac" else ""
    assert set(expected.split()) <= tags
    assert "hyperparameters/text_summary" in events.Tags()["tensors"]


def test_same_seed_same_run_and_another_seed_another(tmp_path):
    folders = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        run(tmp_path / name, *TINY, "--total-timesteps", 96, "--seed", seed)
        folders.append(run_dir(tmp_path / name))
    assert_same_training(folders[0], folders[1])
    with pytest.raises(AssertionError):
        assert_same_training(folders[0], folders[2])


def test_an_evaluation_does_not_touch_the_training(tmp_path):
    for name, frequency in (("with", 1), ("without", 0)):
        (tmp_path / name).mkdir()
        run(tmp_path / name, *TINY, "--total-timesteps", 96, "--eval-freq", frequency)
    a, b = (torch.load(run_dir(tmp_path / name) / "checkpoint.pt", weights_only=True) for name in ("with", "without"))
    assert all(torch.equal(a["actor"][name], b["actor"][name]) for name in a["actor"])
    (a,), (b,) = a["shares"], b["shares"]
    assert torch.equal(a["rng"], b["rng"]) and torch.equal(a["env"]["joint_q"], b["env"]["joint_q"])


def test_flags_of_the_ablations(tmp_path):
    ablations = "--update-epochs 1 --kl-coef 0 --ent-coef 0 --no-clip-gradient --critic-agg min --surrogate-coef 32"
    ablations += " --no-importance-weight"
    output = run(tmp_path, *TINY, "--total-timesteps", 64, "--no-anneal-lr", *ablations.split())
    assert "kl_coef: 0.0" in output and "ent_coef: 0.0" in output  # an explicit 0 wins over the task's default
    rows = metrics(run_dir(tmp_path))
    assert {float(row["learning_rate"]) for row in rows[:2]} == {5e-4}
    assert {float(row["effective_sample_ratio"]) for row in rows[:2]} == {1.0}


@pytest.mark.parametrize("script", ("rpo", "shac", "sapo"))
def test_long_rows_of_the_action_gradient_are_shortened(tmp_path, script):
    norms = {}
    for limit in (None, 1e9, 0.01) if script == "rpo" else (0.01,):
        folder = tmp_path / str(limit)
        folder.mkdir()
        flags = ["--max-action-grad-norm", limit] if limit else []
        run(folder, *tiny(script), "--total-timesteps", 64, *flags, script=script)
        norms[limit] = [float(row["action_grad_norm"]) for row in metrics(run_dir(folder))[:2]]
    # all rows of a tiny rollout are longer than 0.01 in the first iteration: their mean length is that of each
    assert norms[0.01][0] == pytest.approx(0.01, rel=1e-5)
    if script == "rpo":  # the second row after an update: a limit that nothing reaches changes no bit
        assert norms[1e9] == norms[None] and norms[None][0] > 0.1


COMPILED = """
import sys, torch, torch._inductor.config, {script}_continuous as script
torch._inductor.config.fallback_random = True  # the same random numbers as without
code = script.main()
print("compiled", torch._dynamo.utils.counters["frames"]["ok"], "functions")
sys.exit(code)
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("script, functions", (("shac", 1), ("sac", 2)))
def test_compiled_losses_train_as_the_plain_ones_do(tmp_path, script, functions):
    rows = {}
    for flag in ("--no-compile", "--compile"):
        (tmp_path / flag).mkdir()
        flags = [*tiny(script), "--total-timesteps", 128, flag]
        output = run(tmp_path / flag, *flags, code=COMPILED.format(script=script))
        assert f"compiled {functions if flag == '--compile' else 0} functions" in output
        # SAC fills its replay buffer first
        rows[flag] = [row for row in metrics(run_dir(tmp_path / flag)) if row["value_loss"]][:2]
    # sums in another order: 1e-7 each, more after two iterations of training
    assert len(rows["--compile"]) == 2
    for plain, compiled in zip(*rows.values()):
        for name in ("value_loss", "actor_grad_norm", "critic_grad_norm"):
            assert float(compiled[name]) == pytest.approx(float(plain[name]), rel=1e-3), name


@pytest.mark.parametrize("script", SCRIPTS)
def test_cuda_graphs_need_a_gpu(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{script}_continuous.py", "--cudagraphs", "--no-cuda"])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"{script}_continuous").main()
    assert stop.value.code == 2 and "--cudagraphs: expected a CUDA device, got the CPU" in capsys.readouterr().err


def test_a_run_with_cuda_graphs_can_be_evaluated_without_a_gpu(tmp_path):
    run(tmp_path, *TINY, "--total-timesteps", 32)
    path = run_dir(tmp_path) / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    state["args"]["cudagraphs"] = True
    torch.save(state, path)
    assert "eval deterministic" in run(tmp_path, "--checkpoint", path, "--eval-only", "--no-cuda")
    assert "--cudagraphs: expected" in run(tmp_path, "--checkpoint", path, "--no-cuda", expect=2)


def wait_for_checkpoint(process, folder, iterations):
    """Until the run has written a checkpoint and gone on for at least one more iteration."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        folders = list((Path(folder) / "runs").glob("*")) if (Path(folder) / "runs").exists() else []
        if folders and (folders[0] / "checkpoint.pt").exists() and len(metrics(folders[0])) > iterations:
            return folders[0]
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    raise AssertionError("no checkpoint within four minutes")


KILLED = """
import os, signal, {script}_continuous as script
write, rows = script.Logger.write, []
def write_and_die(*args):
    write(*args)
    rows.append(args)
    if len(rows) == 7:
        os.kill(os.getpid(), signal.SIGKILL)
script.Logger.write = write_and_die
script.main()
"""


@pytest.mark.parametrize("script", SCRIPTS)
def test_kill_and_resume_is_bit_identical(tmp_path, script):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    flags = [*tiny(script), "--total-timesteps", 32 * 20, "--checkpoint-freq", 4]
    run(tmp_path / "whole", *flags, script=script)
    # after the checkpoint of iteration 4, whose successors are made again
    run(tmp_path / "killed", *flags, code=KILLED.format(script=script), expect=-signal.SIGKILL)
    folder = run_dir(tmp_path / "killed")
    assert len(metrics(folder)) == 7
    run(tmp_path / "killed", "--checkpoint", folder / "checkpoint.pt", script=script)
    assert_same_training(run_dir(tmp_path / "whole"), folder)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_a_checkpoint_and_say_how_to_go_on(tmp_path, number, code):
    process = start(tmp_path, *TINY, "--total-timesteps", 10_000_000, "--checkpoint-freq", 2)
    folder = wait_for_checkpoint(process, tmp_path, 2)
    process.send_signal(number)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output
    command = re.search(r"resume with: python rpo_continuous.py --checkpoint (\S+)", output).group(1)
    assert (tmp_path / command) == folder / "checkpoint.pt"
    state = torch.load(tmp_path / command, weights_only=True)
    assert state["global_step"] == int(metrics(folder)[-1]["global_step"])
    # the command works, and an explicit flag wins over the saved one
    output = run(tmp_path, "--checkpoint", command, "--total-timesteps", state["global_step"] + 32)
    assert "done" in output and f"step {state['global_step'] + 32:,}/" in output


def test_ctrl_c_leaves_a_checkpoint_when_the_reader_of_a_pipe_has_gone(tmp_path):
    process = start(tmp_path, *TINY, "--total-timesteps", 10_000_000, "--checkpoint-freq", 2)
    folder = wait_for_checkpoint(process, tmp_path, 2)
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=240) == 130
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert state["global_step"] == int(metrics(folder)[-1]["global_step"])


def test_resuming_a_finished_run_and_going_on(tmp_path):
    run(tmp_path, *TINY, "--total-timesteps", 64, "--eval-freq", 1)
    folder = run_dir(tmp_path)
    header = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert len(header) == len(set(header))
    for total, rows in ((64, 3), (96, 4)):
        run(tmp_path, "--checkpoint", folder / "checkpoint.pt", "--total-timesteps", total)
        assert len(metrics(folder)) == rows and not metrics(folder)[-1]["SPS"]
    # the checkpoint alone is enough
    (tmp_path / "elsewhere").mkdir()
    (folder / "checkpoint.pt").rename(tmp_path / "elsewhere" / "checkpoint.pt")
    for total, rows in ((96, 1), (128, 2)):
        run(tmp_path, "--checkpoint", "elsewhere/checkpoint.pt", "--total-timesteps", total)
        assert len(metrics(tmp_path / "elsewhere")) == rows


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--env-id hoper", ["env-id", "hoper", "hopper"]),
        ("--no-such-flag 1", ["no-such-flag"]),
        ("--seed one", ["seed", "one"]),
        ("--seed -1", ["--seed", "expected 0", "got -1"]),
        ("--num-envs 0", ["--num-envs", "expected 1", "got 0"]),
        ("--gamma 1.5", ["--gamma", "0 to 1", "got 1.5"]),
        ("--kl-coef nan", ["--kl-coef", "expected 0", "got nan"]),
        ("--num-minibatches 1000000", ["--num-minibatches", "got 1000000"]),
        ("--total-timesteps 5", ["--total-timesteps", "expected 32768", "got 5"]),
        ("--eval-only", ["--eval-only", "--checkpoint"]),
        ("--checkpoint nowhere.pt", ["--checkpoint", "nowhere.pt"]),
        ("shac --kl-coef 0.2", ["kl-coef"]),
        ("shac --gamma 1.5", ["--gamma", "0 to 1", "got 1.5"]),
        ("shac --max-action-grad-norm 0", ["--max-action-grad-norm", "got 0"]),
        ("sapo --alpha 0", ["--alpha", "got 0"]),
        ("sapo --alpha-learning-rate -1", ["--alpha-learning-rate", "got -1"]),
        ("ppo --clip-coef -1", ["--clip-coef", "got -1"]),
        ("ppo --anneal-lr", ["--anneal-lr", "--no-adaptive-lr"]),
        ("sac --num-nsteps 0", ["--num-nsteps", "got 0"]),
        ("sac --buffer-size 10", ["--buffer-size", "got 10"]),
        ("gippo --alpha 2", ["--alpha", "to 1", "got 2"]),
        ("gippo --alpha-factor 0.5", ["--alpha-factor", "expected 1", "got 0.5"]),
        ("reppo --v-min 1", ["--v-min", "-1000000000000 to 0", "got 1"]),
        ("reppo --v-min 0 --v-max 0", ["--v-max", "--v-min", "got 0"]),
        ("reppo --critic-hidden-dims 64 0 64", ["--critic-hidden-dims", "(64, 0, 64)"]),
        ("reppo --kl-mode hard", ["kl-mode", "hard", "clipped"]),
    ],
)
def test_bad_flags_exit_with_2_and_one_clear_message(tmp_path, flags, words):
    script, *flags = flags.split() if not flags.startswith("--") else ["rpo", *flags.split()]
    output = run(tmp_path, *flags, expect=2, script=script)
    assert all(word in output for word in words), output
    assert "Traceback" not in output and not (tmp_path / "runs").exists()


def refused_values(kind):
    """What a flag must refuse: values of another type, and numbers that no flag can mean."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    refused = {int: ["zzz", "1.5", "-9999999999999", "9999999999999"], float: ["zzz", "nan", "inf", "-1e+30"], str: []}
    return next((refused[kind] for kind in kinds if kind in refused), ["zzz"])  # switches, choices and tuples


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_refuses_values_of_wrong_types_and_out_of_range(script, monkeypatch, capsys):
    module = importlib.import_module(f"{script}_continuous")
    for field in dataclasses.fields(module.Args):
        if typing.get_origin(field.type) is typing.Annotated:
            continue  # no flag: filled in at runtime
        name = field.name.replace("_", "-")
        for value in refused_values(field.type):
            monkeypatch.setattr(sys, "argv", [f"{script}_continuous.py", f"--{name}={value}"])
            with pytest.raises(SystemExit) as stop:
                module.parse_args()
            output = "".join(capsys.readouterr())
            named = f"--{name}" in output or field.type is bool  # of a switch only the unknown value is named
            shown = value in output or typing.get_origin(field.type) is tuple  # "Missing argument"
            assert stop.value.code == 2 and named and shown, f"{script} --{name}={value}: {output}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_two_runs_of_the_same_second_have_two_folders(script, tmp_path, monkeypatch):
    module = importlib.import_module(f"{script}_continuous")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module.time, "time", lambda: 1e9)
    assert len({module.create_run_dir(module.Args()) for _ in range(3)}) == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file on which every write fails")
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_full_disk_leaves_the_checkpoint_before_it(script, tmp_path):
    module, path = importlib.import_module(f"{script}_continuous"), tmp_path / "checkpoint.pt"
    module.save_atomically({"x": torch.ones(100_000)}, str(path))
    before = path.read_bytes()
    (tmp_path / "checkpoint.pt.tmp").symlink_to("/dev/full")
    with pytest.raises(module.TrainingFailed, match="cannot write .*checkpoint.pt, which is left as it was"):
        module.save_atomically({"x": torch.zeros(100_000)}, str(path))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["checkpoint.pt"]
    with pytest.raises(module.TrainingFailed, match="cannot write .*No such file"):
        module.save_atomically({}, str(tmp_path / "missing" / "checkpoint.pt"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file on which every write fails")
@pytest.mark.parametrize("name", ["checkpoint.pt.tmp", "metrics.csv.tmp"])
def test_a_run_on_a_full_disk_ends_with_one_sentence(tmp_path, name):
    run(tmp_path, *TINY, "--total-timesteps", 32)
    checkpoint = run_dir(tmp_path) / "checkpoint.pt"
    (run_dir(tmp_path) / name).symlink_to("/dev/full")
    output = run(tmp_path, "--checkpoint", checkpoint, "--total-timesteps", 64, expect=1)
    assert ("training failed: " in output or "stopped: " in output) and "No space left" in output, output
    assert "Traceback" not in output


def test_corrupt_and_foreign_checkpoints(tmp_path):
    (tmp_path / "corrupt.pt").write_bytes(b"not a checkpoint")
    torch.save({"script": "rpo_continuous.py", "args": {"horizon": 32}}, tmp_path / "foreign.pt")
    torch.save([1, 2, 3], tmp_path / "list.pt")
    run(tmp_path, *TINY, "--total-timesteps", 32)
    good = run_dir(tmp_path) / "checkpoint.pt"
    (tmp_path / "cut.pt").write_bytes(good.read_bytes()[:-1000])
    for name in ("corrupt.pt", "foreign.pt", "list.pt", "cut.pt"):
        output = run(tmp_path, "--checkpoint", name, expect=2)
        assert "--checkpoint: expected a checkpoint.pt" in output and name in output and "Traceback" not in output
    output = run(tmp_path, "--checkpoint", good, expect=2, script="shac")
    assert "it was written by rpo_continuous.py" in output and "Traceback" not in output
    output = run(tmp_path, "--checkpoint", good, "--num-envs", 9, "--total-timesteps", 3200, expect=2)
    assert "9 environments" in output and "Traceback" not in output


def test_shac_and_sapo_drop_action_gradients_that_are_not_finite(tmp_path):
    for script in ("shac", "sapo"):
        (tmp_path / script).mkdir()
        # the second backward pass meets NaN at the actions of environment 2
        code = f"""
import sys, torch, {script}_continuous as script
original, calls = script.watch, [0]
def watch(u, action_grads, *limit):
    calls[0] += 1
    if 4 < calls[0] <= 8:
        u.register_hook(lambda grad: torch.where(torch.arange(8)[:, None] == 2, torch.nan, grad))
    original(u, action_grads, *limit)
script.watch = watch
sys.exit(script.main())
"""
        run(tmp_path / script, *TINY, "--total-timesteps", 96, "--exp-name", "x", code=code)
        rows = metrics(run_dir(tmp_path / script))
        assert [float(row["nonfinite_action_grads"]) for row in rows[:3]] == [0, 4, 0]
        assert [float(row["skipped_updates"]) for row in rows[:3]] == [0, 0, 0]
        assert all(float(row["actor_grad_norm"]) > 0 for row in rows[:3])


def test_the_temperature_of_sapo_follows_the_entropy(tmp_path):
    run(tmp_path, *TINY, "--total-timesteps", 128, script="sapo")
    rows = metrics(run_dir(tmp_path))[:-1]
    alphas, entropies = ([float(row[name]) for row in rows] for name in ("alpha", "entropy"))
    assert alphas[0] == 1.0
    # a fresh policy has far more entropy than the target
    assert min(entropies) > 0 and all(a > b for a, b in zip(alphas, alphas[1:]))
    (tmp_path / "fixed").mkdir()
    run(tmp_path / "fixed", *TINY, "--total-timesteps", 128, "--no-autotune", "--alpha", 0.25, script="sapo")
    assert {float(row["alpha"]) for row in metrics(run_dir(tmp_path / "fixed"))[:-1]} == {0.25}


POISON = """
import sys, torch, rpo_continuous as rpo
original, calls = {target}, [0]
def poisoned(*arguments):
    calls[0] += 1
    result = original(*arguments)
    return {poisoned} if calls[0] >= {first} and calls[0] < {last} else result
{target} = poisoned
sys.exit(rpo.main())
"""


def test_action_gradients_that_are_not_finite_are_dropped_and_counted(tmp_path):
    poisoned = "torch.where(torch.arange(8)[:, None] == 2, torch.nan, result)"
    code = POISON.format(target="rpo.action_gradients", poisoned=poisoned, first=2, last=3)
    run(tmp_path, *TINY, "--total-timesteps", 96, "--exp-name", "x", code=code)
    rows = metrics(run_dir(tmp_path))
    assert [float(row["nonfinite_action_grads"]) for row in rows[:3]] == [0, 4, 0]  # 4 steps of environment 2
    assert [float(row["skipped_updates"]) for row in rows[:3]] == [0, 0, 0]


def test_a_loss_that_is_not_finite_is_skipped_then_ends_the_run(tmp_path):
    code = POISON.format(target="rpo.policy_loss", poisoned="(result[0] * torch.nan, result[1])", first=7, last=10**9)
    flags = [*TINY, "--update-epochs", 2, "--total-timesteps", 32 * 20, "--checkpoint-freq", 1, "--exp-name", "x"]
    output = run(tmp_path, *flags, expect=1, code=code)
    assert "training failed: hopper, iteration 13: the gradient of the actor" in output, output
    rows = metrics(run_dir(tmp_path))
    assert [float(row["skipped_updates"]) for row in rows] == [0, 0, 0, *range(2, 20, 2)]
    state = torch.load(run_dir(tmp_path) / "checkpoint.pt", weights_only=True)
    assert state["iteration"] == 12 and all(x.isfinite().all() for x in state["actor"].values())


def test_a_return_without_a_single_usable_gradient_ends_the_run(tmp_path):
    code = POISON.format(target="rpo.action_gradients", poisoned="result * torch.nan", first=3, last=10**9)
    output = run(tmp_path, *TINY, "--total-timesteps", 32 * 20, "--exp-name", "x", expect=1, code=code)
    assert "training failed: hopper, iteration 12: the gradient of the return" in output, output


def test_broken_networks_end_the_run_with_a_message(tmp_path):
    poisoned = "(result[0] * torch.nan, result[1])"
    code = POISON.replace("original, calls = {target}", "original, calls = rpo.Actor.forward")
    code = code.replace("{target} = poisoned", "rpo.Actor.forward = poisoned")
    code = code.format(poisoned=poisoned, first=60, last=10**9)
    output = run(tmp_path, *TINY, "--total-timesteps", 32 * 20, "--exp-name", "x", expect=1, code=code)
    assert "training failed: hopper" in output and "NaN" in output


def poisoned_script(script, target, poisoned, first):
    """Code that runs the script with a function whose result is spoilt from its call number `first` on."""
    code = POISON.replace("rpo_continuous as rpo", f"{script}_continuous as rpo")
    return code.format(target=f"rpo.{target}", poisoned=poisoned, first=first, last=10**9)


@pytest.mark.parametrize("script", LEARNED)
def test_ppo_and_reppo_skip_losses_that_are_not_finite_then_stop(tmp_path, script):
    # four policy losses in each iteration; from the third iteration on every one is NaN
    code = poisoned_script(script, "policy_loss", "(result[0] * torch.nan, result[1])", first=9)
    flags = [*tiny(script), "--total-timesteps", 32 * 20, "--checkpoint-freq", 1, "--exp-name", "x"]
    output = run(tmp_path, *flags, expect=1, code=code)
    assert "training failed: hopper, iteration 12: the gradient of the actor" in output, output
    state = torch.load(run_dir(tmp_path) / "checkpoint.pt", weights_only=True)
    assert state["iteration"] == 11 and all(x.isfinite().all() for x in state["actor"].values())
    # REPPO's multipliers, whose loss is part of it, are skipped and counted beside the actor
    skipped = [float(row["skipped_updates"]) for row in metrics(run_dir(tmp_path))]
    assert skipped[:3] == [0, 0, 4 if script == "ppo" else 8]


@pytest.mark.parametrize(
    "script, target, name", [("ppo", "gae", "advantage"), ("reppo", "td_lambda_targets", "target")]
)
def test_ppo_and_reppo_drop_targets_that_are_not_finite(tmp_path, script, target, name):
    poisoned = "torch.where(torch.arange(8) == 2, torch.nan, result)"
    code = poisoned_script(script, target, poisoned, first=2)
    run(tmp_path, *tiny(script), "--total-timesteps", 96, "--exp-name", "x", code=code)
    rows = metrics(run_dir(tmp_path))[:-1]
    assert [float(row[f"nonfinite_{name}s"]) for row in rows] == [0, 4, 4]  # 4 steps of environment 2
    # a minibatch with such a target makes no step of the critic; the others do
    assert 0 < float(rows[1]["skipped_updates"]) <= 4
    state = torch.load(run_dir(tmp_path) / "checkpoint.pt", weights_only=True)
    for module in ("actor", "critic", "return_normalizer") if script == "ppo" else ("actor", "critic", "multipliers"):
        assert all(x.isfinite().all() for x in state[module].values())


def test_schedules_of_the_learning_rate_of_ppo(tmp_path):
    expected = {"--no-adaptive-lr": [5e-4, 5e-4], "--no-adaptive-lr --anneal-lr": [5e-4, 5e-4 - 0.5 * (5e-4 - 1e-5)]}
    for k, (flags, rates) in enumerate(expected.items()):
        (tmp_path / str(k)).mkdir()
        run(tmp_path / str(k), *TINY_LEARNED, "--total-timesteps", 64, *flags.split(), script="ppo")
        rows = metrics(run_dir(tmp_path / str(k)))[:-1]
        assert [float(row["learning_rate"]) for row in rows] == pytest.approx(rates)
    # two epochs an iteration, each of which divides or multiplies by 1.5 or leaves it
    run(tmp_path, *TINY_LEARNED, "--total-timesteps", 128, "--target-kl", 1e-9, script="ppo")
    rates = [float(row["learning_rate"]) for row in metrics(run_dir(tmp_path))[:-1]]
    assert rates == pytest.approx([5e-4 / 1.5**k for k in (2, 4, 6, 8)])


def test_schedules_of_the_learning_rate_of_sapo(tmp_path):
    halfway = {"linear": 2e-3 - 0.5 * (2e-3 - 1e-5), "exponential": math.sqrt(2e-3 * 1e-5)}
    for schedule, rate in halfway.items():
        (tmp_path / schedule).mkdir()
        run(tmp_path / schedule, *TINY, "--total-timesteps", 64, "--lr-schedule", schedule, script="sapo")
        rows = metrics(run_dir(tmp_path / schedule))[:-1]
        assert [float(row["learning_rate"]) for row in rows] == pytest.approx([2e-3, rate])


def test_the_ablations_and_the_faithful_command_of_reppo(tmp_path):
    text = (ROOT / "reppo_continuous.py").read_text()
    faithful = re.search(r"Faithful: python reppo_continuous.py (.*?)\n +\(", text, re.DOTALL).group(1)
    ablations = ["--actor-gradient score", "--no-hl-gauss", "--norm none", "--aux-coef 0", "--kl-mode full"]
    for k, flags in enumerate([*ablations, "--kl-mode value", faithful]):
        (tmp_path / str(k)).mkdir()
        output = run(tmp_path / str(k), *TINY_LEARNED, "--total-timesteps", 64, *flags.split(), script="reppo")
        assert "done: 64 steps" in output
        assert all(float(row["actor_grad_norm"]) > 0 for row in metrics(run_dir(tmp_path / str(k)))[:-1])


def test_the_support_of_a_reppo_run_cannot_change(tmp_path):
    run(tmp_path, *TINY_LEARNED, "--total-timesteps", 32, script="reppo")
    checkpoint = run_dir(tmp_path) / "checkpoint.pt"
    output = run(tmp_path, "--checkpoint", checkpoint, "--v-max", 400, expect=2, script="reppo")
    assert "--v-max: expected 200.0, as in --checkpoint" in output and "got 400.0" in output


def test_reppo_warns_once_of_a_support_that_is_too_small(tmp_path):
    output = run(tmp_path, *TINY_LEARNED, "--total-timesteps", 128, "--reward-scale", 1000, script="reppo")
    assert output.count("targets are outside --v-min -50.0 .. --v-max 200.0") == 1
    assert float(metrics(run_dir(tmp_path))[0]["target_clip_frac"]) > 0.01
