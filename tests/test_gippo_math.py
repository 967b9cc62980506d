"""The algorithm of gippo_continuous.py on toys with known answers, without a simulator; float64."""

import copy
import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from toy_mdp import GAMMA, H, N, ToyEnv, critic, flatten, gradient, relative, value

import gippo_continuous as gippo

LAM = 0.8
# two falls and two time-outs, at the first step, in the middle and at the last step; env 2 ends twice in a row
ENDS = (
    (0, 0, "terminated"),
    (1, 2, "truncated"),
    (2, 2, "terminated"),
    (H - 1, 3, "terminated"),
    (H - 1, 4, "truncated"),
)


pytestmark = pytest.mark.usefixtures("float64")


def make_args(**changes):
    values = {"num_steps": H, "gamma": GAMMA, "gae_lambda": LAM, "clip_coef": 0.2, "max_oorr": 0.5, "batch_size": H * N}
    return gippo.Args(**values | changes)


def toy_policy():
    torch.manual_seed(1)
    actor, normalizer = gippo.Actor(2, 2), gippo.ObsNormalizer(2)
    normalizer.mean, normalizer.var = torch.tensor([0.125, -0.25]), torch.tensor([0.5, 2.0])  # exact in float32
    return actor, normalizer


def collect(env=None, critic=critic, **changes):
    """The toy policy and its rollout: actor, normalizer, data, advantages, us."""
    actor, normalizer = toy_policy()
    torch.manual_seed(7)
    return actor, normalizer, *gippo.rollout(env or ToyEnv(ENDS), actor, critic, normalizer, make_args(**changes))


class GaussianPolicy(torch.nn.Module):
    """The same Gaussian in every state, with a mean and a deviation per dimension of the action."""

    def __init__(self, mean, log_std):
        super().__init__()
        self.mean, self.log_std = torch.nn.Parameter(torch.tensor(mean)), torch.nn.Parameter(torch.tensor(log_std))

    def forward(self, obs):
        return self.mean.expand(len(obs), -1), self.log_std.expand(len(obs), -1)


# advantages
def test_gae_and_its_gradient_are_those_of_the_sum_of_deltas_up_to_the_end_of_the_episode():
    torch.manual_seed(0)
    T, n = 7, 20
    columns = torch.randn(3, T, n, requires_grad=True)
    dones = torch.rand(T, n) < 0.2
    assert all(row.any() and not row.all() for row in (dones[0], dones[-1]))
    ours = gippo.gae(*columns, dones, GAMMA, LAM)
    rewards, values, next_values = columns
    theirs = []
    for t in range(T):
        for k in range(n):
            last = next((j for j in range(t, T) if dones[j, k]), T - 1)
            deltas = [rewards[j, k] + GAMMA * next_values[j, k] - values[j, k] for j in range(t, last + 1)]
            theirs.append(sum((GAMMA * LAM) ** j * delta for j, delta in enumerate(deltas)))
    theirs = torch.stack(theirs).reshape(T, n)
    assert ours.shape == (T, n) and torch.allclose(ours, theirs, atol=1e-12)
    weights = torch.randn(T, n)
    grads = [torch.autograd.grad((weights * advantages).sum(), columns)[0] for advantages in (ours, theirs)]
    assert torch.allclose(*grads, atol=1e-12)


def test_one_backward_gives_the_gradient_of_every_advantage_to_its_own_action():  # M9
    _, _, data, advantages, us = collect()
    theirs = torch.zeros(H, N, 2)
    for t in range(H):
        for n in range(N):
            theirs[t, n] = torch.autograd.grad(advantages[t, n], us[t], retain_graph=True)[0][n]
    ours = gippo.action_gradients(advantages, us, data["dones"], GAMMA, LAM)
    assert ours.shape == (H, N, 2) and (theirs.norm(dim=-1) > 1e-3).all()
    assert ((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max() < 1e-12


def test_gradients_are_finite_differences_of_the_advantages():
    """A_t where u_t is pushed and the policy then reacts to where that leads."""

    class Pushed(ToyEnv):
        def __init__(self, moment=0, push=(0.0, 0.0)):
            super().__init__(ENDS)
            self.moment, self.push = moment, torch.tensor(push)

        def step(self, action):
            return super().step(torch.tanh(torch.atanh(action) + self.push * (self.t == self.moment)))

    *_, data, advantages, us = collect(Pushed())
    ours = gippo.action_gradients(advantages, us, data["dones"], GAMMA, LAM)
    h = 1e-5
    for t in range(H):
        for dimension, push in enumerate(((h, 0.0), (0.0, h))):
            further = collect(Pushed(t, push))[3][t]
            less = collect(Pushed(t, tuple(-x for x in push)))[3][t]
            # errors of central differences: h^2 = 1e-10 of the third derivative, and rounding, 1e-16 / h = 1e-11
            assert torch.allclose((further - less) / (2.0 * h), ours[t, :, dimension], atol=1e-8)


def test_no_advantage_feels_an_action_of_another_episode():
    *_, advantages, us = collect()
    for t, n, _ in ENDS:
        if t < H - 1:
            later = torch.autograd.grad(advantages[: t + 1, n].sum(), us[t + 1], retain_graph=True, allow_unused=True)
            assert later[0] is None or not later[0][n].any()
            earlier = torch.autograd.grad(advantages[t + 1 :, n].sum(), us[t], retain_graph=True, allow_unused=True)
            assert earlier[0] is None or not earlier[0][n].any()


# rollout
def replay(data, ends):
    """The same actions in a fresh environment: raw observations before and after every step, and the rewards."""
    env, obs, successors, rewards = ToyEnv(ends), [], [], []
    for u in data["u"]:
        obs.append(env.detach())
        _, reward, _, _, infos = env.step(torch.tanh(u))
        successors.append(infos["final_obs"])
        rewards.append(reward)
    return torch.stack(obs), torch.stack(successors), torch.stack(rewards)


def test_value_is_that_of_the_true_successor_after_a_time_out_and_none_after_a_fall():
    _, normalizer, data, advantages, _ = collect(gae_lambda=0.0)
    obs, successors, rewards = replay(data, ENDS)
    # the mean of the two critics is `value`; with lambda = 0 an advantage is r + gamma V' - V
    values, next_values = value(normalizer(obs)), value(normalizer(successors))
    for t, n, kind in ENDS:
        if kind == "terminated":
            next_values[t, n] = 0.0
    assert torch.allclose(data["values"], values, rtol=1e-12)
    assert torch.allclose(advantages, rewards + GAMMA * next_values - values, atol=1e-12)
    # the successor is the next observation, except where an episode ended
    goes_on = torch.ones(H - 1, N, dtype=torch.bool)
    goes_on[0, 0] = goes_on[1, 2] = goes_on[2, 2] = False
    assert torch.equal((next_values[:-1] - values[1:]).abs() < 1e-12, goes_on)


def test_a_fall_costs_the_value_and_a_time_out_does_not():  # M15
    # without rewards, V = 1000: the only delta that is not (gamma - 1) V is that of the fall
    class Free(ToyEnv):
        def step(self, action):
            obs, reward, *rest = super().step(action)
            return obs, 0.0 * reward, *rest

    advantages = collect(Free(ENDS), critic=lambda s: 1000.0 + 0.0 * s, gae_lambda=0.0)[3]
    expected = torch.full((H, N), -100.0)
    for t, n, kind in ENDS:
        if kind == "terminated":
            expected[t, n] = -1000.0
    assert torch.allclose(advantages, expected, rtol=1e-12)


def test_advantages_lead_back_to_every_action_but_not_to_an_earlier_rollout():
    actor, normalizer = toy_policy()
    env, before = ToyEnv(ENDS), torch.zeros(N, 2, requires_grad=True)
    env.state = env.state + before  # as if a rollout had gone before
    torch.manual_seed(7)
    data, advantages, us = gippo.rollout(env, actor, critic, normalizer, make_args())
    grads = torch.autograd.grad(advantages.sum(), [before, *us], allow_unused=True)
    assert grads[0] is None and all(grad.abs().sum() > 0 for grad in grads[1:])
    assert not any(column.requires_grad for column in data.values())
    assert {column.shape[:2] for column in data.values()} == {(H, N)} and torch.equal(data["advantages"], advantages)


def test_actions_come_from_the_stored_gaussian_and_noise_and_reach_the_environment_squashed():
    class Watched(ToyEnv):
        def step(self, action):
            seen.append(action)
            return super().step(action)

    seen = []
    actor, _, data, _, us = collect(Watched(ENDS))
    mean, log_std = actor(data["obs"])
    assert torch.allclose(data["mean"], mean, atol=1e-12) and torch.allclose(data["log_std"], log_std, atol=1e-12)
    assert torch.equal(data["u"], data["mean"] + data["log_std"].exp() * data["eps"])
    assert torch.equal(torch.stack(us), data["u"]) and torch.equal(torch.stack(seen), torch.tanh(data["u"]))
    torch.manual_seed(7)
    assert torch.equal(data["eps"], torch.stack([torch.randn(N, 2) for _ in range(H)]))
    dones = torch.zeros(H, N, dtype=torch.bool)
    for t, n, _ in ENDS:
        dones[t, n] = True
    assert torch.equal(data["dones"], dones)


def test_rollout_normalises_with_statistics_that_it_does_not_change():
    _, normalizer, data, *_ = collect()
    assert all(torch.equal(*pair) for pair in zip(normalizer.buffers(), toy_policy()[1].buffers()))
    obs, _, _ = replay(data, ENDS)
    assert torch.equal(data["raw_obs"], obs)
    assert torch.allclose(data["obs"], normalizer(obs), rtol=1e-12)


# the alpha-policy
def regression_batch(n=40):
    """A rollout of GaussianPolicy([0.3, -0.2], [-0.5, 0.1]) and a gradient in the action."""
    torch.manual_seed(0)
    eps, action_grads = torch.randn(n, 2), torch.randn(n, 2)
    u = torch.tensor([0.3, -0.2]) + torch.tensor([-0.5, 0.1]).exp() * eps
    return {"obs": torch.zeros(n, 2), "eps": eps, "u": u, "alpha_actions": u + 0.5 * action_grads}


def regression(policy, data, **changes):
    """The losses of the regression, and how far it has moved the parameters: by the gradient, if it is not clipped."""
    before = torch.nn.utils.parameters_to_vector(policy.parameters()).detach()
    args = make_args(**{"max_grad_norm": math.inf} | changes)
    losses, _ = gippo.regression_epochs(policy, torch.optim.SGD(policy.parameters(), lr=1.0), data, args)
    return losses, before - torch.nn.utils.parameters_to_vector(policy.parameters()).detach()


def test_regression_rests_where_the_targets_are_the_actions_themselves():
    data = regression_batch()
    actor, _, rolled, *_ = collect()  # the noise of the rollout makes the same actions again
    for policy, batch in ((GaussianPolicy([0.3, -0.2], [-0.5, 0.1]), data), (actor, flatten(rolled))):
        losses, moved = regression(policy, batch | {"alpha_actions": batch["u"]})
        assert losses[0] < 1e-28 and moved.abs().max() < 1e-12


def test_regression_descends_the_squared_distance_to_the_moved_actions_with_the_noise_of_the_rollout():
    data, std = regression_batch(), torch.tensor([-0.2, 0.3]).exp()
    losses, moved = regression(GaussianPolicy([0.1, 0.4], [-0.2, 0.3]), data)
    error = torch.tensor([0.1, 0.4]) + std * data["eps"] - data["alpha_actions"]
    assert losses[0].item() == pytest.approx((error**2).sum().item() / 40, rel=1e-12)  # summed over the action
    # d L / d mu = 2 E[error],   d L / d log sigma = 2 E[error sigma eps]
    expected = torch.cat([2.0 * error.mean(0), 2.0 * (error * std * data["eps"]).mean(0)])
    assert relative(moved, expected) < 1e-12


def test_first_step_of_the_regression_is_a_step_along_the_reparameterisation_gradient():
    """At the policy that acted, - dL / dtheta = 2 alpha E[ grad_u A du / dtheta ]: alpha is only a factor."""
    for alpha in (0.005, 0.5):
        actor, _, data, advantages, us = collect()
        data["action_grads"] = gippo.action_gradients(advantages, us, data["dones"], GAMMA, LAM)
        data = flatten(data)
        mean, log_std = actor(data["obs"])
        surrogate = (data["action_grads"] * (mean + log_std.exp() * data["eps"])).sum(-1).mean()
        expected = 2.0 * alpha * gradient(surrogate, actor)
        _, moved = regression(actor, data | {"alpha_actions": data["u"] + alpha * data["action_grads"]})
        assert relative(-moved, expected) < 1e-10


def test_regression_takes_every_step_on_the_whole_batch_and_reports_the_loss_before_it():
    policy, twin, data = *(GaussianPolicy([0.3, -0.2], [-0.5, 0.1]) for _ in range(2)), regression_batch()
    losses, _ = regression(policy, data, alpha_epochs=5)
    one_by_one = [regression(twin, data)[0][0] for _ in range(5)]
    assert losses == one_by_one and len(set(losses)) == 5
    assert torch.equal(policy.mean, twin.mean) and torch.equal(policy.log_std, twin.log_std)


def test_a_large_gradient_is_scaled_down_and_followed_and_one_that_is_not_finite_is_refused():
    data = regression_batch()
    data["alpha_actions"][3] = 1e12
    _, moved = regression(GaussianPolicy([0.3, -0.2], [-0.5, 0.1]), data, max_grad_norm=0.5)
    assert moved.norm().item() == pytest.approx(0.5, rel=1e-5)
    data["alpha_actions"][3] = math.nan
    batch = ppo_batch()
    batch["scaled_advantages"][3] = math.nan
    args = make_args(batch_size=len(batch["u"]))
    for phase, poisoned in ((gippo.regression_epochs, data), (gippo.ppo_epochs, batch)):
        policy, optimizer = trained()
        before = states(policy, optimizer)[0]
        with pytest.raises(RuntimeError, match="non-finite"):
            gippo.with_retries(phase, policy, optimizer, poisoned, args)
        assert same(policy.state_dict(), before)


# retries
class Phase:
    """Moves the actor with the optimiser, writes down from where and how fast, and reports the losses it was given."""

    def __init__(self, *losses):
        self.losses, self.calls = list(losses), []

    def __call__(self, actor, optimizer, data, args):
        state = copy.deepcopy((actor.state_dict(), optimizer.state_dict()["state"]))
        self.calls.append((optimizer.param_groups[0]["lr"], state))
        for _ in range(3):
            optimizer.zero_grad()
            (actor.mean.exp().sum() + (actor.log_std**2).sum()).backward()
            optimizer.step()
        return torch.tensor(self.losses[len(self.calls) - 1]).unbind(), f"try {len(self.calls)}"


def trained(lr=0.03, steps=2):
    policy = GaussianPolicy([0.3, -0.2], [-0.5, 0.1])
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, betas=(0.7, 0.95))
    for _ in range(steps):  # with something in its memory
        optimizer.zero_grad()
        sum((p**2).sum() for p in policy.parameters()).backward()
        optimizer.step()
    return policy, optimizer


def same(a, b):
    """Bit by bit, through dictionaries and tuples."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b)) if isinstance(a, tuple | list) else a == b


def states(policy, optimizer):
    return copy.deepcopy((policy.state_dict(), optimizer.state_dict()))


@pytest.mark.parametrize("losses", ((1.0, 0.9), (1.0, 2.0, 0.9), (1.0, 1.0), (1.0,)))
def test_epochs_whose_loss_has_not_grown_are_kept(losses):
    (policy, optimizer), (twin, twin_optimizer) = trained(), trained()
    assert gippo.with_retries(Phase(losses), policy, optimizer, None, None) == ("try 1", 0)
    Phase(losses)(twin, twin_optimizer, None, None)
    assert same(states(policy, optimizer), states(twin, twin_optimizer))
    assert optimizer.param_groups[0]["lr"] == 0.03


@pytest.mark.parametrize("steps", (0, 2))  # an optimiser without memory gets none
def test_epochs_whose_loss_grows_are_tried_eight_times_and_undone_bit_by_bit(steps):
    policy, optimizer = trained(steps=steps)
    before, phase = states(policy, optimizer), Phase(*[(1.0, 1.1)] * 8)
    assert gippo.with_retries(phase, policy, optimizer, None, None) == ("try 8", 8)
    lrs = [lr for lr, _ in phase.calls]
    assert lrs == pytest.approx([0.03 / 1.5**attempt for attempt in range(8)], rel=1e-12)
    assert all(same(state, (before[0], before[1]["state"])) for _, state in phase.calls)
    after = states(policy, optimizer)
    # nothing is left of it but the lower rate
    assert after[1]["param_groups"][0]["lr"] == pytest.approx(0.02, rel=1e-12)
    after[1]["param_groups"][0]["lr"] = 0.03
    assert same(after, before)


def test_a_later_try_starts_where_the_first_did_and_leaves_the_rate_as_it_was():
    (policy, optimizer), (twin, twin_optimizer) = trained(), trained()
    phase = Phase((1.0, 1.1), (1.0, 2.0), (1.0, 0.5))
    assert gippo.with_retries(phase, policy, optimizer, None, None) == ("try 3", 2)
    assert optimizer.param_groups[0]["lr"] == 0.03
    twin_optimizer.param_groups[0]["lr"] = 0.03 / 1.5**2
    Phase((1.0, 0.5))(twin, twin_optimizer, None, None)
    twin_optimizer.param_groups[0]["lr"] = 0.03
    assert same(states(policy, optimizer), states(twin, twin_optimizer))


def test_rate_is_lowered_down_to_a_floor_and_never_raised():
    for lr, lowered in ((1e-3, 1e-3 / 1.5), (1.2e-5, 1e-5), (1e-5, 1e-5), (1e-6, 1e-6)):
        policy, optimizer = trained(lr)
        gippo.with_retries(Phase(*[(1.0, 1.1)] * 8), policy, optimizer, None, None)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(lowered, rel=1e-12)


# alpha
ALPHA, BETA, START = 0.5, 1.02, {"mean": 0.0, "var": 1.0, "count": 1.0}


def adapted(volumes=(1.0,), ws=(1.0,), advantages=(0.0,), alpha=ALPHA, statistics=START, **changes):
    """alpha where the alpha-policy changes the volume, and the probability of an action, by these factors."""
    gains = gippo.ObsNormalizer(1)
    for name, number in statistics.items():
        getattr(gains, name).fill_(number)
    log_std = torch.tensor(volumes)[:, None].log() * torch.tensor([0.25, 0.75])  # the product over two dimensions
    old, log_prob = torch.full_like(log_std, -0.4), torch.randn(len(ws))
    data = {"log_std": old, "log_prob": log_prob, "alpha_log_prob": log_prob + torch.tensor(ws).log()}
    data |= {"advantages": torch.tensor(advantages), "scaled_advantages": torch.full((len(ws),), torch.nan)}
    args = make_args(**{"alpha_interval": 0.4, "alpha_factor": BETA} | changes)
    new_alpha, oorr = gippo.adapted_alpha(alpha, data, old + log_std, gains, args)
    return new_alpha, oorr, gains


@pytest.mark.parametrize(
    "volumes, factor",
    [
        ((1.0, 1.0), BETA),
        ((0.61, 1.39, 1.0), BETA),
        ((1.0, 1.0, 0.59), 1 / BETA),  # one sample is enough
        ((1.41, 1.0, 1.0), 1 / BETA),
    ],
)
def test_alpha_grows_while_every_volume_stays_in_the_interval_and_shrinks_otherwise(volumes, factor):
    new_alpha, oorr, _ = adapted(volumes)
    assert new_alpha == pytest.approx(ALPHA * factor, rel=1e-12) and oorr == 0.0


def test_limits_of_alpha_and_of_the_volume_are_arguments_and_alpha_never_exceeds_one():
    assert adapted((1.39,), alpha_interval=0.38)[0] < ALPHA < adapted((1.41,), alpha_interval=0.42)[0]
    assert adapted(alpha_factor=1.5)[0] == pytest.approx(ALPHA * 1.5, rel=1e-12)
    assert adapted(alpha=0.99)[0] == 1.0 and adapted(alpha=1.0)[0] == 1.0
    assert adapted((2.0,), alpha=1.0)[0] == pytest.approx(1 / BETA, rel=1e-12)


def test_alpha_shrinks_where_too_many_ratios_are_out_of_range_whatever_the_volume():
    ws, advantages = (0.79, 0.81, 1.0, 1.19, 1.21), (0.0,) * 5
    for max_oorr, grows in ((0.41, True), (0.39, False)):
        new_alpha, oorr, _ = adapted(ws=ws, advantages=advantages, max_oorr=max_oorr)
        assert oorr == pytest.approx(2 / 5, rel=1e-6)  # a mean in float32
        assert new_alpha == pytest.approx(ALPHA * BETA if grows else ALPHA / BETA, rel=1e-12)
    # from the current alpha: not from the one that would have grown to 1, and not twice
    kwargs = {"ws": ws, "advantages": advantages, "max_oorr": 0.1}
    assert adapted(alpha=0.99, **kwargs)[0] == pytest.approx(0.99 / BETA, rel=1e-12)
    assert adapted((2.0,), **kwargs)[0] == pytest.approx(ALPHA / BETA, rel=1e-12)
    assert adapted(ws=ws, advantages=advantages, clip_coef=0.3, max_oorr=0.0)[0] == pytest.approx(ALPHA * BETA)


@pytest.mark.parametrize(
    "gain, mean, grows",
    [
        (-3.0, 0.0, False),  # negative, z = -3
        (-3.0, -2.5, True),  # z = -0.5
        (-3.0, -5.0, True),  # z = 2
        (3.0, 10.0, True),  # z = -7, but the advantages speak for the step
        (-1.2, 0.0, False),  # z = -1.2; with its own gain in the statistics it would be -0.6
    ],
)
def test_alpha_shrinks_where_the_advantages_speak_against_the_step_as_rarely_before(gain, mean, grows):
    # w = 1.1 and 0.9: sum A (w - 1) = 0.1 A_0 - 0.1 A_1
    ws, advantages = (1.1, 0.9), (7.5 * gain, -2.5 * gain)
    new_alpha, oorr, gains = adapted(ws=ws, advantages=advantages, statistics=START | {"mean": mean})
    assert oorr == 0.0 and new_alpha == pytest.approx(ALPHA * BETA if grows else ALPHA / BETA, rel=1e-12)
    # the gain joins the statistics: with the one that they began with it makes two
    assert gains.count == 2.0 and gains.mean.item() == pytest.approx((mean + gain) / 2, rel=1e-12)


def test_ratios_are_clamped_at_sixteen_nats():
    new_alpha, oorr, gains = adapted(ws=(math.exp(500.0), 1.0), advantages=(2.0, 0.0))
    assert gains.mean.item() == pytest.approx(math.exp(16.0) - 1.0, rel=1e-9) and oorr == 0.5
    assert new_alpha == pytest.approx(ALPHA * BETA, rel=1e-12)  # 0.5 is not above max_oorr


# PPO around the mixture
def ppo_batch(n=200, alpha_shift=0.3, log_ratio=None):
    """Actions of N(0, 1)^2, which the alpha-policy has moved to N(alpha_shift, 1)^2."""
    torch.manual_seed(0)
    u, zeros = torch.randn(n, 2), torch.zeros(n, 2)
    log_prob = Normal(zeros, 1.0).log_prob(u).sum(-1)
    alpha_log_prob = Normal(zeros + alpha_shift, 1.0).log_prob(u).sum(-1)
    assert (alpha_log_prob - log_prob).abs().max() < 4.0
    data = {"obs": zeros, "u": u, "log_prob": log_prob, "alpha_log_prob": alpha_log_prob}
    return data | {"scaled_advantages": torch.randn(n)}


def direct_ratio(policy, data, behaviour):
    mean, log_std = policy(data["obs"])
    return Normal(mean, log_std.exp()).log_prob(data["u"]).sum(-1).exp() / behaviour


def surrogate(ratio, advantages):
    """PPO's objective case by case: flat above 1.2 for a positive and below 0.8 for a negative advantage."""
    flat = torch.where(advantages > 0.0, ratio > 1.2, ratio < 0.8)
    return torch.where(flat, torch.where(advantages > 0.0, 1.2, 0.8) * advantages, ratio * advantages)


POLICY = [0.25, -0.1], [-0.15, 0.1]


def test_behaviour_is_halfway_between_the_old_policy_and_the_alpha_policy():
    policy, data = GaussianPolicy(*POLICY), ppo_batch()
    loss, stats = gippo.policy_loss(policy, data, make_args())
    ratio = direct_ratio(policy, data, (data["log_prob"].exp() + data["alpha_log_prob"].exp()) / 2.0)
    expected = -surrogate(ratio, data["scaled_advantages"]).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert relative(gradient(loss, policy), gradient(expected, policy)) < 1e-12
    assert stats["kept"].item() == pytest.approx(((ratio > 0.8) & (ratio < 1.2)).double().mean().item(), rel=1e-6)
    assert 0.0 < stats["kept"].item() < 1.0
    assert stats["ratio_max"].item() == pytest.approx(ratio.max().item(), rel=1e-12)


@pytest.mark.parametrize("sign", (1.0, -1.0))
def test_behaviour_is_the_alpha_policy_alone_where_the_two_are_far_apart_anywhere(sign):
    for distance, is_far in ((3.99, False), (4.01, True)):
        policy, data = GaussianPolicy(*POLICY), ppo_batch()
        data["alpha_log_prob"][17] = data["log_prob"][17] + sign * distance  # in one sample of the 200
        loss, _ = gippo.policy_loss(policy, data, make_args())
        old, new = data["log_prob"].exp(), data["alpha_log_prob"].exp()
        ratio = direct_ratio(policy, data, new if is_far else (old + new) / 2.0)
        expected = -surrogate(ratio, data["scaled_advantages"]).mean()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


def test_without_a_regression_the_loss_is_that_of_ppo():
    policy, data = GaussianPolicy([0.0, 0.0], [0.0, 0.0]), ppo_batch(alpha_shift=0.0)
    loss, stats = gippo.policy_loss(policy, data, make_args())
    assert stats["kept"].item() == 1.0 and stats["ratio_max"].item() == pytest.approx(1.0, abs=1e-12)
    # the plain policy gradient, E[A d log pi]: of a normal distribution A (u, u^2 - 1)
    advantages, u = data["scaled_advantages"][:, None], data["u"]
    expected = -torch.cat([(advantages * u).mean(0), (advantages * (u**2 - 1.0)).mean(0)])
    assert relative(gradient(loss, policy), expected) < 1e-12


@pytest.mark.parametrize(
    "advantage, reached",
    [
        (3.0, [True, True, True, True, True, False, False]),  # no further up where it is already more likely
        (-3.0, [False, False, True, True, True, True, True]),  # no further down where it is already less likely
    ],
)
def test_clipping_stops_the_gradient_only_where_the_objective_would_grow(advantage, reached):
    shift = 0.5
    for ratio, is_reached in zip([0.5, 0.799, 0.801, 1.0, 1.199, 1.201, 2.0], reached):
        policy = GaussianPolicy([shift], [0.0])
        u = torch.tensor([[0.7]])
        log_prob = Normal(shift, 1.0).log_prob(u).sum(-1) - math.log(ratio)  # both policies: the ratio is to their mean
        data = {"obs": u, "u": u, "log_prob": log_prob, "alpha_log_prob": log_prob}
        loss, stats = gippo.policy_loss(policy, data | {"scaled_advantages": torch.tensor([advantage])}, make_args())
        # d r / d mu = r eps,   d r / d log sigma = r (eps^2 - 1),   eps = u - mu
        eps = 0.7 - shift
        expected = [advantage * ratio * eps, advantage * ratio * (eps**2 - 1.0)] if is_reached else [0.0, 0.0]
        assert gradient(-loss, policy).tolist() == pytest.approx(expected, abs=1e-12)
        assert -loss.item() == pytest.approx(min(advantage * ratio, advantage * min(max(ratio, 0.8), 1.2)))
        assert stats["kept"].item() == float(0.8 < ratio < 1.2)


def test_log_ratios_are_clamped_at_sixteen():
    for mean, advantage in ((30.0, -1.0), (-30.0, 1.0)):
        policy, u = GaussianPolicy([mean], [0.0]), torch.tensor([[30.0]])
        log_prob = Normal(0.0, 1.0).log_prob(u).sum(-1)  # log ratios of 450 and -1350
        data = {"obs": u, "u": u, "log_prob": log_prob, "alpha_log_prob": log_prob}
        loss, stats = gippo.policy_loss(policy, data | {"scaled_advantages": torch.tensor([advantage])}, make_args())
        expected = math.exp(math.copysign(16.0, mean))
        assert stats["ratio_max"].item() == pytest.approx(expected, rel=1e-12)
        assert loss.item() == pytest.approx(-advantage * expected, rel=1e-12)
        assert gradient(loss, policy).tolist() == [0.0, 0.0]  # out there nothing is learned, but nothing breaks either


def test_each_epoch_sees_every_sample_once_and_reports_its_mean_loss(monkeypatch):
    seen = []

    def policy_loss(actor, data, args):
        seen.append(data["u"][:, 0].tolist())
        return len(seen) * (actor.mean * data["u"]).sum(), {"kept": torch.tensor(len(seen))}

    monkeypatch.setattr(gippo, "policy_loss", policy_loss)
    policy, n = GaussianPolicy([0.3], [0.0]), 10
    args = make_args(batch_size=n, minibatch_size=4, update_epochs=3)
    data = {"u": torch.arange(float(n))[:, None]}
    losses, stats = gippo.ppo_epochs(policy, torch.optim.SGD(policy.parameters(), lr=0.0), data, args)
    assert [len(batch) for batch in seen] == 3 * [4, 4, 2] and [step["kept"] for step in stats] == [*range(1, 10)]
    assert all(sorted(sum(seen[i : i + 3], [])) == list(range(n)) for i in (0, 3, 6)) and seen[0] != seen[3]
    sums = torch.tensor([0.3 * (i + 1) * sum(batch) for i, batch in enumerate(seen)])
    assert torch.allclose(torch.stack(losses), sums.view(3, 3).mean(1))


# densities, critics
def test_log_prob_kl_and_entropy_are_those_of_the_gaussians():
    torch.manual_seed(0)
    u, old, new = torch.randn(50, 3), 0.5 * torch.randn(2, 50, 3), 0.5 * torch.randn(2, 50, 3)
    p, q = (Normal(mean, log_std.exp()) for mean, log_std in (old, new))
    assert torch.allclose(gippo.gaussian_log_prob(u, *old), p.log_prob(u).sum(-1), rtol=1e-12)
    assert torch.allclose(gippo.gaussian_kl(*old, *new), kl_divergence(p, q).sum(-1), rtol=1e-10)
    policy = GaussianPolicy(*POLICY)
    _, stats = gippo.policy_loss(policy, ppo_batch(), make_args())
    assert stats["entropy"].item() == pytest.approx(Normal(policy.mean, policy.log_std.exp()).entropy().sum().item())


def test_critic_loss_is_half_the_sum_over_the_critics():
    values = torch.tensor([[1.0, 2.0], [3.0, 6.0]], requires_grad=True)
    loss = gippo.critic_loss(lambda obs: values, None, torch.tensor([0.0, 5.0]))
    assert loss.item() == pytest.approx(0.5 * ((1.0 + 4.0) / 2 + (4.0 + 1.0) / 2))
    assert torch.autograd.grad(loss, values)[0].tolist() == [[0.5, 1.0], [-1.0, 0.5]]
