"""Differentiable robot simulators: `env = envs.make("hopper", num_envs=1024)`; ids in `ENV_IDS`.

The environments follow gymnasium's VectorEnv with automatic reset in the same step, with torch tensors in place of
numpy arrays: see vector_env.py.  A task is one file: hopper.py, ant.py, ...  robot_file.py is the task of a robot from
an MJCF or URDF file, which mjcf.py reads: `envs.make("path/to/robot.xml")`.  Tasks share quaternion.py and, where a
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
from envs.command_line import env_id_flag, parse_args, refuse
from envs.evaluate import evaluate
from envs.go1 import Go1
from envs.hand_reorient import HandReorient
from envs.hopper import Hopper
from envs.humanoid import Humanoid
from envs.matmul import use_onednn
from envs.physics import shown
from envs.robot_file import is_robot_file, robot_task
from envs.vector_env import VectorEnv

__all__ = ["ENV_IDS", "TASKS", "VectorEnv", "evaluate", "load_policy", "make", "task"]
__all__ += ["EnvId", "claim", "parse_args", "refuse", "restore", "save_checkpoint", "use_onednn"]  # for the scripts

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
EnvId = env_id_flag(ENV_IDS)


def make(env_id: str, num_envs: int = 1, device="cpu", seed: int = 1, **options) -> VectorEnv:
    """Create the environment `env_id`, one of ENV_IDS or the path of a robot's file: see task().

    Further options: see VectorEnv and, for a file, RobotFile in robot_file.py.
    """
    return task(env_id)(num_envs, device=device, seed=seed, **options)


def task(env_id: str) -> type[VectorEnv]:
    """The class of the environment: one of TASKS, or that of the robot in an MJCF or URDF file (robot_file.py).

    Raises ValueError for an unknown id, and for a file that is not a robot's; ImportError for a file without MuJoCo.
    """
    if isinstance(env_id, str) and env_id in TASKS:
        return TASKS[env_id]
    if is_robot_file(env_id):
        return robot_task(env_id)
    near = difflib.get_close_matches(str(env_id), ENV_IDS, n=1, cutoff=0.0)[0]
    expected = f"env_id: expected one of {', '.join(ENV_IDS)}, or the path of a robot's .xml or .urdf file"
    raise ValueError(f"{expected}, got {shown(env_id)}; did you mean {near!r}?")
