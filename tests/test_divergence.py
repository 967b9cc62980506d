"""Environments that blow up: when, what becomes of them, and that the others do not notice."""

import pytest
import torch
from hoppers import ActionInObservation, fallen_state, make


@pytest.mark.parametrize("x, diverged", [(0.9e6, 0), (1.1e6, 1)])
def test_a_million_metres_are_the_limit(x, diverged):
    env = make(1)
    q, qd = fallen_state(1)
    q[0, 0] = x
    env.set_state(q, qd)
    *_, infos = env.step(torch.zeros(1, 3))
    assert infos["diverged"] == diverged


@pytest.mark.parametrize("value", (float("nan"), float("inf"), 1e9))
def test_a_diverged_environment_is_reset_and_the_others_do_not_notice(value):
    grads, observations = [], []
    for blow_up in (False, True):
        env = ActionInObservation(3)
        env.reset()
        q, qd = fallen_state(3)
        if blow_up:
            qd[1, 2] = value
        env.joint_q, env.joint_qd = q.requires_grad_(), qd.requires_grad_()
        actions = [torch.full((3, 3), 0.1, requires_grad=True) for _ in range(2)]
        first, reward, terminated, truncated, infos = env.step(actions[0])
        if blow_up:
            assert terminated.tolist() == [False, True, False] and not truncated.any()
            assert infos["diverged"] == 1 and infos["diverged"].dtype == torch.int64 and reward[1] == 0
            assert first[1].abs().max() <= 0.05
            assert torch.equal(infos["final_obs"][1], first[1])  # the action that went before is forgotten, too
        second, reward2, *_, infos2 = env.step(actions[1])
        total = (reward + reward2).sum() + infos["final_obs"].sum() + infos2["final_obs"].sum()
        grads.append(torch.autograd.grad(total, [q, qd, *actions]))
        observations.append(second.detach())
    assert all(grad.isfinite().all() for grad in grads[1])
    assert (grads[1][0][1] == 0).all() and (grads[1][2][1] == 0).all()
    others = [0, 2]
    assert all(torch.equal(a[others], b[others]) for a, b in zip(*grads))
    assert torch.equal(observations[0][others], observations[1][others])
    assert env.diverged == 1


def test_a_step_after_a_divergence_has_clean_gradients():
    """Nothing of a row that blew up stays behind in the simulator's shared gradient buffers."""
    env = make(2, num_threads=1)
    q, qd = fallen_state(2)

    def gradient():
        env.set_state(q, qd)
        action = torch.zeros(2, 3, requires_grad=True)
        return torch.autograd.grad(env.step(action)[0].sum(), action)[0]

    clean = gradient()
    bad = qd.clone()
    bad[0] = float("nan")
    env.joint_q, env.joint_qd = q.requires_grad_(), bad
    torch.autograd.grad(env.step(torch.zeros(2, 3))[0].sum(), q)
    assert torch.equal(gradient(), clean)
