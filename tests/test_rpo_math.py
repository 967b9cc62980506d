"""The algorithm of rpo_continuous.py on toys with known answers, without a simulator; float64 unless said otherwise."""

import copy
import math

import numpy as np
import pytest
import torch
from toy_mdp import (
    GAMMA,
    ChainEnv,
    H,
    LinearPolicy,
    N,
    ToyEnv,
    brute_force_return,
    critic,
    flatten,
    gradient,
    relative,
    value,
)

import rpo_continuous as rpo

pytestmark = pytest.mark.usefixtures("float64")


def make_args(**changes):
    values = {"num_steps": H, "gamma": GAMMA, "kl_coef": 0.0, "ent_coef": 0.0} | changes
    return rpo.Args(**values)


def toy_policy():
    torch.manual_seed(1)
    actor, normalizer = rpo.Actor(2, 2), rpo.ObsNormalizer(2)
    normalizer.mean, normalizer.var = torch.tensor([0.125, -0.25]), torch.tensor([0.5, 2.0])  # exact in float32
    return actor, normalizer


def collect(actor, normalizer, args, env=None, critic=critic):
    torch.manual_seed(7)
    return run(env or ToyEnv(), actor, critic, copy.deepcopy(normalizer), args)


def run(*rollout_arguments):
    """The rollout's data with the cached gradients, as the main loop makes them."""
    data, returns, us = rpo.rollout(*rollout_arguments)
    return data | {"action_grads": rpo.action_gradients(returns, us)}


def test_first_epoch_is_the_gradient_of_shac():  # M1
    actor, normalizer = toy_policy()
    args = make_args()
    data = collect(actor, normalizer, args)
    loss, stats = rpo.policy_loss(actor, flatten(data), args)
    total, us, _ = brute_force_return(actor, normalizer)
    direct = gradient(-total / (H * N), actor)
    cached = gradient(loss, actor)
    assert relative(cached, direct) < 1e-12
    assert stats["ratio_max"] == pytest.approx(1.0, abs=1e-12) and stats["kept"] == 1.0
    for cached_grad, live_grad in zip(data["action_grads"], torch.autograd.grad(total, us)):
        assert torch.allclose(cached_grad, live_grad, rtol=1e-10, atol=1e-12)

    actor32 = copy.deepcopy(actor).float()
    data32 = {name: x.float() if x.is_floating_point() else x for name, x in flatten(data).items()}
    assert relative(gradient(rpo.policy_loss(actor32, data32, args)[0], actor32), direct) < 1e-5

    # the same equality must fail for an open-loop gradient, and for a bootstrap from the state before the step
    for wrong in ({"leaf_actions": True}, {"value_of": "current"}):
        total, us, _ = brute_force_return(actor, normalizer, **wrong)
        wrong_grads = torch.stack(torch.autograd.grad(total, us))
        loss, _ = rpo.policy_loss(actor, flatten(data | {"action_grads": wrong_grads}), args)
        assert relative(gradient(loss, actor), direct) > 1e-2


def test_noise_with_a_gradient_would_leave_nothing_to_learn():  # M1, negative control of regenerate()
    actor, normalizer = toy_policy()
    data = flatten(collect(actor, normalizer, make_args()))
    mean, log_std = actor(data["obs"])
    right = (data["action_grads"] * rpo.regenerate(data["u"], mean, log_std)).sum()
    wrong = (data["action_grads"] * (mean + log_std.exp() * ((data["u"] - mean) / log_std.exp()))).sum()
    assert gradient(wrong, actor).norm() < 1e-10 * gradient(right, actor).norm()


@pytest.mark.parametrize(
    "curvature, expected, dkappa", [(0.0, (-0.6125, -0.225), 0.725), (2.0, (-1.0175, -1.035), 1.535)]
)
def test_two_steps_by_hand(curvature, expected, dkappa):  # M1b
    # closed loop, V(s) = -curvature s^2: dR/da_0 contains that a_1 = -kappa s_1 answers to a_0 (open loop: -0.725)
    args = make_args(num_steps=2)
    policy = LinearPolicy()
    data = run(ChainEnv(), policy, lambda s: -curvature * torch.cat([s, s], -1) ** 2, torch.nn.Identity(), args)
    assert torch.allclose(data["action_grads"].flatten(), torch.tensor(expected), atol=1e-9)
    # sum_t (du_t / dkappa) grad_t = dR / dkappa with du_t / dkappa = -s_t
    assert -(data["obs"] * data["action_grads"]).sum().item() == pytest.approx(dkappa, abs=1e-9)


def test_soft_return_and_direct_entropy_make_sapo():  # M2
    actor, normalizer = toy_policy()
    alpha = 0.3
    data = collect(actor, normalizer, make_args(ent_coef=alpha))
    loss, _ = rpo.policy_loss(actor, flatten(data), make_args())
    cached = gradient(loss, actor)
    total, _, direct = brute_force_return(actor, normalizer, ent_coef=alpha)
    sapo = gradient(-total / (H * N), actor)
    assert relative(cached + gradient(-alpha * direct / (H * N), actor), sapo) < 1e-12
    assert relative(cached, sapo) > 0.05  # the direct term is not small change
    plain = collect(actor, normalizer, make_args())["rewards"]
    assert torch.allclose(data["rewards"], plain + alpha * soft_bonus(data))


def soft_bonus(data):
    """The normalised entropies of the rollout's policy, with the noise the rollout drew for them."""
    torch.manual_seed(7)
    bonuses = []
    for mean, log_std in zip(data["mean"], data["log_std"]):
        torch.randn_like(mean)  # the action's
        bonuses.append(rpo.squashed_entropy(mean, log_std))
    return torch.stack(bonuses)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_regeneration_reproduces_the_stored_actions(dtype, tolerance):  # M3
    actor, normalizer = toy_policy()
    data = flatten(collect(actor, normalizer, make_args()))
    before = gradient(rpo.policy_loss(actor, data, make_args())[0], actor)
    with torch.no_grad():
        for p in actor.parameters():
            p += 0.05 * torch.randn_like(p)
    loss, stats = rpo.policy_loss(actor, data, make_args())
    assert relative(gradient(loss, actor), before) > 0.05
    assert stats["ratio_max"] > 1.1
    mean, log_std = (x.to(dtype) for x in actor(data["obs"]))
    u = data["u"].to(dtype)
    assert (torch.tanh(rpo.regenerate(u, mean, log_std)) - torch.tanh(u)).abs().max() < tolerance


def test_caching_u_survives_where_the_action_has_rounded_to_one():  # M7
    u = torch.tensor([[0.5, 3.0, 6.0, 8.0, 9.5, 12.0]], dtype=torch.float32)
    assert torch.atanh(torch.tanh(u))[0, 4:].isinf().all()
    mean, log_std = torch.full_like(u, 0.2), torch.full_like(u, math.log(0.7))
    assert (rpo.regenerate(u, mean, log_std) - u).abs().max() <= 1e-6
    assert rpo.log_ratio(u, mean, log_std, mean, log_std).abs().max() == 0.0


def test_log_ratio_is_that_of_the_squashed_densities():
    u = torch.randn(50, 3)
    old, new = (torch.randn(50, 3), 0.3 * torch.randn(50, 3)), (torch.randn(50, 3), 0.3 * torch.randn(50, 3))

    def log_density(mean, log_std):
        tanh = torch.distributions.TransformedDistribution(
            torch.distributions.Normal(mean, log_std.exp()), torch.distributions.TanhTransform()
        )
        return tanh.log_prob(torch.tanh(u)).sum(-1)

    assert torch.allclose(rpo.log_ratio(u, *new, *old), log_density(*new) - log_density(*old), atol=1e-8)


def test_kl():  # M4
    old = torch.zeros(1, 1), torch.zeros(1, 1)
    new = torch.full((1, 1), 0.3), torch.full((1, 1), math.log(0.8))
    assert rpo.gaussian_kl(*old, *new).item() == pytest.approx(0.128419, abs=1e-6)  # the other way round 0.088144
    actor, normalizer = toy_policy()
    data = flatten(collect(actor, normalizer, make_args()))
    kl = rpo.gaussian_kl(data["mean"], data["log_std"], *actor(data["obs"])).mean()
    assert abs(kl.item()) < 1e-14 and gradient(kl, actor).norm() < 1e-12

    # the same number for the squashed policies, by Monte Carlo over u: log of the density ratio under pi_old
    torch.manual_seed(0)
    u = torch.randn(400_000, 1)
    samples = -rpo.log_ratio(u, *new, *old)
    standard_error = samples.std() / math.sqrt(len(samples))
    assert abs(samples.mean() - 0.128419) < 4 * standard_error


@pytest.mark.parametrize("clip_high", [1.0, 0.0])
def test_kl_term_pulls_back(clip_high):  # 0.0: also a sample that is dropped, for its ratio is 1.165
    policy = GaussianPolicy(0.3, math.log(0.8))
    data = {"obs": torch.zeros(1, 1), "u": torch.zeros(1, 1), "action_grads": torch.zeros(1, 1)}
    data |= {"mean": torch.zeros(1, 1), "log_std": torch.zeros(1, 1)}
    loss, _ = rpo.policy_loss(policy, data, make_args(kl_coef=1.0, clip_high=clip_high))
    mean, log_std = torch.autograd.grad(loss, [policy.mean, policy.log_std])
    # d KL / d mu = (mu - mu_old) / sigma^2,   d KL / d log sigma = 1 - (sigma_old^2 + (mu_old - mu)^2) / sigma^2
    assert mean.item() == pytest.approx(0.3 / 0.64) and log_std.item() == pytest.approx(1.0 - 1.09 / 0.64)


def test_entropy_term_is_a_bonus():
    actor, normalizer = toy_policy()
    data = flatten(collect(actor, normalizer, make_args()))
    data["action_grads"] = torch.zeros_like(data["action_grads"])
    torch.manual_seed(3)
    loss, _ = rpo.policy_loss(actor, data, make_args(ent_coef=0.25))
    torch.manual_seed(3)
    bonus = 0.25 * rpo.squashed_entropy(*actor(data["obs"])).mean()
    assert relative(gradient(loss, actor), gradient(-bonus, actor)) < 1e-12


class GaussianPolicy(torch.nn.Module):
    def __init__(self, mean, log_std):
        super().__init__()
        self.mean, self.log_std = torch.nn.Parameter(torch.tensor(mean)), torch.nn.Parameter(torch.tensor(log_std))

    def forward(self, obs):
        return self.mean.expand_as(obs), self.log_std.expand_as(obs)


@pytest.mark.parametrize(
    "options, mean, log_std, kept",
    [
        ({"clip_low": math.inf, "clip_high": math.inf}, 0.7, -0.64, 1.0),
        ({"clip_low": 0.8, "clip_high": 1.0}, 0.687102, -0.608852, 0.9642),
        ({"clip_low": 0.2, "clip_high": 0.2}, 0.273105, -0.233932, 0.2919),
    ],
)
def test_reused_gradients_are_unbiased(options, mean, log_std, kept, monkeypatch):  # M5, proposition 1
    # Q(a) = -(a - 1)^2 / 2, pi_old = N(0, 1), pi = N(0.3, 0.8^2): exact gradient of E_pi[Q] is (0.7, -0.64)
    n = 1_000_000
    torch.manual_seed(0)
    u, zeros = torch.randn(n, 1), torch.zeros(n, 1)
    data = {"obs": zeros, "u": u, "action_grads": -(u - 1.0), "mean": zeros, "log_std": zeros}
    policy = GaussianPolicy(0.3, math.log(0.8))
    loss, stats = rpo.policy_loss(policy, data, make_args(**options))
    gradients = torch.autograd.grad(-loss, [policy.mean, policy.log_std])
    # four standard errors: the estimators' standard deviations are at most 0.65
    assert abs(gradients[0] - mean) < 2.6e-3 and abs(gradients[1] - log_std) < 2.6e-3
    assert abs(stats["kept"] - kept) < 2e-3
    # reuse without the ratio is biased: E_pi_old[Q'(u)] = 1 and E_pi_old[Q'(u) (u - 0.3)] = -1.3
    monkeypatch.setattr(rpo, "log_ratio", lambda u, *distributions: torch.zeros(len(u)))
    loss, _ = rpo.policy_loss(policy, data, make_args())
    gradients = torch.autograd.grad(-loss, [policy.mean, policy.log_std])
    assert abs(gradients[0] - 1.0) < 4e-3 and abs(gradients[1] - -1.3) < 1e-2  # standard deviations 1 and 1.9


def test_reused_gradients_are_unbiased_for_the_squashed_policy():  # M12
    # Q(a) = -(a - 1/2)^2 / 2 with a = tanh(u): grad_u Q = -(a - 1/2) (1 - a^2)
    n = 1_000_000
    torch.manual_seed(0)
    u, zeros = torch.randn(n, 1), torch.zeros(n, 1)
    a = torch.tanh(u)
    data = {"obs": zeros, "u": u, "action_grads": -(a - 0.5) * (1.0 - a**2), "mean": zeros, "log_std": zeros}
    policy = GaussianPolicy(0.3, math.log(0.8))
    loss, _ = rpo.policy_loss(policy, data, make_args(clip_low=math.inf, clip_high=math.inf))
    mean, log_std = torch.autograd.grad(-loss, [policy.mean, policy.log_std])
    assert abs(mean - 0.253044) < 2.6e-3 and abs(log_std - -0.202730) < 2.6e-3


def test_clip_interval_is_asymmetric_and_ignores_the_sign():  # M10
    # with sigma = 1 and mu = 0 before, a shift of the mean by m gives rho = exp(m u - m^2 / 2)
    ratios = torch.tensor([[0.199], [0.201], [0.3], [1.0], [1.999], [2.001], [1.0 / 0.3]])
    shift = 0.5
    u = (ratios.log() + 0.5 * shift**2) / shift
    zeros = torch.zeros_like(u)
    for sign in (1.0, -1.0):
        data = {"obs": zeros, "u": u, "action_grads": sign * torch.ones_like(u), "mean": zeros, "log_std": zeros}
        # which samples reach the gradient with respect to the mean, (rho keep g) / n, one by one
        reached = []
        for k in range(len(u)):
            policy = GaussianPolicy(shift, 0.0)
            loss, stats = rpo.policy_loss(policy, {name: x[k : k + 1] for name, x in data.items()}, make_args())
            grad = torch.autograd.grad(-loss, policy.mean)[0].item()
            assert stats["ratio_max"] == pytest.approx(ratios[k].item()) and stats["kept"] == float(grad != 0.0)
            assert grad in (0.0, pytest.approx(sign * ratios[k].item()))
            reached.append(grad != 0.0)
        assert reached == [False, True, True, True, True, False, False]


def test_surrogate_is_a_linear_proxy():  # M11
    actor, normalizer = toy_policy()
    data = flatten(collect(actor, normalizer, make_args()))
    with torch.no_grad():
        for p in actor.parameters():
            p += 0.02 * torch.randn_like(p)
        mean, log_std = actor(data["obs"])
        eps_reg = (data["u"] - mean) / log_std.exp()
        ratio = rpo.log_ratio(data["u"], mean, log_std, data["mean"], data["log_std"]).exp()
        weight = ratio * ((ratio >= 0.2) & (ratio <= 2.0))

    def frozen_surrogate():
        mean, log_std = actor(data["obs"])
        return (weight * (data["action_grads"] * (mean + log_std.exp() * eps_reg)).sum(-1)).mean()

    bias = actor.mean.bias
    loss, _ = rpo.policy_loss(actor, data, make_args(surrogate_coef=3.0))
    ours = torch.autograd.grad(loss, bias)[0][0]
    with torch.no_grad():
        values = []
        for step in (1e-6, -2e-6):
            bias[0] += step
            values.append(frozen_surrogate())
    assert ours.item() == pytest.approx(-3.0 * (values[0] - values[1]).item() / 2e-6, rel=1e-6)


def test_entropy():  # M8
    mean, log_std = torch.tensor([[0.3, -0.5]], requires_grad=True), torch.tensor([[-0.2, 0.4]], requires_grad=True)
    torch.manual_seed(3)
    ours = rpo.squashed_entropy(mean, log_std)
    torch.manual_seed(3)
    u = mean + log_std.exp() * torch.randn_like(mean)
    normal = torch.distributions.Normal(mean, log_std.exp())
    sampled = -(normal.log_prob(u) - torch.log1p(-(torch.tanh(u) ** 2))).sum(-1)
    for a, b in zip(torch.autograd.grad(2.0 * ours, [mean, log_std]), torch.autograd.grad(sampled, [mean, log_std])):
        assert torch.allclose(a, b, atol=1e-10)
    # a policy that is nearly uniform on the cube has entropy A log 2, normalised (A log 2 + A/2) / A
    torch.manual_seed(0)
    mean, log_std = torch.zeros(200_000, 8), torch.full((200_000, 8), math.log(0.8745))  # the most uniform tanh(normal)
    assert rpo.squashed_entropy(mean, log_std).mean().item() == pytest.approx(math.log(2.0) + 0.5, abs=0.02)


def test_td_lambda_by_hand():  # M6
    rewards, values = torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor([[10.0], [20.0], [0.0], [40.0]])
    ends = torch.tensor([[False], [False], [True], [True]])
    targets = rpo.td_lambda_targets(rewards, values, ends, 0.5, 0.5)
    assert targets.flatten().tolist() == [5.4375, 7.75, 3.0, 24.0]


def test_td_lambda_is_the_mixture_of_n_step_returns():
    torch.manual_seed(0)
    actor, normalizer = toy_policy()
    data = collect(actor, normalizer, make_args())
    lam = 0.95
    targets = rpo.td_lambda_targets(data["rewards"], data["next_values"], data["ends"], GAMMA, lam)
    for n in range(N):
        for t in range(H):
            last = next(k for k in range(t, H) if data["ends"][k, n])
            n_step = [
                sum(GAMMA ** (j - t) * data["rewards"][j, n] for j in range(t, k + 1))
                + GAMMA ** (k + 1 - t) * data["next_values"][k, n]
                for k in range(t, last + 1)
            ]
            mixture = sum((1 - lam) * lam**i * g for i, g in enumerate(n_step[:-1])) + lam ** (last - t) * n_step[-1]
            assert targets[t, n].item() == pytest.approx(mixture.item(), rel=1e-12)
    assert data["next_values"][1, 0] == 0.0  # the fall
    assert data["ends"].sum() == N + 2


def test_termination_has_no_value_and_a_time_out_has():  # M15
    actor, normalizer = toy_policy()
    env = ToyEnv()
    env.step = without_rewards(env.step)
    torch.manual_seed(7)
    data, returns, _ = rpo.rollout(env, actor, lambda s: 1000.0 + 0.0 * s, normalizer, make_args())
    assert returns[0].item() == pytest.approx(GAMMA**3 * 1000.0)  # only the second episode, of three steps
    assert returns[1].item() == pytest.approx(GAMMA**5 * 1000.0)
    assert returns[3].item() == pytest.approx((GAMMA**3 + GAMMA**2) * 1000.0)
    assert data["next_values"][1, 0] == 0.0 and data["next_values"][2, 3] == 1000.0
    assert data["next_values"].sum() == 1000.0 * (H * N - 1)
    targets = rpo.td_lambda_targets(data["rewards"], data["next_values"], data["ends"], GAMMA, 1.0)
    assert targets[0, 0] == 0.0 and targets[1, 0] == 0.0
    assert targets[0, 3].item() == pytest.approx(GAMMA**3 * 1000.0)
    assert targets[3, 3].item() == pytest.approx(GAMMA**2 * 1000.0)  # the next episode, to the end of the rollout
    assert targets[0, 1].item() == pytest.approx(GAMMA**H * 1000.0)


def without_rewards(step):
    def stepped(action):
        obs, reward, *rest = step(action)
        return obs, torch.zeros_like(reward), *rest

    return stepped


def test_a_final_observation_that_is_not_finite_poisons_nothing_after_a_fall():  # M15
    class Poisoned(ToyEnv):
        def step(self, action):
            obs, reward, terminated, truncated, infos = super().step(action)
            infos["final_obs"] = infos["final_obs"] + torch.where(terminated[:, None], torch.nan, 0.0)
            return obs, reward, terminated, truncated, infos

    actor, normalizer = toy_policy()
    clean, poisoned = (collect(actor, normalizer, make_args(), env) for env in (ToyEnv(), Poisoned()))
    assert torch.equal(clean["next_values"], poisoned["next_values"])
    others = [1, 2, 3, 4, 5]
    assert torch.equal(clean["action_grads"][:, others], poisoned["action_grads"][:, others])
    assert poisoned["action_grads"].isfinite().all()


def test_the_mean_of_the_critics_counts_in_the_return_and_in_the_targets():
    actor, normalizer = toy_policy()
    ours = collect(actor, normalizer, make_args())
    apart = lambda s: torch.stack([value(s) + 2.0, value(s) - 2.0], dim=-1)  # noqa: E731
    for name, x in collect(actor, normalizer, make_args(), critic=apart).items():
        assert torch.allclose(x.double(), ours[name].double(), rtol=1e-12, atol=1e-12), name


def test_values_of_the_whole_rollout_are_those_of_each_step():
    torch.manual_seed(2)
    critics = rpo.Critic(2)
    actor, normalizer = toy_policy()
    env = ToyEnv()
    final_obs = recorded(env)
    data = collect(actor, normalizer, make_args(), env, critics)
    for t in range(H):
        values = critics(normalizer(final_obs[t])).mean(-1)
        assert torch.allclose(data["next_values"][t], torch.where(data["terminated"][t], 0.0, values), rtol=1e-12)
    total, us, _ = brute_force_return(actor, normalizer, critic=critics)
    grads = torch.stack(torch.autograd.grad(total, us))
    assert torch.allclose(data["action_grads"], grads, rtol=1e-10, atol=1e-12) and grads.norm() > 0.1


def recorded(env):
    """The list to which every step of env will append its final_obs."""
    step, final_obs = env.step, []

    def stepped(action):
        result = step(action)
        final_obs.append(result[-1]["final_obs"])
        return result

    env.step = stepped
    return final_obs


def test_a_time_out_has_a_gradient_through_its_value_and_a_fall_has_none():
    # without rewards only values are left: env 3 times out at t = 2, env 0 falls at t = 1
    actor, normalizer = toy_policy()
    env = ToyEnv()
    env.step = without_rewards(env.step)
    torch.manual_seed(7)
    _, returns, us = rpo.rollout(env, actor, critic, normalizer, make_args())
    grads = rpo.action_gradients(returns, us)
    assert (grads[:2, 0] == 0.0).all() and (grads[2:, 0] != 0.0).all()  # nothing before the fall, all of what follows
    # R of env 3 is gamma^3 V(s_3) before the reset, and after it only what its next two actions change
    torch.manual_seed(7)
    env = ToyEnv()
    final_obs, us, s = recorded(env), [], env.state
    for _ in range(3):
        mean, log_std = actor(normalizer(s))
        us.append(mean + log_std.exp() * torch.randn_like(mean))
        s = env.step(torch.tanh(us[-1]))[0]
        torch.randn_like(mean)  # the entropy's
    value_at_time_out = value(normalizer(final_obs[2][3]))
    expected = torch.stack(torch.autograd.grad(GAMMA**3 * value_at_time_out, us))[:, 3]
    assert torch.allclose(grads[:3, 3], expected, rtol=1e-10) and (expected.abs() > 1e-3).all()


def test_first_step_sees_ratio_one_in_float32():  # M13
    """The rollout calls the actor with N rows at a time and an epoch with all of them: sums may round differently."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(1)
    actor, normalizer, n = rpo.Actor(2, 2), rpo.ObsNormalizer(2), 300
    args = make_args()
    env = ToyEnv(num_envs=n)
    data = run(env, actor, critic, normalizer, args)
    flat = flatten(data)
    _, stats = rpo.policy_loss(actor, flat, args)
    ratio = rpo.log_ratio(flat["u"], *actor(flat["obs"]), flat["mean"], flat["log_std"]).exp()
    assert ratio.shape == (H * n,) and (ratio - 1.0).abs().max() < 1e-3 and stats["kept"] == 1.0


def test_no_gradient_crosses_from_one_rollout_to_the_next():  # M16
    actor, normalizer = toy_policy()
    env = ToyEnv(ends=())
    _, _, first_us = rpo.rollout(env, actor, critic, normalizer, make_args())
    assert env.state.requires_grad  # the live end of this rollout
    env.t = 0
    data, returns, us = rpo.rollout(env, actor, critic, normalizer, make_args())
    grads = torch.autograd.grad(returns.sum(), [*first_us, *us], allow_unused=True)
    assert all(grad is None for grad in grads[:H]) and all((grad != 0.0).all() for grad in grads[H:])
    assert not any(x.requires_grad for x in data.values())


@pytest.mark.parametrize("sizes", ((1, 1, 1), (50, 1, 7), (200,)))
def test_normalizer_is_the_mean_and_variance_of_everything_seen(sizes):
    torch.manual_seed(0)
    normalizer = rpo.ObsNormalizer(3)
    batches = [3.0 * torch.randn(n, 3) + torch.tensor([100.0, 0.0, -1.0]) for n in sizes]
    for batch in batches:
        normalizer.update(batch)
    # it begins with one imaginary observation, 0 with variance 1: here as -1 and 1 beside everything else twice
    everything = np.concatenate([*batches, *batches, -np.ones((1, 3)), np.ones((1, 3))])
    assert normalizer.count == 1 + sum(sizes)
    assert normalizer.mean.numpy() == pytest.approx(everything.mean(0), rel=1e-12)
    assert normalizer.var.numpy() == pytest.approx(everything.var(0), rel=1e-12)


def test_a_rollout_leaves_the_normalizer_alone_and_has_the_rows_for_its_update():
    actor, normalizer = toy_policy()
    before = copy.deepcopy(normalizer.state_dict())
    torch.manual_seed(7)
    env = ToyEnv()
    states, step = [env.state], env.step

    def stepped(action):
        states.append(env.state)
        return step(action)

    env.step = stepped
    data, *_ = rpo.rollout(env, actor, critic, normalizer, make_args())
    assert all(torch.equal(x, before[name]) for name, x in normalizer.state_dict().items())
    assert torch.equal(data["raw_obs"], torch.stack(states[1:]))  # what the policy acted on, after a reset too
    assert torch.equal(data["obs"], normalizer(data["raw_obs"]))


def test_normalizer_divides_by_the_deviation_with_a_floor():
    normalizer = rpo.ObsNormalizer(2)
    normalizer.mean, normalizer.var = torch.tensor([1.0, 0.0]), torch.tensor([4.0, 0.0])
    expected = torch.tensor([[2.0 / math.sqrt(4.0 + 1e-5), 1.0 / math.sqrt(1e-5)]])
    assert torch.allclose(normalizer(torch.tensor([[3.0, 1.0]])), expected, rtol=1e-6)


def test_networks_are_those_of_the_paper():
    torch.manual_seed(0)
    actor, critics = rpo.Actor(11, 3), rpo.Critic(11)
    block = [torch.nn.Linear, torch.nn.LayerNorm, torch.nn.SiLU]
    assert [type(layer) for layer in actor.trunk] == 3 * block
    assert all([type(layer) for layer in value[:-1]] == 3 * block for value in critics.values)
    linears = [layer for net in (actor, critics) for layer in net.modules() if isinstance(layer, torch.nn.Linear)]
    assert {(layer.in_features, layer.out_features) for layer in linears} == {
        *((11, 400), (400, 200), (200, 100)),
        *((100, 3), (100, 1)),
    }
    for layer in linears:
        W = layer.weight if layer.out_features <= layer.in_features else layer.weight.T
        assert torch.allclose(W @ W.T, torch.eye(len(W)), atol=1e-6) and not layer.bias.any()
    actor.log_std.bias.data[:] = torch.tensor([100.0, -100.0, 0.0])
    log_std = actor(torch.randn(10, 11))[1]
    assert (log_std[:, 0] == 2.0).all() and (log_std[:, 1] == -5.0).all()
    first, second = critics(torch.randn(5, 11)).unbind(-1)
    assert not torch.allclose(first, second)


def test_critic_loss():
    def two_values(obs):
        return torch.stack([obs[:, 0], obs[:, 1]], dim=-1)

    obs = torch.tensor([[1.0, 2.0], [3.0, 5.0]], requires_grad=True)
    loss = rpo.critic_loss(two_values, obs, torch.tensor([0.0, 4.0]))
    assert loss.item() == pytest.approx((1.0 + 4.0 + 1.0 + 1.0) / 4)
    assert torch.autograd.grad(loss, obs)[0].flatten().tolist() == pytest.approx([0.5, 1.0, -0.5, 0.5])


def test_rows_of_the_action_gradient_are_limited():
    nan, inf = math.nan, math.inf
    grads = torch.tensor([[[3.0, 4.0], [30.0, -40.0]], [[0.0, 0.0], [nan, 1.0]], [[inf, 0.0], [-inf, inf]]])
    assert rpo.limit_rows(grads, 5.0).tolist() == [[[3.0, 4.0], [3.0, -4.0]], 2 * [[0.0, 0.0]], 2 * [[0.0, 0.0]]]
    assert rpo.limit_rows(grads, inf)[0].tolist() == grads[0].tolist()
    assert rpo.limit_rows(grads, inf)[1:].tolist() == 2 * [2 * [[0.0, 0.0]]]
    # the square of this length overflows, the length of the row before it does not
    grads = torch.tensor([[1e18, 1e18], [1e20, 1e20]], dtype=torch.float32)
    for limit in (inf, 1.0):
        limited = rpo.limit_rows(grads, limit)
        assert limited[0].norm().item() == pytest.approx(min(limit, math.sqrt(2.0) * 1e18)) and not limited[1].any()


def test_the_policy_acts_with_and_without_noise():
    actor, _ = toy_policy()
    obs = torch.randn(5, 2)
    mean, log_std = actor(obs)
    assert torch.equal(actor.act(obs, deterministic=True), torch.tanh(mean))
    torch.manual_seed(3)
    actions = actor.act(obs)
    torch.manual_seed(3)
    assert torch.equal(actions, torch.tanh(mean + log_std.exp() * torch.randn_like(mean)))
