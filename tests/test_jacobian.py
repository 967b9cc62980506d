"""Gradients of every simulator against central differences, in the air and in contact, and in random states."""

import numpy as np
import pytest
import torch
import warp as wp
from golden import TASKS, contact_motion, floats, joint_limits, make, relative
from torch.nn.functional import normalize

from envs.floating_base import FloatingBase
from envs.physics import Z_UP


def put_at_height(env, q, height):
    """Lift or lower the robots so that the lowest of their contact points is at this height (N,)."""
    still = torch.zeros(len(q), env.articulation.num_dofs)
    env.simulator.step(q, still, still)
    points, _ = contact_motion(env, 0)
    q[:, 1] += height - torch.tensor(points[..., 1].min(axis=1))


# angles that are inside their limits and leave the feet level; without an entry: those of the rest state
POSES = {
    "hopper": (-0.6, -0.4, -0.5, 0.3),  # pitch, hip, knee, ankle
    "anymal": (0.0,) * 12,  # where the springs are at rest
    "humanoid": (0.0,) * 3 + 2 * (0.0, 0.0, -0.15, -0.3, -0.15, 0.0) + (0.0,) * 6,  # waist, legs, arms
}
# depth of the lowest point [m], vertical and sideways velocity [m/s], such that during the step no point of contact
# begins or ends to touch, rise or slide.  The humanoid's light feet would bounce, so it slides while it rises
STICKING = {"anymal": (0.01, -1.0, 0.005), "humanoid": (0.005, -2.0, 0.005)}
SLIDING = {"ant": (0.003, -2.0, 6.0), "humanoid": (0.03, 0.5, 10.0)}


def posed(task):
    env = make(task, num_envs=1)
    q, qd = env.rest_state()
    pose = POSES.get(task, ())
    q[0, q.shape[1] - len(pose) :] = torch.tensor(pose)
    return env, q, qd


def flying_state(task):
    """High above the ground, in a random orientation, everything moving."""
    env, q, qd = posed(task)
    generator = torch.Generator().manual_seed(0)
    if floats(task):
        q[:, 3:7] = normalize(torch.randn(1, 4, generator=generator), dim=1)
    if env.articulation.contacts:
        q[:, 1] += 1.0
    qd = 2.0 * torch.rand(qd.shape, generator=generator) - 1.0
    return torch.cat([q, qd, torch.linspace(-0.1, 0.1, env.num_actions)[None]], dim=1)


def state_beyond_a_limit(task):
    """Flying, and the last joint that has limits is bent 0.2 rad (m for the cartpole) too far."""
    state, (limits, first) = flying_state(task), joint_limits(task)
    joint = (limits[:, 1] < 1e6).nonzero().max()
    state[:, first + joint] = limits[joint, 1] + 0.2
    return state


def touching_state(task, depth, rising, slip):
    env, q, qd = posed(task)
    if floats(task):
        q[0, 3:7] = torch.tensor(wp.quat_from_axis_angle(wp.vec3(0.0, 1.0, 0.0), 0.3) * wp.quat(*Z_UP))
        qd[0, 3:6] = torch.tensor([slip, rising, 0.3 * slip])
    else:
        qd[0, :2] = torch.tensor([slip, rising])
    put_at_height(env, q, -depth)
    return torch.cat([q, qd, torch.linspace(-0.01, 0.01, env.num_actions)[None]], dim=1)


def contact_branches(env):
    """(N, substeps, contacts): 0 off the ground; 1 sinking and 2 rising while it sticks; 3 and 4 while it slides."""
    contacts = env.articulation.contacts
    names = ("stiffness", "friction_stiffness", "friction")
    ke, kf, mu = (np.array([getattr(contact, name) for contact in contacts]) for name in names)
    branches = []
    for s in range(env.substeps):
        p, u = contact_motion(env, s)
        depth, slip = -p[..., 1], np.hypot(u[..., 0], u[..., 2])
        branches.append((depth > 0.0) * (1 + (u[..., 1] > 0.0) + 2 * (kf * slip > mu * ke * depth)))
    return np.stack(branches, axis=1)


def one_step(env, x):
    """State and action (N, nq + nv + na) -> next state, observation and reward; quaternions are made unit first."""
    q, qd, action = x.split([env.articulation.num_coords, env.articulation.num_dofs, env.num_actions], dim=1)
    if isinstance(env, FloatingBase):
        q = torch.cat([q[:, :3], normalize(q[:, 3:7], dim=1), q[:, 7:]], dim=1)
    env.set_state(q, qd)
    obs, reward, *_ = env.step(action)
    return torch.cat([env.joint_q, env.joint_qd, obs, reward[:, None]], dim=1)


def jacobian_cases():
    for task, cls in TASKS.items():
        yield task, "air"
        if task != "anymal":  # it has no limits
            yield task, "limit"
        if cls.articulation.contacts:
            yield from ((task, "stick"), (task, "slide"))


@pytest.mark.parametrize("task, where", list(jacobian_cases()))
def test_jacobian_of_one_step_matches_central_differences(task, where):
    point = {
        "air": lambda: flying_state(task),
        "limit": lambda: state_beyond_a_limit(task),
        "stick": lambda: touching_state(task, *STICKING.get(task, (0.005, -1.0, 0.005))),
        "slide": lambda: touching_state(task, *SLIDING.get(task, (0.005, -1.0, 3.0))),
    }[where]()
    env = make(task, num_envs=1)
    nq, n = env.articulation.num_coords, point.shape[1]
    x = point.clone().requires_grad_()
    y = one_step(env, x)
    jacobian = torch.stack([torch.autograd.grad(y[0, k], x, retain_graph=True)[0][0] for k in range(y.shape[1])])

    # fourth-order stencil: f' = (8 (f(+e) - f(-e)) - (f(+2e) - f(-2e))) / 12e
    touching = where in ("stick", "slide")  # then the positions must not leave the ground, some mm away
    e = torch.tensor([1e-3 if touching else 2e-2] * nq + [1e-2 if touching else 2e-2] * (n - nq))
    offsets = torch.cat([k * torch.diag(e) for k in (-2, -1, 1, 2)])
    around = make(task, num_envs=4 * n)
    values = one_step(around, point + offsets).double().reshape(4, n, -1)
    differences = ((8.0 * (values[2] - values[1]) - (values[3] - values[0])) / (12.0 * e[:, None])).T
    if touching:  # no kink of the contact force is within the stencil
        branches = contact_branches(env)
        assert set(branches[branches > 0].tolist()) <= ({1, 2} if where == "stick" else {3, 4}) and branches.any()
        assert (contact_branches(around) == branches).all()

    # Float32 limits the comparison: the result y of a step is off by some 5e-6 |y|, for the humanoid, whose massless
    # links leave the mass matrix badly conditioned, by 2e-5 |y|.  In the differences that becomes noise / e
    noise = (5e-5 if task == "humanoid" else 1e-5) * y[0].detach().norm()
    sizes = [nq, env.articulation.num_dofs, env.num_obs, 1]
    for ours, expected in zip(jacobian.split(sizes), differences.split(sizes)):  # q', qd', obs', reward
        assert relative(ours, expected) <= (3e-3 if task == "humanoid" else 1e-3)
    for column in range(n):
        error = (jacobian[:, column] - differences[:, column]).norm()
        assert error <= 1e-3 * differences[:, column].norm() + noise / e[column], column


def random_states(env, task, depth, speed, generator):
    """Anything a rollout could meet: a quarter each sunk in the ground and moving, without any velocity, with all
    joints exactly at a limit, and flying. The speed is that of all velocities, in m/s and rad/s."""
    n = env.num_envs
    still, at_limits, flying = (slice(k * n // 4, (k + 1) * n // 4) for k in (1, 2, 3))
    q = 3.0 * torch.rand(n, env.articulation.num_coords, generator=generator) - 1.5
    qd = speed * (2.0 * torch.rand(n, env.articulation.num_dofs, generator=generator) - 1.0)
    qd[still] = 0.0
    limits, first = joint_limits(task)
    side = torch.randint(0, 2, (n // 4, len(limits)), generator=generator)
    limit = limits.T.gather(0, side)
    q[at_limits, first:] = torch.where(limit.abs() < 1e6, limit, q[at_limits, first:])
    if floats(task):
        q[:, 3:7] = normalize(torch.randn(n, 4, generator=generator), dim=1)
    if env.articulation.contacts:
        height = -depth * torch.rand(n, generator=generator)
        height[flying] *= -1.0
        put_at_height(env, q, height)
    return q, qd


@pytest.mark.parametrize("depth, speed", ((0.1, 5.0), (2.5, 20.0)), ids=("usual", "extreme"))
@pytest.mark.parametrize("task", TASKS)
def test_gradients_are_finite_in_random_states(task, depth, speed):
    n, generator = 2048, torch.Generator().manual_seed(0)
    env = make(task, num_envs=n)
    q, qd = random_states(env, task, depth, speed, generator)
    actions = [(2.0 * torch.rand(n, env.num_actions, generator=generator) - 1.0).requires_grad_() for _ in range(2)]
    env.set_state(q.requires_grad_(), qd.requires_grad_())
    total = 0.0
    for action in actions:
        obs, reward, *_ = env.step(action)
        total = total + reward.sum() + obs.sum()
    # in the extreme states the floating robots, with a mass matrix once per step, may blow up; gradients stay finite
    assert env.diverged == 0 or (floats(task) and speed == 20.0)
    assert total.isfinite()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(total, [q, qd, *actions]))
