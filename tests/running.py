"""Runs of the training scripts in small sizes, as a user starts them or inside this process, and what they leave."""

import contextlib
import io
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parent.parent
ANALYTIC = ("rpo", "shac", "sapo", "gippo")  # with the simulator's gradient
SCRIPTS = (*ANALYTIC, "ppo", "reppo", "sac")
# one thread a process: tiny batches gain nothing from two, and waiting for each other costs a lot on a busy machine
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
STEPS = 32  # of one iteration with the sizes of tiny()

# as the scripts set it: oneDNN asks at the first product of a process, which is made before the first script runs here
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")


def path(script):
    return ROOT / f"{script}_continuous.py"


def tiny(script, env_id="cartpole"):
    """Flags of a run with 8 environments and 4 steps in an iteration."""
    flags = f"--env-id {env_id} --num-envs 8 --num-steps 4 --num-eval-envs 4"
    if script == "sac":
        return f"{flags} --num-updates 2 --batch-size 16 --learning-starts 64 --checkpoint-freq 1".split()
    passes = "critic-epochs" if script in ANALYTIC else "update-epochs"
    return f"{flags} --{passes} 2 --num-minibatches 2".split()


def start(cwd, *command):
    """A process of Python with these arguments. It can be killed with its children: its id is that of their group."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=cwd, env=ENVIRONMENT, **options)


def run(cwd, *command, expect=0):
    """What a process of Python prints until its end, which is to have the exit code `expect`."""
    process = start(cwd, *command)
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        kill(process)
    assert process.returncode == expect, output
    return output


def kill(process):
    with contextlib.suppress(ProcessLookupError):  # all of them have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_here(cwd, script, *flags, expect=0):
    """The same for a script, inside this process: it saves the seconds in which a new one imports torch."""
    output, argv, code = io.StringIO(), sys.argv, 0
    sys.argv = [str(path(script)), *map(str, flags)]
    try:
        with state_of_this_process(), contextlib.chdir(cwd):
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = argv
    assert code == expect, output.getvalue()
    return output.getvalue()


@contextlib.contextmanager
def state_of_this_process():
    """One thread inside; afterwards everything that a script sets for its whole process is as before."""
    matmul, threads, handler = torch.backends.mkldnn.matmul, torch.get_num_threads(), signal.getsignal(signal.SIGINT)
    precision = matmul.fp32_precision
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        signal.signal(signal.SIGINT, handler)
        matmul.fp32_precision = precision


def run_folder(cwd):
    """The folder of the only run that was started in cwd."""
    (folder,) = (Path(cwd) / "runs").iterdir()
    return folder


def load(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def events(folder):
    """TensorBoard's scalars as {tag: [(step, value), ...]}, in the order in which they were written."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {tag: [(x.step, x.value) for x in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def differences(a, b, name=""):
    """Names of what differs by a bit between two values, such as the contents of two checkpoints."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [found for key in a for found in differences(a[key], b[key], f"{name}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [found for k, pair in enumerate(zip(a, b)) for found in differences(*pair, f"{name}/{k}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
    else:
        same = a == b or (a != a and b != b)  # NaN
    return [] if same else [name]
