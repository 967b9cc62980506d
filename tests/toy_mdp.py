"""Toys with known answers: a small MDP, a chain to compute by hand, and SHAC and SAPO by brute force.

Everything is float64 where torch's default is; the noise is drawn in the order of the scripts' rollout().
"""

import torch

H, N, GAMMA = 5, 6, 0.9
A = torch.tensor([[0.9, 0.1], [-0.2, 1.05]], dtype=torch.float64)
B = torch.tensor([[0.0, 0.3], [0.5, -0.1]], dtype=torch.float64)
VALUE_WEIGHTS = torch.tensor([0.7, -1.1], dtype=torch.float64)


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
        final = torch.tanh(self.state @ A.T.to(action) + action @ B.T.to(action))
        reward = -(final**2).sum(-1) + 0.3 * final[:, 0] - 0.05 * (action**2).sum(-1)
        terminated, truncated = self.flags("terminated", self.t), self.flags("truncated", self.t)
        done = terminated | truncated
        self.state = torch.where(done[:, None], self.fresh[self.t], final)
        self.t += 1
        episode = {"r": torch.zeros(len(final)), "l": torch.zeros(len(final))}
        return self.state, reward, terminated, truncated, {"final_obs": final, "episode": episode, "_episode": done}


def value(s):
    return s @ VALUE_WEIGHTS.to(s) + 0.5 * (s**2).sum(-1)


def critic(s):
    """Two critics that differ, so that it matters how they are joined; their mean is `value`."""
    return torch.stack([value(s) + 0.1 * s[..., 0], value(s) - 0.1 * s[..., 0]], dim=-1)


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


def brute_force_return(
    actor, normalizer, ent_coef=0.0, leaf_actions=False, value_of="next", draws_entropy=True, critic=critic
):
    """SHAC / SAPO written out segment by segment: the soft return, the live pre-tanh actions, and the discounted sum of
    entropies with the states as constants.

    Draws its noise in the order of the rollouts of RPO and SAPO: first the action's, then the entropy's.  SHAC has only
    the first.
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
        noise = torch.randn_like(mean) if draws_entropy else torch.zeros_like(mean)
        entropies.append(normalised_entropy(mean, log_std, noise))
        direct_entropies.append(normalised_entropy(*actor(normalizer(before.detach())), noise))
        rewards.append(reward + ent_coef * entropies[-1])
        values.append(critic(normalizer(infos["final_obs"] if value_of == "next" else before)).mean(-1))
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
