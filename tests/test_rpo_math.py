"""The algorithm of rpo_continuous.py on toys with known answers, without a simulator; float64 unless said otherwise."""

import copy
import math

import pytest
import torch

import rpo_continuous as rpo

H, N, GAMMA = 5, 6, 0.9
A = torch.tensor([[0.9, 0.1], [-0.2, 1.05]], dtype=torch.float64)
B = torch.tensor([[0.0, 0.3], [0.5, -0.1]], dtype=torch.float64)
VALUE_WEIGHTS = torch.tensor([0.7, -1.1], dtype=torch.float64)


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_args(**changes):
    values = {"num_steps": H, "gamma": GAMMA, "kl_coef": 0.0, "ent_coef": 0.0} | changes
    return rpo.Args(**values)


class ToyEnv:
    """s' = tanh(A s + B a), r = -|s'|^2 + 0.3 s'_1 - 0.05 |a|^2; env 0 falls at t = 1, env 3 times out at t = 2."""

    def __init__(self, ends=((1, 0, "terminated"), (2, 3, "truncated")), num_envs=N):
        generator = torch.Generator().manual_seed(0)
        self.state = torch.randn(num_envs, 2, generator=generator)
        self.fresh = torch.randn(H, num_envs, 2, generator=generator)
        self.ends, self.t = ends, 0

    def flags(self, kind, t):
        flags = torch.zeros(len(self.state), dtype=torch.bool)
        flags[[n for when, n, what in self.ends if when == t and what == kind]] = True
        return flags

    def detach(self):
        self.state = self.state.detach()
        return self.state

    def step(self, action):
        final = torch.tanh(self.state @ A.T + action @ B.T)
        reward = -(final**2).sum(-1) + 0.3 * final[:, 0] - 0.05 * (action**2).sum(-1)
        terminated, truncated = self.flags("terminated", self.t), self.flags("truncated", self.t)
        done = terminated | truncated
        self.state = torch.where(done[:, None], self.fresh[self.t], final)
        self.t += 1
        episode = {"r": torch.zeros(len(final)), "l": torch.zeros(len(final))}
        return self.state, reward, terminated, truncated, {"final_obs": final, "episode": episode, "_episode": done}


def value(s):
    return s @ VALUE_WEIGHTS + 0.5 * (s**2).sum(-1)


def critic(s):
    """Two critics that differ, so that it matters how they are joined; their mean is `value`."""
    return torch.stack([value(s) + 0.1 * s[..., 0], value(s) - 0.1 * s[..., 0]], dim=-1)


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
    data, returns, us, _ = rpo.rollout(*rollout_arguments)
    return data | {"action_grads": rpo.action_gradients(returns, us)}


def flatten(data):
    return {name: x.flatten(0, 1) for name, x in data.items()}


def gradient(loss, actor):
    grads = torch.autograd.grad(loss, list(actor.parameters()), allow_unused=True, retain_graph=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(grads, actor.parameters())])


def relative(x, y):
    return ((x - y).norm() / y.norm()).item()


def normalised_entropy(mean, log_std, noise):
    sample = mean + log_std.exp() * noise
    log_prob = torch.distributions.Normal(mean, log_std.exp()).log_prob(sample) - torch.log1p(
        -(torch.tanh(sample) ** 2)
    )
    # the sampled quadratic term in place of its mean, 1/2 per dimension
    entropy = (-log_prob + 0.5 - 0.5 * noise**2).sum(-1)
    return (entropy + 1.0) / 2.0  # A = 2: the target is -1


def brute_force_return(actor, normalizer, ent_coef=0.0, leaf_actions=False, value_of="next"):
    """SHAC / SAPO written out segment by segment: the soft return, the live pre-tanh actions, and the discounted sum of
    entropies with the states as constants.

    Draws its noise in the order of rpo.rollout: first the action's, then the entropy's.
    """
    torch.manual_seed(7)
    env = ToyEnv()
    s = env.state
    rewards, us, values, entropies, direct_entropies = [], [], [], [], []
    for _ in range(H):
        before = s
        mean, log_std = actor(normalizer(s))
        u = mean + log_std.exp() * torch.randn_like(mean)
        if leaf_actions:
            u = u.detach().requires_grad_()
        us.append(u)
        s, reward, terminated, truncated, infos = env.step(torch.tanh(u))
        noise = torch.randn_like(mean)
        entropies.append(normalised_entropy(mean, log_std, noise))
        direct_entropies.append(normalised_entropy(*actor(normalizer(before.detach())), noise))
        rewards.append(reward + ent_coef * entropies[-1])
        values.append(value(normalizer(infos["final_obs"] if value_of == "next" else before)))
    total, direct = 0.0, 0.0
    for n in range(N):
        ends = sorted({t for t, env_id, _ in env.ends if env_id == n} | {H - 1})
        for begin, end in zip([0] + [t + 1 for t in ends], ends):
            for t in range(begin, end + 1):
                total = total + GAMMA ** (t - begin) * rewards[t][n]
                direct = direct + GAMMA ** (t - begin) * direct_entropies[t][n]
            if (end, n, "terminated") not in env.ends:
                total = total + GAMMA ** (end - begin + 1) * values[end][n]
    return total, us, direct


def test_first_epoch_is_the_gradient_of_shac():  # M1
    actor, normalizer = toy_policy()
    args = make_args()
    data = collect(actor, normalizer, args)
    loss, stats = rpo.policy_loss(actor, flatten(data), args)
    total, us, _ = brute_force_return(actor, normalizer)
    direct = gradient(-total / (H * N), actor)
    cached = gradient(loss, actor)
    assert relative(cached, direct) < 1e-10
    assert (stats["ratio"] - 1.0).abs().max() < 1e-12 and stats["keep"].all()
    for cached_grad, live_grad in zip(data["action_grads"], torch.autograd.grad(total, us)):
        assert torch.allclose(cached_grad, live_grad, rtol=1e-10, atol=1e-12)

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


class LinearPolicy(torch.nn.Module):
    """a = -kappa s without noise; the pre-tanh action is what the chain below takes."""

    def __init__(self):
        super().__init__()
        self.kappa = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, s):
        return -self.kappa * s, torch.full_like(s, -60.0)


class ChainEnv:
    """s' = s + u, r = -s'^2 / 2, undoing the tanh of the policy; s0 = 1."""

    def __init__(self):
        self.state = torch.ones(1, 1)

    def detach(self):
        return self.state

    def step(self, action):
        self.state = self.state + torch.atanh(action)
        no = torch.zeros(1, dtype=torch.bool)
        infos = {"final_obs": self.state, "episode": {"r": no.double(), "l": no.double()}, "_episode": no}
        return self.state, -0.5 * self.state[:, 0] ** 2, no, no, infos


class Identity(torch.nn.Module):
    def forward(self, obs):
        return obs

    def update(self, obs):
        pass


@pytest.mark.parametrize(
    "curvature, expected, dkappa", [(0.0, (-0.6125, -0.225), 0.725), (2.0, (-1.0175, -1.035), 1.535)]
)
def test_two_steps_by_hand(curvature, expected, dkappa):  # M1b
    # closed loop, V(s) = -curvature s^2: dR/da_0 contains that a_1 = -kappa s_1 answers to a_0 (open loop: -0.725)
    args = make_args(num_steps=2)
    policy = LinearPolicy()
    data = run(ChainEnv(), policy, lambda s: -curvature * torch.cat([s, s], -1) ** 2, Identity(), args)
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
    assert relative(cached + gradient(-alpha * direct / (H * N), actor), sapo) < 1e-10
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
    assert (stats["ratio"] - 1.0).abs().max() > 0.1
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


def test_kl_term_pulls_back():
    policy = GaussianPolicy(0.3, math.log(0.8))
    data = {"obs": torch.zeros(1, 1), "u": torch.zeros(1, 1), "action_grads": torch.zeros(1, 1)}
    data |= {"mean": torch.zeros(1, 1), "log_std": torch.zeros(1, 1)}
    loss, _ = rpo.policy_loss(policy, data, make_args(kl_coef=1.0))
    mean, log_std = torch.autograd.grad(loss, [policy.mean, policy.log_std])
    assert mean > 0 and log_std < 0  # a descent step moves the mean to 0 and the deviation to 1


class GaussianPolicy(torch.nn.Module):
    def __init__(self, mean, log_std):
        super().__init__()
        self.mean, self.log_std = torch.nn.Parameter(torch.tensor(mean)), torch.nn.Parameter(torch.tensor(log_std))

    def forward(self, obs):
        return self.mean.expand_as(obs), self.log_std.expand_as(obs)


@pytest.mark.parametrize(
    "options, mean, log_std, kept",
    [
        ({"clip_gradient": False}, 0.7, -0.64, None),
        ({"clip_low": 0.8, "clip_high": 1.0}, 0.687102, -0.608852, 0.9642),
        ({"clip_low": 0.2, "clip_high": 0.2}, 0.273105, -0.233932, 0.2919),
    ],
)
def test_reused_gradients_are_unbiased(options, mean, log_std, kept):  # M5, proposition 1
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
    if kept is not None:
        assert abs(stats["keep"].double().mean() - kept) < 2e-3
    naive = (data["action_grads"] * rpo.regenerate(u, *policy(zeros))).mean()  # reuse without the ratio is biased
    assert abs(torch.autograd.grad(naive, policy.mean)[0] - 0.7) > 0.2


def test_clip_interval_is_asymmetric_and_ignores_the_sign():  # M10
    # with sigma = 1 and mu = 0 before, a shift of the mean by m gives rho = exp(m u - m^2 / 2)
    ratios = torch.tensor([[0.199], [0.201], [0.3], [1.0], [1.999], [2.001], [1.0 / 0.3]])
    shift = 0.5
    u = (ratios.log() + 0.5 * shift**2) / shift
    zeros = torch.zeros_like(u)
    for sign in (1.0, -1.0):
        data = {"obs": zeros, "u": u, "action_grads": sign * torch.ones_like(u), "mean": zeros, "log_std": zeros}
        _, stats = rpo.policy_loss(GaussianPolicy(shift, 0.0), data, make_args())
        assert torch.allclose(stats["ratio"], ratios[:, 0])
        assert stats["keep"].tolist() == [False, True, True, True, True, False, False]


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
    data = run(env, actor, lambda s: 1000.0 + 0.0 * torch.cat([s, s], -1)[..., :2], normalizer, make_args())
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
            infos["final_obs"] = torch.where(terminated[:, None], torch.nan, infos["final_obs"])
            return obs, reward, terminated, truncated, infos

    actor, normalizer = toy_policy()
    clean, poisoned = (collect(actor, normalizer, make_args(), env) for env in (ToyEnv(), Poisoned()))
    assert torch.equal(clean["next_values"], poisoned["next_values"])
    others = [1, 2, 3, 4, 5]
    assert torch.equal(clean["action_grads"][:, others], poisoned["action_grads"][:, others])


def test_critics_are_joined_as_asked():
    actor, normalizer = toy_policy()
    mean, least = (collect(actor, normalizer, make_args(critic_agg=agg)) for agg in ("mean", "min"))
    assert torch.equal(mean["action_grads"], least["action_grads"])  # the return uses the mean in both
    difference = (mean["next_values"] - least["next_values"]).flatten()
    assert (difference >= 0).all() and (difference > 1e-3).sum() > 20


def test_first_step_sees_ratio_one_in_float32():  # M13
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(1)
    actor = rpo.Actor(11, 3)
    obs = torch.randn(4096, 11)
    with torch.no_grad():
        mean, log_std = actor(obs)
        u = mean + log_std.exp() * torch.randn_like(mean)
    data = {"obs": obs, "u": u, "mean": mean, "log_std": log_std, "action_grads": torch.randn_like(u)}
    _, stats = rpo.policy_loss(actor, data, make_args())
    assert (stats["ratio"] - 1.0).abs().max() < 1e-3


def test_no_gradient_crosses_from_one_rollout_to_the_next():  # M16
    actor, normalizer = toy_policy()
    env = ToyEnv(ends=())
    torch.manual_seed(7)
    run(env, actor, critic, copy.deepcopy(normalizer), make_args())
    assert env.state.requires_grad
    fresh = ToyEnv(ends=())
    fresh.state = env.state.detach().clone()
    grads = []
    for second in (env, fresh):
        second.t = 0
        grads.append(collect(actor, normalizer, make_args(), second)["action_grads"])
    assert torch.equal(*grads)


def test_normalizer_is_the_mean_and_variance_of_everything_seen():
    torch.manual_seed(0)
    normalizer = rpo.ObsNormalizer(3)
    batches = [torch.randn(50, 3) * 2.0 + 1.0 for _ in range(4)]
    for batch in batches:
        normalizer.update(batch)
    everything = torch.cat(batches)
    assert normalizer.count == 201  # it starts from one imaginary observation 0 with variance 1
    assert torch.allclose(normalizer.mean, everything.sum(0) / 201)
    assert torch.allclose(normalizer.var, everything.var(0), rtol=0.03)
    scaled = normalizer(everything)
    assert scaled.mean(0).abs().max() < 0.05 and (scaled.std(0) - 1.0).abs().max() < 0.05


def test_rollout_normalises_with_statistics_from_before_it():
    actor, normalizer = toy_policy()
    live = copy.deepcopy(normalizer)
    torch.manual_seed(7)
    data = run(ToyEnv(), actor, critic, live, make_args())
    assert torch.equal(data["obs"][0], normalizer(ToyEnv().state))
    assert live.count == normalizer.count + (H + 1) * N


def test_optimizer_skips_gradients_that_are_not_finite_and_gives_up():
    module = torch.nn.Linear(2, 1)
    optimizer = rpo.Optimizer("actor", module, 1e-2, 0.5)
    before = copy.deepcopy(module.state_dict())
    for _ in range(9):
        assert math.isnan(optimizer.step(module(torch.full((1, 2), torch.nan)).sum()))
    assert all(torch.equal(before[name], x) for name, x in module.state_dict().items())
    assert optimizer.step(module(torch.ones(1, 2)).sum()) > 0.5 and optimizer.skipped == 9
    assert any(not torch.equal(before[name], x) for name, x in module.state_dict().items())
    with pytest.raises(rpo.TrainingFailed, match="actor"):
        for _ in range(10):
            optimizer.step(module(torch.full((1, 2), torch.nan)).sum())
