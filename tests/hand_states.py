"""States of the hand that several test files start from."""

import torch
from torch.nn.functional import normalize

import envs

UP = torch.tensor([0.0, 0.0, 0.0, 1.0])


def make(num_envs=4, seed=1, **options):
    """Environments whose episodes do not end when the cube falls."""
    env = envs.make("hand_reorient", num_envs=num_envs, seed=seed, num_threads=1, **options)
    env.is_terminal = lambda obs: torch.zeros(num_envs, dtype=torch.bool)
    env.reset()
    return env


def start(env, q, qd, goal=UP):
    env.set_state(q, qd)
    env.goal = goal.expand(env.num_envs, 4)


def state(joints, position, quaternion, rates=0.0, velocity=(0.0, 0.0, 0.0)):
    """Joints and rates (16,) or one for all; the cube does not spin."""
    q = torch.cat([torch.as_tensor(joints).expand(16), torch.tensor([*position]), torch.tensor([*quaternion])])
    return q[None], torch.cat([torch.full((16,), rates), torch.zeros(3), torch.tensor([*velocity]).float()])[None]


def pushing_fingers(rate):
    """Curled fingers with their tips and middle links in the cube, opening (rate < 0, rad/s) or closing."""
    joints = torch.tensor([1.2, 0.6, 0.6, 0.6] + 3 * [0.0, 0.4, 1.2, 1.2])
    return state(joints, (0.0, -0.1, 0.55), normalize(torch.tensor([0.1, 0.05, 0.1, 1.0]), dim=0), rate)
