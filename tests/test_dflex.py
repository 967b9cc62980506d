"""Every simulator against DFlex's golden numbers: tables, motion, gradients of the return."""

import numpy as np
import pytest
import torch
from golden import (
    INTERVALS,
    ROLLOUTS,
    TASKS,
    contact_motion,
    floats,
    golden,
    golden_inputs,
    hinges_and_slides,
    make,
    moved,
    relative,
)

import envs


def test_every_task_is_tested():
    # the hand and Go1 are not DFlex's: see test_hand.py and test_go1.py
    assert {*TASKS, "hand_reorient", "go1"} == set(envs.ENV_IDS)


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
            q, qd = moved(task, *(torch.tensor(x[s + 1].numpy()) for x in (batch.q, batch.qd)), origin)
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
