"""The algorithm of ahac_continuous.py: its horizon, its two critics, and the stiffness that it measures."""

import copy
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from toy_mdp import GAMMA, H, N, ToyEnv, brute_force_return, critic, gradient, relative

import ahac_continuous as ahac
import envs
import shac_continuous as shac
from benchmarks.tiny import assert_same


def make_args(**changes):
    return ahac.Args(**{"num_steps": H, "gamma": GAMMA} | changes)


# the horizon
def course(ratios, **changes):
    """(lambda, H) after each iteration in which c / C was one of these ratios; the rollouts have the rounded H."""
    args, horizon = make_args(**{"num_steps": 32} | changes), ahac.Horizon(32)
    horizon.reference, horizon.num_updates = torch.tensor(100.0).double(), torch.tensor(10.0).double()
    for ratio in ratios:
        horizon.update(100.0 * args.stiffness_limit * ratio, horizon(), args)
        yield horizon.dual.item(), horizon.length.item()


def test_horizon_falls_where_the_simulator_is_stiff():
    found = [*course([2.0] * 123)]
    assert found[0] == pytest.approx((0.002, 31.984)) and found[9] == pytest.approx((0.02, 31.1295), abs=5e-5)
    assert found[24] == pytest.approx((0.05, 27.1785), abs=5e-5)
    assert [found[k - 1][1] for k in (50, 100)] == pytest.approx([19.841, 10.591], abs=5e-4)
    assert found[121][1] > 8.0 and found[122] == (0.05, 8.0)  # the smallest H, and the bound of lambda


def test_horizon_rises_where_it_is_soft():
    lengths = [length for _, length in course([0.8] * 118)]
    assert [lengths[49], lengths[99]] == pytest.approx([36.3403, 52.9289], abs=5e-5)
    assert lengths[116] < 64.0 == lengths[117]


def test_horizon_turns_when_the_price_has_changed_its_sign():
    found = [*course([1.5] * 60 + [0.5] * 200)]
    lengths = [found[k - 1][1] for k in (60, 110, 200, 260)]
    assert lengths == pytest.approx([20.4743, 15.0645, 34.0095, 64.0], abs=5e-5)
    assert found[108][0] > 1e-6 and abs(found[109][0]) < 1e-9  # after as many iterations of slack as it took


@pytest.mark.parametrize("limit, end", [(1e-9, 8), (0.5, 8), (2.0, 64), (math.inf, 64)])
def test_the_limit_is_a_multiple_of_the_first_stiffness(limit, end):
    args, horizon = make_args(num_steps=32, stiffness_limit=limit), ahac.Horizon(32)
    for _ in range(300):
        horizon.update(3.0, horizon(), args)
    assert horizon() == end


def test_the_first_ten_iterations_make_the_reference_and_leave_the_horizon():
    args, horizon = make_args(num_steps=32), ahac.Horizon(32)
    for k in range(10):
        assert horizon() == 32
        horizon.update(float(k), 32, args)
    assert horizon.reference.item() == pytest.approx(4.5) and horizon.dual.item() == 0.0
    assert horizon.limit(make_args(stiffness_limit=2.0)).item() == pytest.approx(9.0)
    horizon.update(9.0, 32, args)
    assert horizon.dual.item() == pytest.approx(0.002) and horizon.length.item() == pytest.approx(31.984)
    assert horizon.reference.item() == pytest.approx(4.5)


def test_horizon_stays_without_a_step_size():
    assert {length for _, length in course([5.0] * 50, horizon_lr=0.0)} == {32.0}


@pytest.mark.parametrize("length, steps", [(8.5, 9), (9.5, 10), (28.5, 29), (31.5, 32), (31.499, 31), (8.0, 8)])
def test_one_half_is_rounded_upwards(length, steps):
    assert ahac.Horizon(length)() == steps


# returns and critics
def toy_policy():
    torch.manual_seed(1)
    actor, normalizer = ahac.Actor(2, 2), ahac.ObsNormalizer(2)
    normalizer.mean, normalizer.var = torch.tensor([0.125, -0.25]), torch.tensor([0.5, 2.0])
    return actor, normalizer


class ToyEnvWithState(ToyEnv):
    """With coordinates, which the rollout keeps."""

    joint_q = property(lambda self: self.state[:, :1])
    joint_qd = property(lambda self: self.state[:, 1:])


def collect(script=ahac, critic=critic, num_steps=H, **changes):
    actor, normalizer = toy_policy()
    torch.manual_seed(7)
    steps = [num_steps] if script is ahac else []
    env, args = ToyEnvWithState(), script.Args(**{"num_steps": num_steps, "gamma": GAMMA} | changes)
    return actor, normalizer, *script.rollout(env, actor, critic, copy.deepcopy(normalizer), *steps, args)


def test_policy_gradient_is_that_of_the_return_with_the_smaller_critic(float64):
    actor, normalizer, _, returns, _ = collect()
    ours = gradient(ahac.policy_loss(returns, H), actor)
    smaller = lambda s: critic(s).amin(-1, keepdim=True)  # noqa: E731
    total, _, _ = brute_force_return(actor, normalizer, draws_entropy=False, critic=smaller)
    assert relative(ours, gradient(-total / (H * N), actor)) < 1e-12
    mean, _, _ = brute_force_return(actor, normalizer, draws_entropy=False)
    assert relative(gradient(-mean / (H * N), actor), ours) > 1e-3


def test_with_one_critic_a_rollout_is_that_of_shac(float64):
    alike = lambda s: critic(s).amin(-1, keepdim=True)  # noqa: E731
    _, _, data, returns, _ = collect(critic=alike)
    _, _, theirs, their_returns, _ = collect(shac, critic=alike)
    assert torch.equal(returns, their_returns)
    assert set(data) == {*theirs, "joint_q", "joint_qd", "action"}
    assert all(torch.equal(data[name], x) for name, x in theirs.items())


def test_a_rollout_is_as_long_as_it_is_told_and_keeps_the_states_before_its_steps(float64):
    _, _, data, _, grads = collect(num_steps=3)
    assert all(len(x) == 3 for x in data.values()) and data["ends"][-1].all() and not data["ends"][0].any()
    assert torch.equal(torch.cat([data["joint_q"], data["joint_qd"]], -1), data["raw_obs"])
    assert data["action"].abs().max() <= 1.0 and not any(x.requires_grad for x in data.values()) and grads == []


class Script:
    """An environment with rewards 1, 2, 3, 4 that ends its episode in the second step."""

    joint_q = joint_qd = torch.zeros(1, 1)

    def __init__(self, end):
        self.end, self.t = end, 0

    def detach(self):
        return torch.zeros(1, 1)

    def step(self, action):
        self.t += 1
        ends = [torch.tensor([self.t == 2 and self.end == kind]) for kind in ("terminated", "truncated")]
        infos = {"final_obs": torch.full((1, 1), float(self.t)), "episode": {"r": torch.zeros(1), "l": torch.zeros(1)}}
        return torch.zeros(1, 1), torch.tensor([float(self.t)]) + 0.0 * action.sum(), *ends, infos


@pytest.mark.parametrize("end, expected", [("terminated", 39.343), ("truncated", 58.945)])
def test_return_by_hand(end, expected, float64):
    # gamma = 0.99; the smaller value is 20 after the second step and 30 after the fourth
    values = lambda s: torch.cat([5.0 * s + 10.0, 5.0 * s + 12.0], dim=-1)  # noqa: E731
    _, returns, _ = ahac.rollout(Script(end), ahac.Actor(1, 1), values, torch.nn.Identity(), 4, make_args(gamma=0.99))
    assert returns.item() == pytest.approx(expected, abs=5e-4)
    assert ahac.policy_loss(returns, 4).item() == pytest.approx(-expected / 4, abs=5e-4)


def test_targets_by_hand(float64):
    rewards, ends = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[False], [False], [True]])
    targets = ahac.td_lambda_targets(rewards, torch.tensor([[10.0], [20.0], [30.0]]), ends, 0.99, 0.95)
    assert targets.flatten().tolist() == pytest.approx([33.231561175, 33.74435, 32.7], rel=1e-12)
    fall = torch.tensor([[False], [True], [True]])
    targets = ahac.td_lambda_targets(rewards, torch.tensor([[10.0], [0.0], [30.0]]), fall, 0.99, 0.95)
    assert targets.flatten().tolist() == pytest.approx([3.376, 2.0, 32.7], rel=1e-12)


def test_critics_share_no_weights():
    torch.manual_seed(0)
    critic, obs = ahac.Critic(3), torch.randn(5, 3)
    before = critic(obs)
    with torch.no_grad():
        for parameter in critic.values[0].parameters():
            parameter.add_(0.1)
    after = critic(obs)
    assert torch.equal(before[:, 1], after[:, 1]) and (before[:, 0] != after[:, 0]).all()
    values = torch.tensor([[1.0, 2.0], [5.0, 3.0]], requires_grad=True)
    assert torch.autograd.grad(values.amin(-1).sum(), values)[0].tolist() == [[1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    "loss, passes",
    [
        (lambda j: 8.0 * 0.5**j, 9),
        (lambda j: 1.0, 5),
        (lambda j: 100.0 * 0.95**j, 64),
        (lambda j: 1000.0 * 0.9**j, 63),
        (lambda j: 50.0 * (j % 4 == 0), 5),  # although it oscillates
    ],
)
def test_passes_end_when_the_loss_has_stopped_falling(loss, passes):
    losses = []
    while len(losses) < 64 and not ahac.converged(losses, 0.2):
        losses.append(loss(len(losses)))
    assert len(losses) == passes


# the stiffness
def linear(matrix, diverged=()):
    """An environment whose next state is the state times a matrix."""
    failed = torch.zeros(4, dtype=torch.bool)
    failed[list(diverged)] = True

    def step(joint_q, joint_qd, act):
        state = torch.cat([joint_q, joint_qd], dim=1) @ matrix.T
        return *state.split(1, dim=1), failed

    simulator = SimpleNamespace(step=step)
    return SimpleNamespace(simulator=simulator, actuate=lambda action: action, at_origin=lambda *state: state)


def test_random_signs_measure_the_norm_of_the_jacobian(monkeypatch):
    env, zeros = linear(torch.tensor([[1.0, 2.0], [3.0, 4.0]])), torch.zeros(3, 4, 1)
    squares = []
    for signs in itertools.product((0.0, 1.0), repeat=2):
        drawn = iter(signs)
        monkeypatch.setattr(torch, "randint_like", lambda x, high, drawn=drawn: torch.full_like(x, next(drawn)))
        squares.append(ahac.measure_stiffness(env, zeros, zeros, zeros) ** 2)
    assert sorted(squares) == pytest.approx([8.0, 8.0, 52.0, 52.0]) and sum(squares) / 4 == pytest.approx(30.0)


def test_steps_are_drawn_from_the_whole_rollout_and_what_diverged_is_left_out():
    joint_q = torch.arange(3.0)[:, None, None] + 10.0 * torch.arange(4.0)[:, None]
    seen = []
    env = linear(torch.eye(2), diverged=(1,))
    env.at_origin = lambda *state: seen.append(state) or state
    torch.manual_seed(0)
    for _ in range(50):
        # the identity: every row is as long as its signs
        assert ahac.measure_stiffness(env, joint_q, joint_q, joint_q) == pytest.approx(math.sqrt(2.0))
    rows = {row for state in seen for row in zip(range(4), state[0].flatten().tolist())}
    assert rows == {(n, 10.0 * n + t) for n in range(4) for t in range(3)}
    assert ahac.measure_stiffness(linear(torch.eye(2), range(4)), joint_q, joint_q, joint_q) == 0.0


@pytest.mark.parametrize("factor", [torch.nan, torch.inf, 1e30])
def test_a_derivative_that_is_not_finite_is_left_out_where_the_state_is(factor):
    class Broken(torch.autograd.Function):  # the state as it is, with a gradient that is not
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * torch.tensor([1.0, factor, 1.0, 1.0])[:, None]

    env, zeros = linear(torch.eye(2)), torch.zeros(3, 4, 1)
    env.simulator.step = lambda joint_q, joint_qd, act: (Broken.apply(joint_q), joint_qd, torch.zeros(4) > 0)
    assert ahac.measure_stiffness(env, zeros, zeros, zeros) == pytest.approx(math.sqrt(2.0))


def jacobian(env, joint_q, joint_qd, action):
    """|J|_F (N,), J = d(q', qd') / d(q, qd) of one step, by one product for each of its rows."""
    state = [x.clone().requires_grad_() for x in env.at_origin(joint_q, joint_qd)]
    *new_state, _ = env.simulator.step(*state, env.actuate(action))
    outputs = torch.cat(new_state, dim=1)
    rows = [torch.autograd.grad(outputs[:, k].sum(), state, retain_graph=True) for k in range(outputs.shape[1])]
    return torch.stack([torch.cat(row, dim=1).square().sum(1) for row in rows]).sum(0).sqrt()


@pytest.mark.parametrize(
    "env_id, expected",
    [
        ("hopper", 3.316),
        ("ant", 6.281),
        ("cartpole", 2.005),
        ("humanoid", 7.567),
        ("cheetah", 49.57),
        ("anymal", 196.5),
    ],
)
def test_stiffness_at_rest(env_id, expected):
    env = envs.make(env_id)
    env.reset()
    found = jacobian(env, *env.rest_state(), torch.zeros(1, env.num_actions))
    assert found.item() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("env_id, expected", [("ant", 6.459), ("anymal", 23.43)])
def test_stiffness_in_the_air(env_id, expected):
    env = envs.make(env_id)
    env.reset()
    (joint_q, joint_qd), still = env.rest_state(), torch.zeros(1, env.num_actions)
    with torch.no_grad():
        env.set_state(joint_q, joint_qd)
        for _ in range(30):
            env.step(still)
    joint_q, joint_qd = env.joint_q.clone(), env.joint_qd.clone()
    joint_q[:, 1] += 1.0  # up; about the world origin a falling robot's twist is another
    joint_qd[:, 3:6] -= torch.linalg.cross(joint_qd[:, :3], torch.tensor([[0.0, 1.0, 0.0]]))
    assert jacobian(env, joint_q, joint_qd, still).item() == pytest.approx(expected, rel=0.01)


@pytest.fixture(scope="module")
def ants():
    """32 ants after 40 random steps, and an action."""
    env = envs.make("ant", num_envs=32)
    env.reset()
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(40):
            env.step(torch.tanh(0.4 * torch.randn(32, 8)))
    return env, torch.tanh(0.4 * torch.randn(32, 8))


def recorded(env, action):
    return env.joint_q[None], env.joint_qd[None], action[None]


def test_the_measure_is_that_of_the_jacobian_on_average(ants):
    env, action = ants
    exact = jacobian(env, env.joint_q, env.joint_qd, action)
    torch.manual_seed(0)
    mean = sum(ahac.measure_stiffness(env, *recorded(env, action)) for _ in range(40)) / 40
    assert 0.85 * exact.mean() < mean < exact.mean()  # the mean of the lengths is below the root of the mean square


def test_the_measure_does_not_depend_on_how_far_a_robot_has_run(ants):
    env, action = ants
    joint_q, joint_qd = env.joint_q.clone(), env.joint_qd.clone()
    joint_q[:, 0] += 100.0  # which the robot does not notice; about the world origin its twist is another
    joint_qd[:, 3:6] -= torch.linalg.cross(joint_qd[:, :3], torch.tensor([[100.0, 0.0, 0.0]]))
    measured = []
    for state in (env.joint_q[None], env.joint_qd[None]), (joint_q[None], joint_qd[None]):
        torch.manual_seed(0)
        measured.append(ahac.measure_stiffness(env, *state, action[None]))
    assert measured[0] == pytest.approx(measured[1], rel=0.02)


def test_the_measure_leaves_no_trace_in_the_environments(ants):
    env, action = ants
    before = env.state_dict()
    expected = env.step(action)
    env.load_state_dict(before)
    ahac.measure_stiffness(env, *recorded(env, action))
    assert_same(env.state_dict(), before, "state")
    assert_same(env.step(action), expected, "step")
    env.load_state_dict(before)


def test_stiffness_of_the_cartpole_is_always_the_same():
    env = envs.make("cartpole", num_envs=64)
    env.reset()
    torch.manual_seed(0)
    for _ in range(5):
        action = 2.0 * torch.rand(64, 1) - 1.0
        assert ahac.measure_stiffness(env, *recorded(env, action)) == pytest.approx(2.0, abs=0.05)
        with torch.no_grad():
            env.step(action)
