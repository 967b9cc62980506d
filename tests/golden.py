"""DFlex's golden numbers, the simulators that are compared with them, and what tests measure on these."""

from functools import cache
from pathlib import Path

import numpy as np
import torch

import envs
from envs.floating_base import FloatingBase
from envs.physics import PRISMATIC, REVOLUTE

TASKS = {name: envs.TASKS[name] for name in ("hopper", "ant", "anymal", "humanoid", "cheetah", "cartpole")}
# the mass matrix rebuilt at every substep, and as rarely as the task does it
INTERVALS = [(task, interval) for task, cls in TASKS.items() for interval in (1, cls.mass_matrix_interval)]
ROLLOUTS = [(task, interval) for task, interval in INTERVALS if (task, interval) != ("humanoid", 1)]  # no golden ones
DATA = Path(__file__).parent / "data"


@cache
def golden(task):
    return dict(np.load(DATA / f"{task}.npz"))


def golden_inputs(task, requires_grad=False):
    return [torch.tensor(golden(task)[key], requires_grad=requires_grad) for key in ("q0", "qd0", "actions")]


def make(task, interval=None, num_envs=4):
    """Environments that never end an episode, so that rollouts are as long as the golden ones."""
    cls = TASKS[task]
    timing = {"mass_matrix_interval": interval or cls.mass_matrix_interval}
    env = type(cls.__name__, (cls,), timing)(num_envs, num_threads=1)
    env.is_terminal = lambda obs: torch.zeros(num_envs, dtype=torch.bool)
    env.reset()
    return env


def floats(task):
    """Whether the root has a free joint: joint_q begins with a position and a quaternion, joint_qd with a twist."""
    return issubclass(TASKS[task], FloatingBase)


def moved(task, q, qd, c):
    """The same motion at another place: every link moved by c (N, 3), along x only if the robot is planar."""
    if not floats(task):
        return torch.cat([q[:, :1] + c[:, :1], q[:, 1:]], dim=1), qd
    w, v = qd[:, :3], qd[:, 3:6]
    # a twist's linear part is the velocity at the world origin, which the movement takes to a place -c beside the robot
    v = v - torch.linalg.cross(w, c)
    return torch.cat([q[:, :3] + c, q[:, 3:]], dim=1), torch.cat([w, v, qd[:, 6:]], dim=1)


def relative(x, y):
    return np.linalg.norm(np.asarray(x) - np.asarray(y)) / np.linalg.norm(np.asarray(y))


def hinges_and_slides(task):
    return [link for link in TASKS[task].articulation.links if link.joint in (PRISMATIC, REVOLUTE)]


def joint_limits(task):
    """Limits (joints, 2) of the joints with one degree of freedom, and where their coordinates begin."""
    links = hinges_and_slides(task)
    return torch.tensor([link.limits for link in links]), TASKS[task].articulation.num_coords - len(links)


def contact_motion(env, s):
    """The lowest points of the contact spheres and their velocities at substep s of the last step, (N, contacts, 3)."""
    x, contacts = env.simulator.batches[0].substeps[s], env.articulation.contacts
    links = [contact.link for contact in contacts]
    pose, twist = x.link_pose.numpy()[:, links], x.link_twist.numpy()[:, links]
    r, u, w = np.array([contact.point for contact in contacts]), pose[..., 3:6], pose[..., 6:]
    p = pose[..., :3] + r + 2.0 * np.cross(u, np.cross(u, r) + w * r)  # r turned by the quaternion (u, w)
    p[..., 1] -= [contact.radius for contact in contacts]
    return p, twist[..., 3:] + np.cross(twist[..., :3], p)
