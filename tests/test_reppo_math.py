"""The algorithm of reppo_continuous.py on toys with known answers, without a simulator; float64."""

import inspect
import math

import pytest
import torch
from torch.distributions import Normal, TanhTransform, TransformedDistribution, kl_divergence
from toy_mdp import GAMMA, H, N, ToyEnv, flatten, gradient, relative

import reppo_continuous as reppo
import rpo_continuous as rpo

LAM, ALPHA, SCALE, SAMPLES = 0.8, 0.3, 0.1, 3
SUPPORTS = (-50.0, 200.0, 251), (0.0, 150.0, 151), (-10.0, 10.0, 151)


pytestmark = pytest.mark.usefixtures("float64")


def make_args(**changes):
    values = {"num_steps": H, "gamma": GAMMA, "td_lambda": LAM, "reward_scale": SCALE, "num_value_samples": SAMPLES}
    return reppo.Args(**values | changes)


class ToyCritic(torch.nn.Module):
    """Q(s, a) = w (s, a) - |(s, a)|^2 / 4 by hand, without a histogram."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.tensor([0.7, -1.1, 0.4, 0.9]))
        self.scale = scale

    def features(self, obs, action):
        return torch.cat([obs, action], dim=-1)

    def value(self, features):
        return self.scale * (features @ self.weights - 0.25 * (features**2).sum(-1))


class Target(torch.nn.Module):
    """Q(s, a) = - scale |a - target|^2."""

    def __init__(self, target, scale=1.0):
        super().__init__()
        self.target, self.scale = torch.tensor(target), scale

    def features(self, obs, action):
        return action

    def value(self, features):
        return -self.scale * ((features - self.target) ** 2).sum(-1)


class GaussianPolicy(torch.nn.Module):
    """The same Gaussian in every state, with a mean and a deviation per dimension of the action."""

    def __init__(self, mean, log_std):
        super().__init__()
        self.mean, self.log_std = torch.nn.Parameter(torch.tensor(mean)), torch.nn.Parameter(torch.tensor(log_std))

    def forward(self, obs):
        return self.mean.expand(len(obs), -1), self.log_std.expand(len(obs), -1)


def squashed(mean, log_std):
    return TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform())


def toy_policy():
    torch.manual_seed(1)
    actor, normalizer = reppo.Actor(2, 2), reppo.ObsNormalizer(2)
    normalizer.mean, normalizer.var = torch.tensor([0.125, -0.25]), torch.tensor([0.5, 2.0])  # exact in float32
    return actor, normalizer


def collect(env=None, critic=None):
    actor, normalizer = toy_policy()
    torch.manual_seed(7)
    data = reppo.rollout(env or ToyEnv(), actor, critic or ToyCritic(), normalizer, ALPHA, make_args())
    return actor, normalizer, data


def targets_of(data, lam=LAM):
    columns = (data[name] for name in ("rewards", "next_values", "next_bonuses", "ends"))
    return reppo.td_lambda_targets(*columns, GAMMA, lam)


# the histogram
@pytest.mark.parametrize("v_min, v_max, num_bins", SUPPORTS)
def test_histograms_are_distributions_around_their_number(v_min, v_max, num_bins):
    hl = reppo.HLGauss(v_min, v_max, num_bins)
    width = (v_max - v_min) / (num_bins - 1)
    torch.manual_seed(0)
    y = torch.cat([torch.rand(500) * (v_max - v_min) + v_min, torch.tensor([v_min, v_max, 0.0])])
    p = hl.encode(y)
    assert p.shape == (503, num_bins) and (p >= 0.0).all()
    assert (p.sum(-1) - 1.0).abs().max() < 1e-12
    nearest = (y[:, None] - hl.centres).abs().argmin(-1)
    assert torch.equal(p.argmax(-1), nearest)
    assert torch.allclose(hl.centres, v_min + width * torch.arange(num_bins))
    # each bin is the mass of N(y, (0.75 width)^2) between its edges
    cdf = Normal(y[:, None], 0.75 * width).cdf(v_min + width * (torch.arange(num_bins + 1) - 0.5))
    inside = (y > v_min + 6.0 * width) & (y < v_max - 6.0 * width)  # 8 sigma: no mass beyond the ends
    assert torch.allclose(p[inside], cdf.diff(dim=-1)[inside], atol=1e-12) and inside.sum() > 400
    assert torch.equal(hl.encode(torch.tensor([v_min - 9.0, v_max + 1e6])), hl.encode(torch.tensor([v_min, v_max])))
    assert hl.encode(y.reshape(-1, 1)).shape == (503, 1, num_bins)


def test_histograms_shift_with_their_number():
    hl = reppo.HLGauss(-50.0, 200.0, 251)
    p, shifted = hl.encode(torch.tensor(40.3)), hl.encode(torch.tensor(45.3))
    assert torch.allclose(p[:-5], shifted[5:], atol=1e-13)


@pytest.mark.parametrize("v_min, v_max, num_bins", SUPPORTS)
def test_decoding_undoes_encoding_except_at_the_ends(v_min, v_max, num_bins):
    hl = reppo.HLGauss(v_min, v_max, num_bins)
    width = (v_max - v_min) / (num_bins - 1)

    def error(y):
        return (hl.decode((hl.encode(y) + 1e-300).log()) - y) / width

    bins = torch.linspace(0.0, 1.0, 101)
    assert error(v_min + width * (3.0 + (num_bins - 7) * bins)).abs().max() < 1e-5
    assert error(torch.tensor([v_min + 2.0 * width, v_max - 2.0 * width])).abs().max() < 2e-3
    # the histogram is cut off at the end, which moves its mean inwards by 0.369 bins
    assert error(torch.tensor([v_min, v_max])).tolist() == pytest.approx([0.369, -0.369], abs=1e-3)


class FreeLogits(torch.nn.Module):
    """A critic whose logits are its parameters."""

    def __init__(self, logits, features=None):
        super().__init__()
        self.logits, self.hl_gauss = torch.nn.Parameter(logits), reppo.HLGauss(-50.0, 200.0, 251)
        self.predicted = torch.zeros(len(logits), 4) if features is None else features

    def features(self, obs, action):
        return obs

    def outputs(self, features):
        return self.logits

    def predictor(self, features):
        return self.predicted


def critic_batch(targets, terminated=None, next_features=None):
    n = len(targets)
    terminated = torch.zeros(n, dtype=torch.bool) if terminated is None else terminated
    next_features = torch.zeros(n, 4) if next_features is None else next_features
    torch.manual_seed(3)
    data = {"obs": torch.randn(n, 2), "action": torch.tanh(torch.randn(n, 2)), "targets": targets}
    return data | {"terminated": terminated, "next_features": next_features}


def test_critic_loss_is_least_where_the_prediction_is_the_histogram_of_the_target():
    targets = torch.tensor([0.0, 33.3, 120.5, 190.0])
    p = reppo.HLGauss(-50.0, 200.0, 251).encode(targets)
    perfect = FreeLogits((p + 1e-300).log())
    loss, value_loss, aux_loss = reppo.critic_loss(perfect, critic_batch(targets), make_args())
    # what remains is the entropy of the histogram, the same in the middle of the support wherever the number is
    assert value_loss.item() == pytest.approx(1.2003, abs=1e-3) and aux_loss.item() == 0.0 and loss.item() == value_loss
    assert torch.autograd.grad(loss, perfect.logits)[0].abs().max() < 1e-12
    uninformed = FreeLogits(torch.zeros(4, 251))
    loss, value_loss, _ = reppo.critic_loss(uninformed, critic_batch(targets), make_args())
    assert value_loss.item() == pytest.approx(math.log(251))
    # d loss / d logits = (softmax - p) / B
    grad = torch.autograd.grad(loss, uninformed.logits)[0]
    assert torch.allclose(grad, (1.0 / 251 - p) / 4, atol=1e-14)


@pytest.mark.parametrize("v_min, v_max, num_bins", SUPPORTS)
def test_a_fresh_critic_is_zero(v_min, v_max, num_bins):
    for seed in range(5):
        torch.manual_seed(seed)
        critic = reppo.Critic(11, 3, make_args(v_min=v_min, v_max=v_max, num_bins=num_bins))
        features = critic.features(torch.randn(256, 11), 2.0 * torch.rand(256, 3) - 1.0)
        with torch.no_grad():
            q, logits = critic.value(features), critic.outputs(features)
        # measured: at most 3e-4 bins and, with the peak of the logits near 20, 3e-3 nats; log 251 is 5.5
        assert q.shape == (256,) and q.abs().max() < 1e-3 * (v_max - v_min) / (num_bins - 1)
        assert torch.distributions.Categorical(logits=logits).entropy().max() < 5e-3


def test_without_the_histogram_the_critic_is_a_number_and_its_loss_the_squared_error():
    args = make_args(hl_gauss=False)
    torch.manual_seed(0)
    critic = reppo.Critic(2, 2, args)
    targets = 10.0 * torch.randn(6)
    data = critic_batch(targets, next_features=torch.zeros(6, 200))
    q = critic.value(critic.features(data["obs"], data["action"]))
    assert q.shape == (6,) and critic.outputs(critic.features(data["obs"], data["action"])).shape == (6, 1)
    loss, value_loss, aux_loss = reppo.critic_loss(critic, data, args)
    expected = ((q - targets) ** 2).sum() / 6
    assert value_loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert loss.item() == pytest.approx((value_loss + aux_loss).item(), rel=1e-12)
    loss, *_ = reppo.critic_loss(critic, data, make_args(hl_gauss=False, aux_coef=0.0))
    assert relative(gradient(loss, critic), gradient(expected, critic)) < 1e-12


def test_self_prediction_is_of_the_next_features_where_there_is_a_next_state():
    targets = torch.zeros(3)
    predicted = torch.zeros(3, 4, requires_grad=True)
    critic = FreeLogits(torch.zeros(3, 251), predicted)
    next_features = torch.tensor([[1.0] * 4, [100.0] * 4, [0.0, 0.0, 0.0, 4.0]])
    fallen = torch.tensor([False, True, False])
    for aux_coef in (1.0, 0.3):
        loss, value_loss, aux_loss = reppo.critic_loss(
            critic, critic_batch(targets, fallen, next_features), make_args(aux_coef=aux_coef)
        )
        # the mean over features, then over the two that live
        assert aux_loss.item() == pytest.approx((1.0 + 16.0 / 4) / 2)
        assert loss.item() == pytest.approx((value_loss + aux_coef * aux_loss).item())
        grad = torch.autograd.grad(loss, predicted)[0]
        assert torch.allclose(grad, -2.0 * aux_coef * next_features / 8 * ~fallen[:, None])
    _, _, aux_loss = reppo.critic_loss(critic, critic_batch(targets, ~torch.zeros(3, dtype=bool)), make_args())
    assert aux_loss.item() == 0.0  # nobody lives


# the policy's distribution
def test_log_prob_is_that_of_the_squashed_gaussian():
    torch.manual_seed(0)
    u, mean, log_std = torch.rand(200, 3) * 10.0 - 5.0, torch.randn(200, 3), 0.4 * torch.randn(200, 3)
    ours = reppo.squashed_log_prob(u, mean, log_std)
    # the library inverts the tanh: at |u| = 5 that costs a factor of 1e4 of the precision of float64
    theirs = squashed(mean, log_std).log_prob(torch.tanh(u)).sum(-1)
    assert torch.allclose(ours, theirs, rtol=1e-10)
    gaussian = Normal(mean, log_std.exp()).log_prob(u).sum(-1)
    assert torch.allclose(reppo.gaussian_log_prob(u, mean, log_std), gaussian, rtol=1e-12)
    assert torch.allclose(ours, gaussian - torch.log1p(-(torch.tanh(u) ** 2)).sum(-1), rtol=1e-10)


def test_log_prob_is_finite_where_the_action_has_rounded_to_one():
    for dtype in (torch.float32, torch.float64):
        u = torch.tensor([[20.0], [-20.0]], dtype=dtype, requires_grad=True)
        zeros = torch.zeros(2, 1, dtype=dtype)
        assert torch.tanh(u)[0].item() == 1.0
        # log(1 - tanh(u)^2) = 2 (log 2 - |u|) there
        expected = -200.0 - 0.5 * math.log(2.0 * math.pi) - 2.0 * (math.log(2.0) - 20.0)
        log_prob = reppo.squashed_log_prob(u, zeros, zeros)
        assert log_prob.tolist() == pytest.approx([expected, expected], rel=1e-5)
        grad = torch.autograd.grad(log_prob.sum(), u)[0]
        assert grad.flatten().tolist() == pytest.approx([-18.0, 18.0], rel=1e-5)


@pytest.mark.parametrize("num_samples", (1, 4))
def test_values_are_averages_over_actions_and_features_those_of_the_first(num_samples):
    torch.manual_seed(0)
    obs, mean, log_std = torch.randn(5, 2), torch.randn(5, 2), 0.3 * torch.randn(5, 2)
    critic = ToyCritic()
    torch.manual_seed(1)
    values, entropies, features = reppo.sample_values(critic, obs, mean, log_std, num_samples)
    torch.manual_seed(1)
    u = torch.stack([mean + log_std.exp() * torch.randn(5, 2) for _ in range(num_samples)])
    inputs = torch.cat([obs.expand(num_samples, -1, -1), torch.tanh(u)], dim=-1)
    assert torch.allclose(values, critic.value(inputs).mean(0), rtol=1e-12)
    log_prob = squashed(mean, log_std).log_prob(torch.tanh(u)).sum(-1)
    assert torch.allclose(entropies, -log_prob.mean(0), rtol=1e-9)
    assert torch.equal(features, inputs[0])
    assert not any(x.requires_grad for x in (values, entropies, features))


def test_kl_is_that_of_the_gaussians():
    torch.manual_seed(0)
    old, new = 0.5 * torch.randn(2, 50, 3), 0.5 * torch.randn(2, 50, 3)
    exact = kl_divergence(*(Normal(mean, log_std.exp()) for mean, log_std in (old, new))).sum(-1)
    assert torch.allclose(reppo.gaussian_kl(*old, *new), exact, rtol=1e-10)
    same = new.clone().requires_grad_()
    kl = reppo.gaussian_kl(*new, *same)
    assert kl.abs().max() < 1e-14 and torch.autograd.grad(kl.sum(), same)[0].abs().max() < 1e-12
    assert reppo.sampled_kl(*new, *same, 16).abs().max() < 1e-13  # sample by sample


def test_sampled_kl_estimates_the_exact_one():
    torch.manual_seed(0)
    old, new = (
        (torch.zeros(20_000, 2), torch.zeros(20_000, 2)),
        (torch.full((20_000, 2), 0.3), torch.full((1, 2), -0.2)),
    )
    exact = reppo.gaussian_kl(*(x[:1] for x in old), *(x[:1] for x in new)).item()
    spread = {}
    for num_samples in (1, 16):
        kl = reppo.sampled_kl(*old, *new, num_samples)
        assert kl.shape == (20_000,)
        spread[num_samples] = kl.std().item()
        assert abs(kl.mean().item() - exact) < 4 * spread[num_samples] / math.sqrt(20_000)  # four standard errors
    # sixteen samples have a quarter of the deviation; that of a deviation of n samples is 1 / sqrt(2 n), here 0.5 %
    assert spread[1] / spread[16] == pytest.approx(4.0, rel=0.05)
    # the squashed policies have the same KL
    u = torch.randn(200_000, 2)
    squashed_kl = reppo.squashed_log_prob(u, torch.zeros(2), torch.zeros(2))
    squashed_kl = squashed_kl - reppo.squashed_log_prob(u, torch.full((2,), 0.3), torch.full((2,), -0.2))
    assert abs(squashed_kl.mean().item() - exact) < 4 * squashed_kl.std().item() / math.sqrt(200_000)


# targets
def n_step_mixture(rewards, values, bonuses, ends, gamma, lam):
    """(1 - lambda) sum_k lambda^k G^(k), the remaining weight on the longest n-step return, entry by entry."""
    rewards, values, bonuses, ends = (x.tolist() for x in (rewards, values, bonuses, ends))
    T, n = len(rewards), len(rewards[0])
    targets = torch.zeros(T, n)
    for k in range(n):
        for t in range(T):
            returns, paid = [], 0.0
            for i in range(T - t):
                # the entropy of the policy in s_{j+1} is paid with the step into it, one step further away
                paid += gamma**i * rewards[t + i][k] + gamma ** (i + 1) * bonuses[t + i][k]
                returns.append(paid + gamma ** (i + 1) * values[t + i][k])
                if ends[t + i][k]:
                    break
            weights = [(1.0 - lam) * lam**i for i in range(len(returns) - 1)] + [lam ** (len(returns) - 1)]
            assert sum(weights) == pytest.approx(1.0)
            targets[t, k] = sum(weight * g for weight, g in zip(weights, returns))
    return targets


@pytest.mark.parametrize("lam", (0.0, 0.8, 1.0))
def test_targets_are_the_mixture_of_n_step_returns(lam):
    torch.manual_seed(0)
    rewards, values, bonuses = torch.randn(3, 12, 200)
    terminated, truncated = torch.rand(2, 12, 200) < 0.12
    values[terminated] = bonuses[terminated] = 0.0
    ends = terminated | truncated
    ends[-1] = True
    ours = reppo.td_lambda_targets(rewards, values, bonuses, ends, GAMMA, lam)
    assert (ours - n_step_mixture(rewards, values, bonuses, ends, GAMMA, lam)).abs().max() < 1e-12
    assert terminated[-1].any() and torch.equal(ours[-1, terminated[-1]], rewards[-1, terminated[-1]])
    if lam == 0.0:
        assert torch.allclose(ours, rewards + GAMMA * (values + bonuses))


def test_targets_by_hand():
    # gamma = lambda = 1/2; the episode falls at t = 2, the rollout ends at t = 3
    # G_3 = 4 + (2 + 40)/2 = 25,  G_2 = 3,  G_1 = 2 + (4 + 10 + 3/2)/2 = 9.75,  G_0 = 1 + (2 + 5 + 9.75/2)/2 = 6.9375
    columns = [1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 0.0, 40.0], [2.0, 4.0, 0.0, 2.0], [False, False, True, True]
    targets = reppo.td_lambda_targets(*(torch.tensor(column)[:, None] for column in columns), 0.5, 0.5)
    assert targets.flatten().tolist() == [6.9375, 9.75, 3.0, 25.0]


def test_nothing_crosses_the_end_of_an_episode():
    torch.manual_seed(0)
    columns, ends = torch.randn(3, 6, 2), torch.zeros(6, 2, dtype=torch.bool)
    ends[2, 0] = ends[-1] = True
    before = reppo.td_lambda_targets(*columns, ends, GAMMA, LAM)
    columns[:, 3:] = torch.nan
    after = reppo.td_lambda_targets(*columns, ends, GAMMA, LAM)
    assert torch.equal(after[:3, 0], before[:3, 0]) and after[:3, 1].isnan().all()


# rollout
ENDS = (1, 0, "terminated"), (2, 3, "truncated"), (H - 1, 4, "terminated"), (H - 1, 5, "truncated")


def replay(data):
    """The same actions in a fresh environment: raw observations before and after every step, and the rewards."""
    env, obs, successors, rewards = ToyEnv(ENDS), [], [], []
    for action in data["action"]:
        obs.append(env.detach())
        _, reward, _, _, infos = env.step(action)
        successors.append(infos["final_obs"])
        rewards.append(reward)
    return torch.stack(obs), torch.stack(successors), torch.stack(rewards)


def test_rollout_and_its_targets_by_brute_force():
    critic = ToyCritic()
    actor, normalizer, data = collect(ToyEnv(ENDS), critic)
    torch.manual_seed(7)  # first the noise of every action, then that of the values
    noise = torch.stack([torch.randn(N, 2) for _ in range(H)])
    value_noise = torch.stack([torch.randn(H, N, 2) for _ in range(SAMPLES)])
    obs, successors, rewards = replay(data)
    x, next_x = ((y - normalizer.mean) / (normalizer.var + 1e-5).sqrt() for y in (obs, successors))
    same = {"rtol": 1e-6, "atol": 1e-6}  # the normaliser's scale passes through float32

    mean, log_std = actor(x)
    assert torch.allclose(data["obs"], x, **same)
    assert torch.allclose(data["mean"], mean, **same) and torch.allclose(data["log_std"], log_std, **same)
    assert torch.allclose(data["action"], torch.tanh(mean + log_std.exp() * noise), **same)
    assert torch.allclose(data["rewards"], SCALE * rewards, rtol=1e-12)
    assert data["terminated"].nonzero().tolist() == [[1, 0], [H - 1, 4]]
    assert data["dones"].nonzero().tolist() == [[t, n] for t, n, _ in ENDS]
    assert data["ends"].nonzero().tolist() == [[1, 0], [2, 3], *([H - 1, n] for n in range(N))]

    mean, log_std = actor(next_x)
    actions = torch.tanh(mean + log_std.exp() * value_noise)
    inputs = torch.cat([next_x.expand(SAMPLES, -1, -1, -1), actions], dim=-1)
    values = critic.value(inputs).mean(0)
    bonuses = -ALPHA * squashed(mean, log_std).log_prob(actions).sum(-1).mean(0)
    values[data["terminated"]] = bonuses[data["terminated"]] = 0.0  # after a fall there is neither
    assert torch.allclose(data["next_values"], values, **same)
    assert torch.allclose(data["next_bonuses"], bonuses, **same)
    assert torch.allclose(data["next_features"], inputs[0], **same)

    targets = targets_of(data)
    expected = n_step_mixture(SCALE * rewards, values, bonuses, data["ends"], GAMMA, LAM)
    assert torch.allclose(targets, expected, **same)
    for t, n in ((1, 0), (H - 1, 4)):  # a fall pays its reward and nothing else, in the last row too
        assert targets[t, n] == data["rewards"][t, n] and data["rewards"][t, n] != 0.0


def test_a_time_out_is_valued_where_the_episode_stopped_and_not_where_the_next_began():
    *_, data = collect(ToyEnv(ENDS))
    env = ToyEnv(ENDS)
    env.fresh = env.fresh + 10.0  # begins somewhere else
    *_, other = collect(env)
    assert torch.equal(data["next_values"][2, 3], other["next_values"][2, 3])
    assert torch.equal(targets_of(data)[:3, 3], targets_of(other)[:3, 3])
    assert (targets_of(data)[3:, 3] - targets_of(other)[3:, 3]).abs().min() > 0.01


def test_a_final_observation_that_is_not_finite_poisons_no_target_after_a_fall():
    class Poisoned(ToyEnv):
        def step(self, action):
            obs, reward, terminated, truncated, infos = super().step(action)
            infos["final_obs"] = torch.where(terminated[:, None], torch.nan, infos["final_obs"])
            return obs, reward, terminated, truncated, infos

    assert torch.equal(targets_of(collect(Poisoned(ENDS))[2]), targets_of(collect(ToyEnv(ENDS))[2]))


def test_rollout_records_no_gradient_and_no_statistics():
    actor, normalizer = toy_policy()
    before = {name: x.clone() for name, x in normalizer.state_dict().items()}
    env, critic = ToyEnv(ENDS), reppo.Critic(2, 2, make_args())
    env.state.requires_grad_()
    data = reppo.rollout(env, actor, critic, normalizer, ALPHA, make_args())
    assert not any(x.requires_grad for x in data.values()) and not env.state.requires_grad
    assert data["next_features"].shape == (H, N, 200)
    # the statistics belong to the next rollout: those of this one are handed on
    assert all(torch.equal(x, before[name]) for name, x in normalizer.state_dict().items())
    obs, _, _ = replay(data)
    assert torch.equal(data["raw_obs"], obs)
    assert {x.shape[:2] for x in data.values()} == {(H, N)}


def test_normalizer_is_that_of_rpo():
    assert inspect.getsource(reppo.ObsNormalizer) == inspect.getsource(rpo.ObsNormalizer)


# the loss of the policy
def policy_batch(n=7, shift=0.0, log_std=-0.7):
    """Data of an old policy N(shift_i, exp(log_std)^2) in each of n states."""
    torch.manual_seed(4)
    stats = {"mean": torch.zeros(n, 2) + torch.as_tensor(shift), "log_std": torch.full((n, 2), log_std)}
    return {"obs": torch.randn(n, 2)} | stats


def evaluate_loss(policy, critic, data, alpha=0.2, beta=3.0, seed=5, **changes):
    """The loss, its diagnostics, the multipliers, and the action, -log pi and KL it was made of, written out."""
    multipliers = reppo.Multipliers(alpha, beta)
    torch.manual_seed(seed)
    loss, stats = reppo.policy_loss(policy, critic, multipliers, data, make_args(**changes))
    torch.manual_seed(seed)
    mean, log_std = policy(data["obs"])
    action = torch.tanh(mean + log_std.exp() * torch.randn(mean.shape))
    entropy = -squashed(mean, log_std).log_prob(action).sum(-1)
    old, new = Normal(data["mean"], data["log_std"].exp()), Normal(mean, log_std.exp())
    return loss, stats, multipliers, action, entropy, kl_divergence(old, new).sum(-1)


def dual_part(multipliers, entropy, kl, bound=0.1, target=-1.0):
    alpha, beta = multipliers()
    return alpha * (entropy.mean() - target).detach() - beta * (kl.mean() - bound).detach()


# where the policy is N(0.1, 0.45^2) and the old one N(s, 0.497^2): inside the bound, outside, or both
POLICY = [0.1, 0.1], [math.log(0.45), math.log(0.45)]
INSIDE = torch.full((7, 1), 0.12)
OUTSIDE = torch.linspace(0.5, 1.5, 7)[:, None]
MIXED = torch.tensor([0.1, 0.9, 0.15, 1.2, -0.9, 0.2, 0.05])[:, None]


@pytest.mark.parametrize("shift, share", ((INSIDE, 1.0), (OUTSIDE, 0.0), (MIXED, 4 / 7)))
@pytest.mark.parametrize("mode", ("clipped", "full", "value"))
def test_loss_and_gradient_state_by_state(shift, share, mode):
    policy, critic, data = GaussianPolicy(*POLICY), ToyCritic(), policy_batch(shift=shift)
    loss, stats, multipliers, action, entropy, kl = evaluate_loss(policy, critic, data, kl_mode=mode)
    assert (kl < 0.1).double().mean() == pytest.approx(share) == stats["inside"].item()
    assert stats["entropy"].item() == pytest.approx(entropy.mean().item(), rel=1e-9)
    rows = []
    for i in range(7):
        objective = -critic.value(critic.features(data["obs"][i], action[i])) - 0.2 * entropy[i]
        if mode == "clipped":
            rows.append(objective if kl[i] < 0.1 else 3.0 * kl[i])
        else:
            rows.append(objective + (3.0 * kl[i] if mode == "full" else 0.0))
    expected = sum(rows) / 7
    assert loss.item() == pytest.approx((expected + dual_part(multipliers, entropy, kl)).item(), rel=1e-9)
    assert relative(gradient(loss, policy), gradient(expected, policy)) < 1e-9


def test_inside_the_bound_the_price_of_kl_and_outside_the_value_and_the_entropy_do_not_matter():
    def actor_gradient(shift, critic=None, **prices):
        policy = GaussianPolicy(*POLICY)
        return gradient(evaluate_loss(policy, critic or ToyCritic(), policy_batch(shift=shift), **prices)[0], policy)

    assert torch.equal(actor_gradient(INSIDE), actor_gradient(INSIDE, beta=50.0))
    assert relative(actor_gradient(INSIDE, alpha=0.4), actor_gradient(INSIDE)) > 0.01
    assert relative(actor_gradient(INSIDE, ToyCritic(2.0)), actor_gradient(INSIDE)) > 0.1
    assert torch.equal(actor_gradient(OUTSIDE), actor_gradient(OUTSIDE, ToyCritic(-9.0), alpha=7.0))
    assert torch.allclose(2.0 * actor_gradient(OUTSIDE), actor_gradient(OUTSIDE, beta=6.0))


def test_a_state_on_the_bound_is_pulled_back():
    # N(0, 1) and N(1/2, 1) in one of two dimensions: KL = 1/8, exact in binary
    policy, data = GaussianPolicy([0.5, 0.0], [0.0, 0.0]), policy_batch(n=1, log_std=0.0)
    for bound, inside in ((0.125, 0.0), (0.1251, 1.0)):
        assert evaluate_loss(policy, ToyCritic(), data, kl_bound=bound)[1]["inside"] == inside


def test_sampled_kl_takes_the_place_of_the_exact_one():
    policy, critic = GaussianPolicy(*POLICY), ToyCritic(0.0)
    data = policy_batch(n=2000, shift=0.5)
    options = {"kl_mode": "full", "alpha": 1e-9}
    exact = gradient(evaluate_loss(policy, critic, data, **options)[0], policy)
    options |= {"kl_estimator": "mc", "num_kl_samples": 2}
    grads = torch.stack(
        [gradient(evaluate_loss(policy, critic, data, seed=s, **options)[0], policy) for s in range(20)]
    )
    standard_error = grads.std(0) / math.sqrt(20)
    assert (standard_error > 0.0).all() and (exact.abs() > 20 * standard_error).all()
    assert ((grads.mean(0) - exact).abs() < 5 * standard_error).all()  # five: estimated themselves, from 20 gradients
    # the switch sees the estimate: inside in every state, which one sample often denies and a hundred seldom
    near, shares = policy_batch(n=2000, shift=0.12), []
    for num_kl_samples in (1, 100):
        options = {"kl_estimator": "mc", "num_kl_samples": num_kl_samples}
        shares.append(evaluate_loss(policy, critic, near, **options)[1]["inside"])
    assert evaluate_loss(policy, critic, near)[1]["inside"] == 1.0
    assert shares[0] < 0.8 and shares[1] > shares[0] + 0.1


def test_prices_follow_the_entropy_and_the_kl():
    # a = 2: the target of the entropy is -1
    for log_std, alpha_falls in ((-0.7, True), (-3.0, False)):
        for shift, beta_rises in ((1.5, True), (0.0, False)):
            policy = GaussianPolicy([0.0, 0.0], [log_std, log_std])
            data = policy_batch(shift=shift, log_std=log_std)
            loss, _, multipliers, _, entropy, kl = evaluate_loss(policy, ToyCritic(), data)
            assert (entropy.mean() > -1.0) == alpha_falls and (kl.mean() > 0.1) == beta_rises
            loss.backward()
            # d L_alpha / d log alpha = alpha (H - eps_H),   d L_beta / d log beta = - beta (KL - eps_KL)
            expected = 0.2 * (entropy.mean().item() + 1.0), -3.0 * (kl.mean().item() - 0.1)
            grads = [multipliers.log_alpha.grad.item(), multipliers.log_beta.grad.item()]
            assert grads == pytest.approx(expected, rel=1e-8)
            torch.optim.Adam(multipliers.parameters(), lr=0.01).step()
            alpha, beta = (x.item() for x in multipliers())
            assert (alpha < 0.2) == alpha_falls and (beta > 3.0) == beta_rises


def test_entropy_target_is_per_dimension_and_the_bound_that_of_the_loss():
    policy, data = GaussianPolicy(*POLICY), policy_batch(shift=0.5)
    loss, _, multipliers, _, entropy, kl = evaluate_loss(
        policy, ToyCritic(), data, target_entropy_scale=0.25, kl_bound=0.03
    )
    grads = torch.autograd.grad(loss, list(multipliers.parameters()))
    expected = 0.2 * (entropy.mean().item() - 0.5), -3.0 * (kl.mean().item() - 0.03)
    assert [grad.item() for grad in grads] == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("actor_gradient", ("pathwise", "score"))
def test_gradients_reach_the_policy_and_the_prices_and_nothing_else(actor_gradient):
    actor, normalizer = toy_policy()
    args = make_args(actor_gradient=actor_gradient)
    critic, multipliers = reppo.Critic(2, 2, args), reppo.Multipliers(0.1, 0.1)
    data = reppo.rollout(ToyEnv(), actor, critic, normalizer, ALPHA, args)
    data["targets"] = targets_of(data)
    data = flatten(data)
    loss, _ = reppo.policy_loss(actor, critic, multipliers, data, args)
    loss.backward(inputs=[*actor.parameters(), *multipliers.parameters()])
    assert all(p.grad is None for p in critic.parameters())
    assert all(p.grad.abs().sum() > 0 for p in [*actor.parameters(), *multipliers.parameters()])
    before = [p.grad.clone() for p in actor.parameters()]
    critic_loss, *_ = reppo.critic_loss(critic, data, args)
    critic_loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in critic.parameters())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(actor.parameters(), before))


# policies that learn
def test_score_function_and_pathwise_gradients_agree_in_expectation():
    # Q = -2 |a - a*|^2, entropy at 0.3: 40 batches of 5,000 actions with each estimator
    policy, critic = GaussianPolicy([0.3, -0.4], [-0.7, -0.2]), Target([-0.3, 0.5], scale=2.0)
    data, grads = policy_batch(n=5000), {}
    for estimator in ("pathwise", "score"):
        options = {"alpha": 0.3, "kl_mode": "value", "actor_gradient": estimator}
        losses = (evaluate_loss(policy, critic, data, seed=s, **options)[0] for s in range(40))
        grads[estimator] = torch.stack([gradient(loss, policy) for loss in losses])
    means = {name: x.mean(0) for name, x in grads.items()}
    errors = {name: x.std(0) / math.sqrt(40) for name, x in grads.items()}
    joint = (errors["pathwise"] ** 2 + errors["score"] ** 2).sqrt()
    assert ((means["pathwise"] - means["score"]).abs() < 4 * joint).all()  # four standard errors of the difference
    assert (means["pathwise"].abs() > 10 * joint).all()  # which would tell a wrong sign or a missing term
    assert (errors["score"] > 1.5 * errors["pathwise"]).all()  # the price of not differentiating Q


def test_score_function_weighs_the_log_probability_by_the_advantage():
    policy, critic, data = GaussianPolicy(*POLICY), ToyCritic(), policy_batch(n=50)
    loss, *_ = evaluate_loss(policy, critic, data, actor_gradient="score", kl_mode="value")
    torch.manual_seed(5)  # first the noise of the action, then that of the baseline
    noise = torch.stack([torch.randn(50, 2) for _ in range(1 + SAMPLES)])
    mean, log_std = policy(data["obs"])
    actions = torch.tanh(mean + log_std.exp() * noise).detach()
    log_prob = squashed(mean, log_std).log_prob(actions).sum(-1)
    soft_values = critic.value(critic.features(data["obs"].expand(1 + SAMPLES, -1, -1), actions)) - 0.2 * log_prob
    advantage = (soft_values[0] - soft_values[1:].mean(0)).detach()
    assert relative(gradient(loss, policy), gradient(-(advantage * log_prob[0]).mean(), policy)) < 1e-8


def test_pathwise_gradient_leads_to_the_best_action(monkeypatch):
    monkeypatch.setattr(reppo, "MIN_STD", 0.05)
    torch.manual_seed(0)
    actor, multipliers = reppo.Actor(2, 2), reppo.Multipliers(1e-6, 1.0)
    critic, data = Target([0.5, -0.3]), policy_batch(n=32)
    optimizer = torch.optim.Adam(actor.parameters(), lr=1e-2)
    for _ in range(200):
        loss, _ = reppo.policy_loss(actor, critic, multipliers, data, make_args(kl_mode="value"))
        optimizer.zero_grad()
        loss.backward(inputs=list(actor.parameters()))
        optimizer.step()
    mean, log_std = actor(data["obs"])
    # the noise that remains, at least 0.05, is felt through the curvature of tanh: it moves the best mean by its square
    assert (torch.tanh(mean) - critic.target).abs().max() < 0.05 and log_std.exp().max() < 0.2


@pytest.mark.parametrize("log_std", (-3.0, 0.0))
def test_entropy_comes_to_its_target(log_std):
    torch.manual_seed(0)
    policy, multipliers = GaussianPolicy([0.0, 0.0], [log_std, log_std]), reppo.Multipliers(0.1, 1.0)
    critic, data = Target([0.0, 0.0]), policy_batch(n=256)
    groups = {"params": policy.parameters(), "lr": 0.02}, {"params": multipliers.parameters(), "lr": 0.01}
    optimizer, entropies = torch.optim.Adam(groups), []
    for _ in range(600):
        loss, stats = reppo.policy_loss(policy, critic, multipliers, data, make_args(kl_mode="value"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        entropies.append(stats["entropy"].item())
    # two dimensions: the target is -1; the price is still swinging, by less than a tenth in the end
    assert abs(entropies[0] + 1.0) > 2.0 and abs(sum(entropies[-50:]) / 50 + 1.0) < 0.1
    # with Q = -|a|^2 a small deviation s costs s^2 - alpha log s, least at alpha = 2 s^2, and the target is at s = 0.15
    assert multipliers()[0].item() == pytest.approx(2 * 0.15**2, rel=0.1)


def test_without_a_preference_the_entropy_rises_towards_that_of_the_uniform_distribution():
    policy, multipliers = GaussianPolicy([0.4, -0.4], [-2.0, -1.0]), reppo.Multipliers(0.1, 1.0)
    critic, data = ToyCritic(0.0), policy_batch(n=256)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.05)
    for _ in range(200):
        loss, _ = reppo.policy_loss(policy, critic, multipliers, data, make_args(kl_mode="value"))
        optimizer.zero_grad()
        loss.backward(inputs=list(policy.parameters()))
        optimizer.step()
    # of all tanh(N(mean, std^2)) that with mean 0 and deviation 0.8745 is the most uniform, of entropy 0.677 (of 0.693)
    assert policy.mean.abs().max() < 0.1 and (policy.log_std.exp() - 0.8745).abs().max() < 0.1


# networks
@pytest.mark.parametrize("min_std", (None, 0.3, 0.0))
def test_min_std_is_added_to_the_deviation(min_std, monkeypatch):
    if min_std is not None:
        monkeypatch.setattr(reppo, "MIN_STD", min_std)
    min_std = 0.1 if min_std is None else min_std
    actor, _ = toy_policy()
    obs = torch.randn(5, 2)
    raw = actor.head(actor.trunk(obs))
    mean, log_std = actor(obs)
    assert torch.equal(mean, raw[:, :2]) and torch.allclose(log_std.exp(), raw[:, 2:].exp() + min_std, rtol=1e-12)
    torch.nn.init.zeros_(actor.head.weight)
    actor.head.bias.data[:] = torch.tensor([0.0, 0.0, -60.0, 0.0])
    assert torch.allclose(actor(obs)[1].exp(), torch.tensor([min_std, 1.0 + min_std]), atol=1e-20)


def test_actions_are_squashed_samples_or_the_squashed_mean():
    actor, _ = toy_policy()
    obs = torch.randn(5, 2)
    mean, log_std = actor(obs)
    torch.manual_seed(3)
    action = actor.act(obs)
    torch.manual_seed(3)
    assert torch.equal(action, torch.tanh(mean + log_std.exp() * torch.randn(5, 2)))
    assert torch.equal(actor.act(obs, deterministic=True), torch.tanh(mean))


def test_layers_of_the_networks():
    actor, critic = reppo.Actor(4, 2), reppo.Critic(4, 2, make_args())

    def layers(net):
        names = {torch.nn.Linear: "linear", torch.nn.LayerNorm: "norm", torch.nn.SiLU: "silu"}
        return [names[type(layer)] for layer in net.modules() if not list(layer.children())]

    block = ["linear", "norm", "silu"]
    assert layers(actor) == 3 * block + ["linear"]
    assert layers(critic.encoder) == block + ["linear"]
    assert layers(critic.value_head) == layers(critic.predictor) == ["silu"] + block + ["linear"]
    modules = [layer for net in (actor, critic) for layer in net.modules()]
    widths = [(layer.in_features, layer.out_features) for layer in modules if isinstance(layer, torch.nn.Linear)]
    assert widths[:4] == [(4, 400), (400, 200), (200, 100), (100, 4)]
    assert widths[4:] == [(6, 400), (400, 200), (200, 100), (100, 251), (200, 100), (100, 200)]


def test_value_and_prediction_share_the_features():
    torch.manual_seed(0)
    critic = reppo.Critic(2, 2, make_args())
    obs, action = torch.randn(5, 2), torch.randn(5, 2)
    features = critic.features(obs, action)
    assert torch.equal(features, critic.encoder(torch.cat([obs, action], dim=-1)))
    assert torch.allclose(critic.outputs(features), critic.value_head(features) + 40.0 * critic.zero, rtol=1e-12)
    assert critic.zero.requires_grad and features.shape == critic.predictor(features).shape == (5, 200)
    probabilities = torch.softmax(critic.outputs(features), dim=-1)
    expected = (probabilities * torch.linspace(-50.0, 200.0, 251)).sum(-1)
    assert torch.allclose(critic.value(features), expected, atol=1e-12)


# the support
@pytest.mark.parametrize("reward, share", ((16.0, 0.0), (40.0, 0.9)))
def test_default_support_holds_the_returns_it_should(reward, share):
    # the same reward in each of 1,000 steps, lambda 1, ant's scale: 16 a step is within the support, 40 is not
    args, rewards = reppo.Args(), torch.full((1000, 1), reward * reppo.TASK_DEFAULTS["ant"]["reward_scale"])
    ends = torch.zeros(1000, 1, dtype=torch.bool)
    ends[-1] = True
    targets = reppo.td_lambda_targets(rewards, 0.0 * rewards, 0.0 * rewards, ends, args.gamma, 1.0)
    outside = ((targets < args.v_min) | (targets > args.v_max)).double().mean().item()
    assert outside == 0.0 if share == 0.0 else outside > share
