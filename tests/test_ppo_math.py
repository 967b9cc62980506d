"""The algorithm of ppo_continuous.py on toys with known answers, without a simulator; float64 unless said otherwise."""

import inspect
import math

import pytest
import torch
from toy_mdp import GAMMA, H, N, ToyEnv, flatten, gradient, relative, value

import ppo_continuous as ppo
import rpo_continuous as rpo

LAM = 0.8


pytestmark = pytest.mark.usefixtures("float64")


def make_args(**changes):
    return ppo.Args(**{"num_steps": H, "gamma": GAMMA, "gae_lambda": LAM} | changes)


def toy_policy():
    torch.manual_seed(1)
    actor, normalizer = ppo.Actor(2, 2), ppo.ObsNormalizer(2)
    normalizer.mean, normalizer.var = torch.tensor([0.125, -0.25]), torch.tensor([0.5, 2.0])  # exact in float32
    return actor, normalizer


def toy_returns():
    """The critic's unit: a value v is a return of 2 v + 3, but for the 1e-5 under the root, rounded to float32."""
    normalizer = ppo.ReturnNormalizer()
    normalizer.mean, normalizer.var = torch.tensor([3.0]), torch.tensor([4.0])
    return normalizer


UNIT = math.sqrt(4.0 + 1e-5)
FLOAT32 = 1e-6  # the scale passes through float32, whose relative error is 6e-8


def collect(env=None, critic=value, returns=None):
    actor, normalizer = toy_policy()
    torch.manual_seed(7)
    data = ppo.rollout(env or ToyEnv(), actor, critic, normalizer, returns or toy_returns(), make_args())
    return actor, normalizer, data


def gae_of(data, lam=LAM):
    return ppo.gae(data["rewards"], data["values"], data["next_values"], data["dones"], GAMMA, lam)


class GaussianPolicy(torch.nn.Module):
    """The same Gaussian in every state, with a mean and a deviation per dimension of the action."""

    def __init__(self, mean, log_std):
        super().__init__()
        self.mean, self.log_std = torch.nn.Parameter(torch.tensor(mean)), torch.nn.Parameter(torch.tensor(log_std))

    def forward(self, obs):
        return self.mean.expand(len(obs), -1), self.log_std.expand(len(obs), -1)


def batch(action, advantages, mean=0.0, log_std=0.0):
    """Data of a policy that was N(mean, exp(log_std)^2) in every state."""
    stats = {"mean": torch.full_like(action, mean), "log_std": torch.full_like(action, log_std)}
    return {"obs": torch.zeros_like(action), "action": action, "advantages": advantages} | stats


# advantages
def test_gae_by_hand():
    # gamma = lambda = 1/2, V = (10, 20, 30, 40); the episode ends at t = 2 with a fall, the rollout at t = 3
    # deltas: 1 + 10 - 10 = 1,  2 + 15 - 20 = -3,  3 + 0 - 30 = -27,  4 + 25 - 40 = -11
    # A_3 = -11,  A_2 = -27,  A_1 = -3 - 27/4 = -9.75,  A_0 = 1 - 9.75/4 = -1.4375
    columns = [1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0], [20.0, 30.0, 0.0, 50.0]
    rewards, values, next_values = (torch.tensor(column)[:, None] for column in columns)
    dones = torch.tensor([False, False, True, False])[:, None]
    advantages = ppo.gae(rewards, values, next_values, dones, 0.5, 0.5)
    assert advantages.flatten().tolist() == [-1.4375, -9.75, -27.0, -11.0]


def test_gae_is_the_discounted_sum_of_deltas_up_to_the_end_of_the_episode():
    torch.manual_seed(0)
    T, n = 12, 100
    rewards, values, next_values = torch.randn(3, T, n)
    terminated, truncated = torch.rand(2, T, n) < 0.15
    next_values[terminated] = 0.0
    dones = terminated | truncated
    assert dones[-1].any() and not dones[-1].all()
    advantages = ppo.gae(rewards, values, next_values, dones, GAMMA, LAM)
    for k in range(n):
        for t in range(T):
            last = next((j for j in range(t, T) if dones[j, k]), T - 1)
            deltas = [(rewards[j, k] + GAMMA * next_values[j, k] - values[j, k]).item() for j in range(t, last + 1)]
            expected = sum((GAMMA * LAM) ** j * delta for j, delta in enumerate(deltas))
            assert advantages[t, k].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", ("terminated", "truncated"))
def test_no_advantage_crosses_the_end_of_an_episode(kind):
    *_, data = collect(ToyEnv(ends=((2, 0, kind),)))
    before = gae_of(data)
    for name in ("rewards", "values", "next_values"):
        data[name] = data[name].clone()
        data[name][3:] = torch.nan
    after = gae_of(data)
    assert torch.equal(after[:3, 0], before[:3, 0])  # env 0: the episode of the first three steps
    assert after[:3, 1:].isnan().all() and after[3:].isnan().all()


def test_advantages_are_scaled_over_the_whole_rollout():
    advantages = torch.tensor([[1.0, 3.0], [5.0, 7.0]])  # mean 4, deviation sqrt(5)
    expected = torch.tensor([[-3.0, -1.0], [1.0, 3.0]]) / math.sqrt(5.0)
    assert torch.allclose(ppo.normalize_advantages(advantages), expected, rtol=1e-7)
    assert (ppo.normalize_advantages(torch.full((2, 2), 3.0)) == 0.0).all()


# rollout
def replay(data, ends):
    """The same actions in a fresh environment: raw observations before and after every step, and the rewards."""
    env, obs, successors, rewards = ToyEnv(ends), [], [], []
    for action in data["action"]:
        obs.append(env.detach())
        _, reward, _, _, infos = env.step(action)
        successors.append(infos["final_obs"])
        rewards.append(reward)
    return torch.stack(obs), torch.stack(successors), torch.stack(rewards)


ENDS = (1, 0, "terminated"), (2, 3, "truncated"), (H - 1, 4, "terminated"), (H - 1, 5, "truncated")


def test_the_value_of_the_true_successor_after_a_time_out_and_none_after_a_fall():
    _, normalizer, data = collect(ToyEnv(ENDS))
    obs, successors, rewards = replay(data, ENDS)
    assert torch.equal(data["rewards"], rewards)
    assert torch.allclose(data["values"], UNIT * value(normalizer(obs)) + 3.0, rtol=FLOAT32)
    expected = UNIT * value(normalizer(successors)) + 3.0
    expected[1, 0] = expected[H - 1, 4] = 0.0
    assert torch.allclose(data["next_values"], expected, rtol=FLOAT32)
    assert (data["next_values"] == 0.0).sum() == 2
    # elsewhere the successor is the next observation; where env 3 timed out it is not
    assert torch.allclose(data["next_values"][:-1, 1], data["values"][1:, 1], rtol=1e-12)
    assert (data["next_values"][2, 3] - data["values"][3, 3]).abs() > 0.1


def test_a_fall_costs_the_value_and_a_time_out_does_not():
    # without rewards, V = 1000 in units of the return: the only delta that is not (gamma - 1) V is that of the fall
    class Free(ToyEnv):
        def step(self, action):
            obs, reward, *rest = super().step(action)
            return obs, 0.0 * reward, *rest

    *_, data = collect(Free(ENDS), critic=lambda s: (1000.0 - 3.0) / UNIT + 0.0 * s[..., 0])
    deltas = gae_of(data, 0.0)
    expected = torch.full((H, N), -100.0)
    expected[1, 0] = expected[H - 1, 4] = -1000.0
    assert torch.allclose(deltas, expected, rtol=1e-5)  # 1000 cancels to 100 after float32


def test_a_final_observation_that_is_not_finite_poisons_nothing_after_a_fall():
    class Poisoned(ToyEnv):
        def step(self, action):
            obs, reward, terminated, truncated, infos = super().step(action)
            infos["final_obs"] = torch.where(terminated[:, None], torch.nan, infos["final_obs"])
            return obs, reward, terminated, truncated, infos

    assert torch.equal(gae_of(collect(Poisoned())[2]), gae_of(collect()[2]))


def test_actions_are_drawn_from_the_stored_gaussian_and_reach_the_environment_as_drawn():
    class Watched(ToyEnv):
        def step(self, action):
            seen.append(action)
            return super().step(action)

    seen = []
    actor, _, data = collect(Watched())
    torch.manual_seed(7)
    noise = torch.stack([torch.randn(N, 2) for _ in range(H)])
    mean, log_std = actor(data["obs"])
    assert torch.allclose(data["mean"], mean, atol=1e-12) and torch.allclose(data["log_std"], log_std, atol=1e-12)
    assert torch.allclose(data["action"], mean + log_std.exp() * noise, atol=1e-12)
    assert torch.equal(torch.stack(seen), data["action"]) and data["action"].abs().max() > 1.0


def test_rollout_normalises_with_statistics_from_before_it_and_returns_all_it_has_seen():
    _, normalizer, data = collect()
    obs, _, _ = replay(data, ToyEnv().ends)
    assert torch.allclose(data["obs"], normalizer(obs), rtol=1e-12) and normalizer.count == toy_policy()[1].count
    assert torch.equal(data["raw_obs"], obs)


def test_rollout_records_no_gradient():
    env = ToyEnv()
    env.state.requires_grad_()
    *_, data = collect(env, ppo.Critic(2))
    assert not any(x.requires_grad for x in data.values()) and not env.state.requires_grad
    assert {x.shape[:2] for x in data.values()} == {(H, N)}


def test_rollout_tells_which_episodes_ended():
    class Counting(ToyEnv):
        def step(self, action):
            *rest, infos = super().step(action)
            infos["episode"] = {"r": torch.arange(N) + 10.0 * self.t, "l": torch.arange(N) + 100.0}
            return *rest, infos

    *_, data = collect(Counting(ENDS))
    episodes = torch.stack([data["episode_return"], data["episode_length"]], dim=-1)[data["dones"]]
    assert episodes.tolist() == [[20.0, 100.0], [33.0, 103.0], [54.0, 104.0], [55.0, 105.0]]


# policy
def test_log_ratio_is_that_of_the_densities():
    torch.manual_seed(0)
    action, old, new = torch.randn(50, 3), 0.5 * torch.randn(2, 50, 3), 0.5 * torch.randn(2, 50, 3)

    def log_density(mean, log_std):
        return torch.distributions.Normal(mean, log_std.exp()).log_prob(action).sum(-1)

    assert torch.allclose(ppo.log_ratio(action, *new, *old), log_density(*new) - log_density(*old), rtol=1e-12)


def test_kl_and_entropy_are_those_of_the_gaussians():
    torch.manual_seed(0)
    old, new = 0.5 * torch.randn(2, 50, 3), 0.5 * torch.randn(2, 50, 3)
    p, q = (torch.distributions.Normal(mean, log_std.exp()) for mean, log_std in (old, new))
    kl = torch.distributions.kl_divergence(p, q).sum(-1)
    assert torch.allclose(ppo.gaussian_kl(*old, *new), kl, rtol=1e-10)
    assert torch.allclose(ppo.gaussian_entropy(old[1]), p.entropy().sum(-1), rtol=1e-12)


def test_first_epoch_is_the_plain_policy_gradient():
    actor, _, data = collect()
    data = flatten(data | {"advantages": gae_of(data)})
    loss, stats = ppo.policy_loss(actor, data, make_args())
    assert stats["kept"].item() == 1.0 and stats["ratio_max"].item() == pytest.approx(1.0, abs=1e-12)
    assert stats["kl"].item() == pytest.approx(0.0, abs=1e-12)
    mean, log_std = actor(data["obs"])
    log_prob = torch.distributions.Normal(mean, log_std.exp()).log_prob(data["action"]).sum(-1)
    plain = gradient(-(data["advantages"] * log_prob).mean(), actor)
    assert relative(gradient(loss, actor), plain) < 1e-12
    assert loss.item() == pytest.approx(-data["advantages"].mean().item(), rel=1e-12)


def test_first_step_sees_ratio_one_in_float32():
    """The rollout calls the actor with N rows at a time and an epoch with all of them: sums may round differently."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(1)
    actor, n = ppo.Actor(2, 2), 300
    data = ppo.rollout(ToyEnv(num_envs=n), actor, value, ppo.ObsNormalizer(2), ppo.ReturnNormalizer(), make_args())
    flat = flatten(data)
    ratio = ppo.log_ratio(flat["action"], *actor(flat["obs"]), flat["mean"], flat["log_std"]).exp()
    assert ratio.shape == (H * n,) and (ratio - 1.0).abs().max() < 1e-3


def ratios_as_actions(ratios, shift):
    """Actions with these ratios where the mean has moved from 0 to shift, sigma = 1: log r = m a - m^2 / 2."""
    return (torch.tensor(ratios)[:, None].log() + 0.5 * shift**2) / shift


RATIOS = [0.5, 0.799, 0.801, 1.0, 1.199, 1.201, 2.0]


@pytest.mark.parametrize(
    "advantage, reached",
    [
        (3.0, [True, True, True, True, True, False, False]),  # no further up where it is already more likely
        (-3.0, [False, False, True, True, True, True, True]),  # no further down where it is already less likely
    ],
)
def test_clipping_stops_the_gradient_only_where_the_objective_would_grow(advantage, reached):
    shift = 0.5
    actions = ratios_as_actions(RATIOS, shift)
    for action, ratio, is_reached in zip(actions, RATIOS, reached):
        policy = GaussianPolicy([shift], [0.0])
        loss, stats = ppo.policy_loss(policy, batch(action[None], torch.tensor([advantage])), make_args())
        grads = torch.autograd.grad(-loss, [policy.mean, policy.log_std])
        # d r / d mu = r eps,   d r / d log sigma = r (eps^2 - 1),   eps = a - mu
        eps = action.item() - shift
        expected = [advantage * ratio * eps, advantage * ratio * (eps**2 - 1.0)] if is_reached else [0.0, 0.0]
        assert [grad.item() for grad in grads] == pytest.approx(expected, abs=1e-12)
        clipped = min(max(ratio, 0.8), 1.2)
        assert -loss.item() == pytest.approx(min(advantage * ratio, advantage * clipped))
        # clipped or not does not ask for the sign of the advantage
        assert stats["kept"].item() == float(0.8 < ratio < 1.2) and stats["ratio_max"].item() == pytest.approx(ratio)


def test_clip_coef_is_the_half_width_of_the_interval():
    data = batch(ratios_as_actions(RATIOS, 0.5), torch.ones(len(RATIOS)))
    for clip_coef, kept in ((0.1, 1), (0.2, 3), (0.6, 6), (1.5, 7)):
        _, stats = ppo.policy_loss(GaussianPolicy([0.5], [0.0]), data, make_args(clip_coef=clip_coef))
        assert stats["kept"].item() == pytest.approx(kept / 7) and stats["ratio_max"].item() == pytest.approx(2.0)


def test_diagnostics_are_those_of_the_new_policy():
    policy = GaussianPolicy([0.3, 0.0], [math.log(0.8), 0.0])
    _, stats = ppo.policy_loss(policy, batch(torch.randn(5, 2), torch.randn(5)), make_args())
    assert stats["kl"].item() == pytest.approx(0.128419, abs=1e-6)  # from old to new; the other way round 0.088144
    assert stats["entropy"].item() == pytest.approx(math.log(0.8) + 1.0 + math.log(2.0 * math.pi))


def test_entropy_term_is_a_bonus():
    for ent_coef in (0.0, 0.25):
        policy = GaussianPolicy([0.0, 0.0], [-0.5, 0.1])
        data = batch(torch.randn(8, 2), torch.zeros(8))
        loss, _ = ppo.policy_loss(policy, data, make_args(ent_coef=ent_coef))
        mean, log_std = torch.autograd.grad(loss, [policy.mean, policy.log_std])
        # d H / d log sigma = 1 per dimension: a descent widens the policy
        assert mean.tolist() == [0.0, 0.0] and log_std.tolist() == pytest.approx([-ent_coef, -ent_coef])


def test_a_policy_that_is_far_away_has_a_finite_loss():
    torch.set_default_dtype(torch.float32)
    action, advantages = torch.tensor([[40.0], [-40.0]]), torch.tensor([-1.0, 1.0])
    policy = GaussianPolicy([40.0], [0.0])  # log ratios of 800 and -2400
    loss, stats = ppo.policy_loss(policy, batch(action, advantages), make_args())
    assert loss.isfinite() and stats["ratio_max"].item() == pytest.approx(math.exp(20.0), rel=1e-5)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(loss, list(policy.parameters())))


# returns, learning rate, critic
def test_return_normalizer_restores_what_it_normalised():
    torch.manual_seed(0)
    normalizer, returns = ppo.ReturnNormalizer(), 40.0 * torch.randn(30, 20) + 100.0
    for row in returns:
        normalizer.update(row[:, None])
    assert torch.allclose(normalizer.restore(normalizer(returns)), returns, rtol=1e-12)
    # 600 returns and one imaginary 0: within four standard errors, 4 * 40 / sqrt(600), of the mean
    assert abs(normalizer.mean.item() - 100.0) < 7.0 and normalizer(returns).std().item() == pytest.approx(1.0, abs=0.1)
    normalizer.mean, normalizer.var = torch.tensor([3.0]), torch.tensor([4.0])
    expected = torch.tensor([3.0, 3.0 + UNIT, 3.0 - 2.0 * UNIT])
    assert torch.allclose(normalizer.restore(torch.tensor([0.0, 1.0, -2.0])), expected, rtol=FLOAT32)


def test_values_keep_their_size_when_the_unit_changes():
    # a critic that is right in one unit and the same critic, right in another: the same advantages
    advantages = []
    for mean, var in ((0.0, 1.0), (50.0, 900.0)):
        unit = ppo.ReturnNormalizer()
        unit.mean, unit.var = torch.tensor([mean]), torch.tensor([var])
        *_, data = collect(critic=lambda s, unit=unit: unit(10.0 * value(s)), returns=unit)
        advantages.append(gae_of(data))
    assert relative(*advantages) < 1e-12


def test_learning_rate_follows_the_kl():
    lr, target = 3e-4, 0.008
    for kl, factor in ((0.0, 1.5), (0.00399, 1.5), (0.00401, 1.0), (0.008, 1.0), (0.01599, 1.0), (0.01601, 1 / 1.5)):
        assert ppo.adapted_learning_rate(lr, kl, target) == pytest.approx(factor * lr, rel=1e-12)
    assert ppo.adapted_learning_rate(lr, math.nan, target) == lr
    assert ppo.adapted_learning_rate(9e-3, 0.0, target) == 1e-2 and ppo.adapted_learning_rate(1e-2, 0.0, target) == 1e-2
    assert ppo.adapted_learning_rate(1.2e-6, 1.0, target) == 1e-6
    assert ppo.adapted_learning_rate(1e-6, 1.0, target) == 1e-6


def test_critic_loss():
    obs = torch.tensor([[1.0], [3.0]], requires_grad=True)
    loss = ppo.critic_loss(lambda obs: obs[:, 0], obs, torch.tensor([0.0, 5.0]))
    assert loss.item() == pytest.approx(0.5 * (1.0 + 4.0) / 2)
    assert torch.autograd.grad(loss, obs)[0].flatten().tolist() == pytest.approx([0.5, -1.0])


# networks
def test_deviation_is_between_a_tenth_and_one_and_the_mean_between_minus_one_and_one():
    torch.manual_seed(0)
    actor = ppo.Actor(11, 3)
    obs = torch.randn(100, 11)
    torch.nn.init.zeros_(actor.std.weight)
    std = actor(obs)[1].exp()
    assert torch.allclose(std, torch.tensor(0.1 + 0.9 / (1.0 + math.exp(-2.0))), rtol=1e-12)
    assert std[0, 0].item() == pytest.approx(0.893, abs=5e-4)
    actor.std.bias.data[:] = actor.mean.bias.data[:] = torch.tensor([100.0, -100.0, -2.0])
    mean, log_std = actor(obs)
    assert torch.allclose(log_std.exp(), torch.tensor([1.0, 0.1, 0.55]), rtol=1e-12)
    assert torch.allclose(mean[:, :2], torch.tensor([1.0, -1.0]), rtol=1e-12) and mean.abs().max() <= 1.0


def test_mean_and_deviation_depend_on_the_state():
    torch.manual_seed(0)
    actor = ppo.Actor(11, 3)
    mean, log_std = actor(torch.randn(100, 11))
    assert (mean.std(0) > 1e-4).all() and (log_std.std(0) > 1e-5).all()
    assert mean.abs().max() < 0.1  # the last layers start small, so that all actions start as likely


def test_trunks_and_critic_are_those_of_rpo():
    torch.manual_seed(0)
    actor, critic = ppo.Actor(11, 3), ppo.Critic(11)
    block = [torch.nn.Linear, torch.nn.LayerNorm, torch.nn.SiLU]
    assert [type(layer) for layer in actor.trunk] == [type(layer) for layer in critic.value[:-1]] == 3 * block
    linears = [layer for net in (actor, critic) for layer in net.modules() if isinstance(layer, torch.nn.Linear)]
    widths = {(layer.in_features, layer.out_features) for layer in linears}
    assert widths == {(11, 400), (400, 200), (200, 100), (100, 3), (100, 1)}
    for name, gain in (("trunk.0", 2**0.5), ("mean", 0.01), ("std", 0.01)):
        layer = actor.get_submodule(name)
        W = layer.weight if layer.out_features <= layer.in_features else layer.weight.T
        assert torch.allclose(W @ W.T, gain**2 * torch.eye(len(W)), atol=1e-6) and not layer.bias.any()
    assert critic(torch.randn(4, 5, 11)).shape == (4, 5)


def test_what_is_not_ppo_is_as_in_rpo():
    for name in ("ObsNormalizer", "mlp", "evaluate"):
        assert inspect.getsource(getattr(ppo, name)) == inspect.getsource(getattr(rpo, name))


def test_the_policy_acts_with_its_noise_or_with_its_mean():
    torch.manual_seed(0)
    actor, obs = ppo.Actor(11, 3), torch.randn(20, 11)
    mean, log_std = actor(obs)
    torch.manual_seed(1)
    action = actor.act(obs)
    torch.manual_seed(1)
    assert torch.equal(action, mean + log_std.exp() * torch.randn(20, 3))
    assert torch.equal(actor.act(obs, deterministic=True), mean)
