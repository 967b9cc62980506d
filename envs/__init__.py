"""Differentiable robot simulators: `env = envs.make("hopper", num_envs=1024)`; ids in `ENV_IDS`.

The environments follow gymnasium's VectorEnv with automatic reset in the same step, with torch tensors in place of
numpy arrays: see vector_env.py.  A task is one file: hopper.py, ant.py, ...  Tasks share quaternion.py and, where a
robot floats, floating_base.py.  The robots are simulated in physics/, which knows nothing of tasks.  evaluate.py says
how good a policy is, checkpoint.py loads that of a training script, command_line.py reads the scripts' flags, matmul.py
makes their products fast on AMD's processors, render.py and viewer.py make the pictures.
"""

import difflib

import warp as wp

from envs.ant import Ant
from envs.anymal import Anymal
from envs.cartpole import Cartpole
from envs.checkpoint import claim, load_policy, restore, save_checkpoint
from envs.cheetah import Cheetah
from envs.command_line import parse_args, refuse
from envs.evaluate import evaluate
from envs.go1 import Go1
from envs.hand_reorient import HandReorient
from envs.hopper import Hopper
from envs.humanoid import Humanoid
from envs.matmul import use_onednn
from envs.vector_env import VectorEnv

__all__ = ["ENV_IDS", "TASKS", "VectorEnv", "evaluate", "load_policy", "make"]
__all__ += ["claim", "parse_args", "refuse", "restore", "save_checkpoint", "use_onednn"]  # for the scripts

if wp.config.log_level == wp.LOG_INFO:  # its default: a banner, and a line for every kernel module
    wp.config.log_level = wp.LOG_WARNING

TASKS = {
    "hopper": Hopper,
    "ant": Ant,
    "anymal": Anymal,
    "humanoid": Humanoid,
    "go1": Go1,
    "cheetah": Cheetah,
    "cartpole": Cartpole,
    "hand_reorient": HandReorient,
}
ENV_IDS = tuple(TASKS)


def make(env_id: str, num_envs: int = 1, device="cpu", seed: int = 1, **options) -> VectorEnv:
    """Create the environment `env_id`; further options: see VectorEnv. Raises ValueError for an unknown id."""
    if not isinstance(env_id, str) or env_id not in TASKS:
        near = difflib.get_close_matches(str(env_id), ENV_IDS, n=1, cutoff=0.0)[0]
        raise ValueError(f"env_id: expected one of {', '.join(ENV_IDS)}, got {env_id!r}; did you mean {near!r}?")
    return TASKS[env_id](num_envs, device=device, seed=seed, **options)
