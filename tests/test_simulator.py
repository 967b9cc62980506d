"""Every simulator against DFlex's golden numbers, and its gradients against golden ones and central differences."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import warp as wp
from torch.nn.functional import normalize

import envs
from envs import Ant, Anymal, Cartpole, Cheetah, Hopper, Humanoid
from envs.floating_base import FloatingBase
from envs.physics import PRISMATIC, REVOLUTE, Z_UP, Simulator
from envs.physics.substeps import Substeps

TASKS = {
    "hopper": Hopper,
    "ant": Ant,
    "anymal": Anymal,
    "humanoid": Humanoid,
    "cheetah": Cheetah,
    "cartpole": Cartpole,
}
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
    x, contacts = env.simulator.batches[0].steps[s], env.articulation.contacts
    links = [contact.link for contact in contacts]
    pose, twist = x.link_pose.numpy()[:, links], x.link_twist.numpy()[:, links]
    r, u, w = np.array([contact.point for contact in contacts]), pose[..., 3:6], pose[..., 6:]
    p = pose[..., :3] + r + 2.0 * np.cross(u, np.cross(u, r) + w * r)  # r turned by the quaternion (u, w)
    p[..., 1] -= [contact.radius for contact in contacts]
    return p, twist[..., 3:] + np.cross(twist[..., :3], p)


def test_every_task_is_tested():
    assert (*TASKS, "hand_reorient") == envs.ENV_IDS  # the hand is not DFlex's: see test_hand.py


@pytest.mark.parametrize("task", TASKS)
def test_limits_contact_points_and_rest_state_are_those_of_dflex(task):
    """Also where no golden rollout reaches them."""
    links = hinges_and_slides(task)
    ours = np.array([[*link.limits, link.limit_stiffness, link.limit_damping] for link in links])
    expected = golden(task)["limits"].copy()
    for limits in (ours[:, :2], expected[:, :2]):
        limits[np.abs(limits) > 999.0] *= np.inf  # DFlex's 1000 and our 1e6 both mean that there is none
    assert np.allclose(ours, expected, rtol=1e-6)
    env = make(task, num_envs=1)
    q, qd = env.rest_state()
    assert np.allclose(q[0], golden(task)["rest_q"], atol=1e-6) and not qd.any()
    contacts = env.articulation.contacts
    assert len(contacts) == len(golden(task)["contacts"])
    if contacts:
        env.simulator.step(q, qd, qd)
        points, _ = contact_motion(env, 0)
        materials = [[c.stiffness, c.damping, c.friction_stiffness, c.friction] for c in contacts]
        ours = np.concatenate([points[0], materials], axis=1)
        # in any order
        equal = np.isclose(ours[:, None], golden(task)["contacts"], rtol=1e-6, atol=1e-5).all(axis=2)
        assert equal.any(axis=0).all() and equal.any(axis=1).all()


@pytest.mark.parametrize("task, target", [("ant", 10_000.0), ("anymal", 10_000.0), ("humanoid", 200.0)])
def test_heading_points_to_the_target(task, target):
    """The golden robots are so far from it that they could not tell where it is."""
    env = make(task, num_envs=1)
    q, qd = env.rest_state()
    q[:, 0], q[:, 2] = target - 10.0, 10.0
    obs = env.observe(q, qd, torch.zeros(1, env.num_actions))
    # the robot faces +x, and the target is as far in front of it as it is to its side
    assert obs[0, 12 + 2 * env.num_actions].item() == pytest.approx(0.5**0.5, abs=1e-5)


@pytest.mark.parametrize("task, interval", INTERVALS)
def test_every_substep_matches_dflex(task, interval):
    env = make(task, interval)
    q0, qd0, actions = golden_inputs(task)
    env.set_state(q0, qd0)
    batch = env.simulator.batches[0]
    golden_q, golden_qd = (golden(task)[f"sub_mm{interval}/{name}"] for name in ("q", "qd"))
    for t in range(len(golden_q) // env.substeps):  # environment steps
        # inside the simulator x and z count from where the step began
        origin = torch.zeros(4, 3)
        if floats(task):
            origin = env.joint_q[:, :3] * torch.tensor([1.0, 0.0, 1.0])
        elif env.articulation.translates_along_x:
            origin[:, 0] = env.joint_q[:, 0]
        env.step(actions[t])
        for s in range(env.substeps):
            q, qd = moved(task, batch.q[s + 1].value, batch.qd[s + 1].value, origin)
            k = t * env.substeps + s
            # of the state's scale: float32 over up to 48 substeps.  Measured: 4e-7 and 6e-6 (humanoid)
            assert np.abs(q.numpy() - golden_q[k]).max() <= 5e-6 * max(1.0, np.abs(golden_q[k]).max())
            assert np.abs(qd.numpy() - golden_qd[k]).max() <= 2e-5 * np.abs(golden_qd[k]).max()


@pytest.mark.parametrize("task, interval", ROLLOUTS)
def test_32_steps_are_as_near_to_float64_as_dflex(task, interval):
    env = make(task, interval)
    q0, qd0, actions = golden_inputs(task)
    env.set_state(q0, qd0)
    obs, reward, ours = [], [], {"q": [], "qd": []}
    for action in actions:
        results = env.step(action)
        obs.append(results[0].numpy())
        reward.append(results[1].numpy())
        ours["q"].append(env.joint_q.numpy())
        ours["qd"].append(env.joint_qd.numpy())
    for name in ("q", "qd"):
        float64 = golden(task)[f"f64/mm{interval}/{name}"]
        float32_noise = np.abs(golden(task)[f"mm{interval}/{name}"] - float64).max()
        # measured: at most 1.9 times DFlex's own
        assert np.abs(np.array(ours[name])[3::4] - float64).max() <= 10 * float32_noise
    # two float32 simulations drift apart; measured: 1e-4 (humanoid), 7e-5 (ant), 2e-5 (others)
    assert np.allclose(reward, golden(task)[f"mm{interval}/rew_post"], rtol=0.0, atol=1e-3)
    if interval == TASKS[task].mass_matrix_interval:
        assert np.allclose(obs[3::4], golden(task)["obs"], rtol=0.0, atol=1e-3)


def tangential(task, grad, q0):
    """The gradient with respect to q0 less its part along the quaternion.

    Only turns are physical.  What a longer or shorter quaternion would do depends on how the formulas for a rotation
    are continued beyond unit length, and there DFlex's are not ours.
    """
    grad = np.asarray(grad).astype(np.float64)
    if floats(task):
        u = q0[:, 3:7] / np.linalg.norm(q0[:, 3:7], axis=1, keepdims=True)
        grad[:, 3:7] -= (grad[:, 3:7] * u).sum(axis=1, keepdims=True) * u
    return grad


@pytest.mark.parametrize("horizon", (8, 32))
@pytest.mark.parametrize("task, interval", ROLLOUTS)
def test_gradient_of_the_return_matches_dflex_in_float64(task, interval, horizon):
    env = make(task, interval)
    q0, qd0, actions = golden_inputs(task, requires_grad=True)
    env.set_state(q0, qd0)
    total = sum(env.step(action)[1].sum() for action in actions[:horizon])
    grads = dict(zip(("q0", "qd0", "actions"), torch.autograd.grad(total, [q0, qd0, actions])))
    grads["actions"] = grads["actions"][:horizon]
    # measured: ant 3e-4 after 32 steps (DFlex's own float32: 8e-4), humanoid 7e-5 (9e-5), others 1e-5.  The rest is
    # room for other processors, far below any wrong term
    tolerance = {"ant": 1e-3, "humanoid": 5e-4}.get(task, 1e-4)
    for name, ours in grads.items():
        dflex = golden(task)[f"f64/mm{interval}/grad{horizon}_rew_post/{name}"]
        if name == "q0":
            ours, dflex = (tangential(task, grad, golden(task)["q0"]) for grad in (ours, dflex))
        assert relative(ours, dflex) <= tolerance, name


@pytest.mark.parametrize("task", [task for task in TASKS if task != "cartpole"])  # its rail ends at 4 m
def test_nothing_changes_200_m_from_the_origin(task):
    results = []
    for x in (0.0, 200.0):
        env = make(task)
        c = torch.tensor([[x, 0.0, 0.0]]).repeat(4, 1).double()
        q0, qd0, actions = golden_inputs(task)
        q, qd = moved(task, q0.double(), qd0.double(), c)
        env.set_state(q.float(), qd.float())
        if floats(task):
            env.target_x += x  # the heading is observed and rewarded
        actions = actions[:8].requires_grad_()
        steps = [env.step(action)[:2] for action in actions]
        obs, reward = (torch.stack(values) for values in zip(*steps))
        grad = torch.autograd.grad(reward.sum(), actions)[0]
        q, qd = moved(task, env.joint_q.detach().double(), env.joint_qd.detach().double(), -c)
        results.append([q, qd, obs.detach(), reward.detach(), grad])
    # What is stored after every step is rounded: the position to 200 m * 2^-24 = 1.2e-5 m, and the twist about the
    # world origin, with its linear part v - w x p, to 1.2e-5 m/s for every rad/s.  In eight steps that becomes
    # (measured) 2e-5 in q, 9e-5 in qd and obs, 1e-5 in rewards and 3e-5 of the gradient.  A foot that touches down one
    # substep later makes ten times that, in the humanoid
    near, far = results
    for ours, expected, tolerance in zip(far, near, (1e-4, 2e-3, 2e-3, 2e-4)):
        assert torch.allclose(ours, expected, rtol=0.0, atol=tolerance)
    assert relative(far[-1], near[-1]) <= 1e-3


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


@pytest.mark.parametrize("copies", (1, 16))  # 64 environments run on two threads
@pytest.mark.parametrize("task", TASKS)
def test_backward_twice_and_another_rollout_in_between_change_nothing(task, copies):
    n, cls = 4 * copies, TASKS[task]
    simulator = Simulator(cls.articulation, n, cls.dt, cls.substeps, cls.mass_matrix_interval, num_threads=2)
    q, qd = (x.repeat(copies, 1).requires_grad_() for x in golden_inputs(task)[:2])
    act = torch.zeros_like(qd)
    new_q, new_qd, _ = simulator.step(q, qd, act)
    first = torch.autograd.grad(new_q.sum() + new_qd.sum(), [q, qd], retain_graph=True)
    other_q, *_ = simulator.step(q + 0.3, 2.0 * qd, act + 50.0)
    torch.autograd.grad(1e3 * other_q.sum(), [q, qd])
    second = torch.autograd.grad(new_q.sum() + new_qd.sum(), [q, qd])
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize("limits", ({"KEPT_STEPS": 1}, {"KEPT_STEPS": 3}, {"KEPT_BYTES": 1}, {"KEPT_STEPS": 32}))
@pytest.mark.parametrize("task", ("hopper", "ant"))
def test_gradients_are_the_same_whether_steps_are_kept_or_run_again(task, limits, monkeypatch):
    def rollout(steps_in_between):
        env = make(task, num_envs=16)
        env.reset(seed=3)
        actions = torch.full((8, 16, env.num_actions), 0.1, requires_grad=True)
        total = sum(env.step(action)[1].sum() for action in actions)
        q, qd = env.joint_q.detach(), env.joint_qd.detach()
        for _ in range(steps_in_between):  # without a gradient, in the buffers of the last step
            env.simulator.step(q + 1.0, qd, torch.ones_like(qd))
        return torch.autograd.grad(total, actions)[0], env.simulator

    expected, simulator = rollout(0)
    # after eight steps of the 112 over which the buffers are made
    assert simulator.max_kept == 32 and len(simulator.kept) == 6 and expected.abs().sum() > 0.0
    for name, value in limits.items():
        monkeypatch.setattr(f"envs.physics.simulator.{name}", value)
    grad, simulator = rollout(2)
    assert len(simulator.kept) == min(6, simulator.max_kept) and simulator.max_kept == limits.get("KEPT_STEPS", 1)
    assert torch.equal(grad, expected)


def test_after_112_steps_all_buffers_have_been_made():
    env = make("cartpole", num_envs=2)
    env.reset()
    for _ in range(112):
        env.step(torch.zeros(2, 1, requires_grad=True))
    assert len(env.simulator.kept) == env.simulator.max_kept == 32


def test_without_gradients_nothing_is_kept():
    env = make("hopper", num_envs=2)
    env.reset()
    env.step(torch.zeros(2, 3, requires_grad=True))
    assert len(env.simulator.kept) == 2 and env.joint_q.requires_grad
    with torch.no_grad():
        env.step(torch.zeros(2, 3, requires_grad=True))
    assert len(env.simulator.kept) == 2


def test_an_interrupted_step_does_not_pass_for_the_one_before(monkeypatch):
    simulator = make("hopper", num_envs=2).simulator
    q, qd, act = (torch.full((2, 6), x, requires_grad=True) for x in (0.1, 0.2, 0.3))
    new_q, *_ = simulator.step(q, qd, act)
    (expected,) = torch.autograd.grad(new_q.sum(), q, retain_graph=True)

    def replay_and_stop(self, graph, replay=Substeps._replay):
        replay(self, graph)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), torch.no_grad():
        patch.setattr(Substeps, "_replay", replay_and_stop)
        simulator.step(q + 1.0, qd, act)  # in the buffers of the step before
    assert torch.equal(torch.autograd.grad(new_q.sum(), q)[0], expected)


@pytest.mark.parametrize("task", TASKS)
def test_threads_do_not_change_a_single_bit(task):
    results = []
    for num_threads in (1, 2, 3):
        env = envs.make(task, num_envs=100, num_threads=num_threads)
        env.reset()
        actions = torch.zeros(100, env.num_actions, requires_grad=True)
        total = sum(env.step(actions + 0.1 * k)[1].sum() for k in range(4))
        results.append((env.joint_q.detach(), torch.autograd.grad(total, actions)[0]))
    assert len(env.simulator.batches) == 3
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))


MEMORY = """
import os, torch, envs
env = envs.make("hopper", num_envs=256)
env.reset()
for _ in range(61):
    env.detach()
    actions = torch.zeros(256, 3, requires_grad=True)
    torch.autograd.grad(sum(env.step(actions)[1].sum() for _ in range(8)), actions)
    with open("/proc/self/statm") as file:
        print("MiB", int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads the resident memory from Linux's /proc")
def test_memory_is_flat():
    # in a process of its own: where earlier tests have left free memory behind, a leak would not show
    options = {"cwd": DATA.parent.parent, "stdout": subprocess.PIPE, "text": True, "timeout": 240, "check": True}
    output = subprocess.run([sys.executable, "-c", MEMORY], **options)
    resident = [float(line.split()[1]) for line in output.stdout.splitlines() if line.startswith("MiB ")]
    # a rollout that is kept by mistake adds at least 8 * 256 * 12 * 4 bytes = 0.1 MiB, 1 MiB in every ten.  The
    # allocator, too, takes some now and then, but not in three stretches of four.  The first 20 fill buffers
    growth = sorted(resident[k + 10] - resident[k] for k in (20, 30, 40, 50))
    assert growth[1] < 0.5, resident


@pytest.mark.parametrize("task", ("hopper", "humanoid", "hand_reorient"))
def test_memory_layout_of_cuda_gives_the_same_numbers(task, monkeypatch):
    """Environments last in memory, as on CUDA: the same bits, because kernels reach a number by its indices."""

    def step_and_gradients():
        env = envs.make(task, num_envs=5, seed=1, num_threads=1)
        env.reset()
        env.step(torch.zeros(5, env.num_actions))
        simulator, noise = env.simulator, torch.Generator().manual_seed(2)
        q, qd = (x.detach().requires_grad_() for x in (env.joint_q, env.joint_qd))
        act = torch.randn(qd.shape, generator=noise).requires_grad_()
        new_q, new_qd, _ = simulator.step(q, qd, act)
        weights = [torch.randn(x.shape, generator=noise) for x in (new_q, new_qd)]
        grads = torch.autograd.grad([new_q, new_qd], [q, qd, act], weights)
        return simulator.batches[0].new_q.array, (new_q, new_qd, *grads)

    array, expected = step_and_gradients()
    monkeypatch.setattr(Substeps, "environments_last", True)
    transposed, actual = step_and_gradients()
    assert array.strides == (4 * array.shape[1], 4) and transposed.strides == (4, 4 * 5)
    assert all(x.abs().sum() > 0 for x in expected[2:])
    assert all(torch.equal(a, b) for a, b in zip(actual, expected))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("task", (*TASKS, "hand_reorient"))
def test_cuda_computes_the_same_step_and_gradients(task):
    env, noise, results = envs.make(task, num_envs=8, seed=1), torch.Generator().manual_seed(2), []
    env.reset()
    start = env.joint_q, env.joint_qd, torch.randn(env.joint_qd.shape, generator=noise)
    weights = [torch.randn(x.shape, generator=noise) for x in start[:2]]
    for device in ("cpu", "cuda"):
        simulator = envs.make(task, num_envs=8, device=device).simulator
        inputs = [x.detach().to(device).requires_grad_() for x in start]
        outputs = simulator.step(*inputs)[:2]
        grads = torch.autograd.grad(outputs, inputs, [x.to(device) for x in weights])
        results.append([x.detach().cpu() for x in (*outputs, *grads)])
    # float32 sums in another order, through up to 64 substeps of stiff contact
    assert all(relative(cuda, cpu) < 1e-3 for cpu, cuda in zip(*results))
