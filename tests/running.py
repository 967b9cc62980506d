"""Tiny runs of the scripts like those of benchmarks/tiny.py, inside the test's own process; and what a run has logged.

A new process spends seconds on importing torch and loading the kernels; a run of a few iterations takes half of one.
"""

import contextlib
import gc
import io
import os
import runpy
import signal
import sys
from unittest import mock

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.records import ROOT
from benchmarks.records import SCRIPTS as NAMES
from benchmarks.tiny import FLAGS, OWN_FLAGS

SCRIPTS = tuple(NAMES)
CARTPOLE = ("--env-id", "cartpole")

# as the scripts set it: oneDNN asks at the first product of a process, which is made before the first script runs here
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")


def path(script):
    return ROOT / f"{script}_continuous.py"


def run_here(folder, script, *flags, expect=0, file=None):
    """A whole run in a folder, on cartpole by default; returns what it printed.

    expect: its exit code; file: the script, if not the shipped one.
    """
    folder.mkdir(exist_ok=True)
    sizes = () if "--checkpoint" in flags else (*CARTPOLE, *FLAGS.split(), *OWN_FLAGS[script].split())
    output, argv, code = io.StringIO(), sys.argv, 0
    gc.collect()  # what is left of earlier runs in this process, which may hold this one's folder
    gc.freeze()  # what is alive, the modules above all, is not looked through again the next time
    sys.argv = [str(word) for word in (file or path(script), *sizes, *flags)]
    try:
        with state_of_this_process(), contextlib.chdir(folder):
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                names = runpy.run_path(sys.argv[0], run_name="__main__")
        # a graph of autograd holds the script's functions, and they its environment, with that graph: without end
        names["evaluate"].__globals__.clear()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = argv
    assert code == expect, output.getvalue()
    return output.getvalue()


@contextlib.contextmanager
def state_of_this_process():
    """One thread inside; afterwards everything that a script sets for its whole process is as before.

    Steps are run again in the backward pass, with the same result (test_simulator.py): recording the launches for the
    buffers that would keep them takes half the time of so short a run.
    """
    matmul, threads, handler = torch.backends.mkldnn.matmul, torch.get_num_threads(), signal.getsignal(signal.SIGINT)
    precision, hook = matmul.fp32_precision, sys.excepthook
    torch.set_num_threads(1)
    try:
        with mock.patch("envs.physics.simulator.KEPT_STEPS", 1):
            yield
    finally:
        torch.set_num_threads(threads)
        signal.signal(signal.SIGINT, handler)
        matmul.fp32_precision, sys.excepthook = precision, hook


def events(run_dir):
    """TensorBoard's scalars as {tag: [(step, value), ...]}, in the order in which they were written."""
    log = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in log.Scalars(tag)] for tag in log.Tags()["scalars"]}
