"""Score-function against pathwise gradients of a Gaussian policy on a known function: `python docs/pathwise.py`.

Explained in docs/pathwise.md; writes docs/pathwise.png beside it. Everything is two-dimensional: the action a, the mean
mu of the policy N(mu, SIGMA^2 I), and the function Q(a), whose expectation under the policy is to be raised.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch

SIGMA, NUM_SAMPLES, LEARNING_RATE, NUM_STEPS, REUSE = 0.3, 16, 0.02, 150, 5


def q(a):
    """A curved ridge with its top, 0, at (1, 1): Q(x, y) = -(1 - x)^2 - 2 (y - x^2)^2."""
    x, y = a.unbind(-1)
    return -((1.0 - x) ** 2) - 2.0 * (y - x**2) ** 2


def grad_q(a):
    x, y = a.unbind(-1)
    return torch.stack([2.0 * (1.0 - x) + 8.0 * x * (y - x**2), -4.0 * (y - x**2)], dim=-1)


def true_gradient(mu):
    """d/dmu E[Q(mu + SIGMA eps)], from the Gaussian moments E[x^2] = mu^2 + s^2, E[x^3] = mu^3 + 3 mu s^2."""
    (x, y), s2 = mu.unbind(-1), SIGMA**2
    return torch.stack([2.0 * (1.0 - x) + 8.0 * (x * y - x**3 - 3.0 * x * s2), -4.0 * (y - x**2 - s2)], dim=-1)


def ratio(a, mu, old_mu):
    """rho = pi_mu(a) / pi_old(a) of samples a of the old policy."""
    return ((((a - old_mu) ** 2).sum(-1) - ((a - mu) ** 2).sum(-1)) / (2.0 * SIGMA**2)).exp()


def score_function(a, mu, old_mu):
    """(..., n, 2) samples of the old policy -> (..., 2): mean of rho (Q(a) - b) grad_mu log pi(a).

    b is the mean of Q over the other samples; with its own sample in it the estimate would be too small by 1/n.
    """
    n = a.shape[-2]
    weight = ratio(a, mu, old_mu) * (q(a) - q(a).mean(-1, keepdim=True)) * n / (n - 1)
    return (weight[..., None] * (a - mu) / SIGMA**2).mean(-2)


def pathwise_reused(a, mu, old_mu):
    """The same from cached gradients, as in RPO: mean of rho grad Q(a); the path a = mu + SIGMA eps_reg has slope 1."""
    return (ratio(a, mu, old_mu)[..., None] * grad_q(a)).mean(-2)


def pathwise_fresh(a, mu, old_mu):
    """What a learned Q allows, as in REPPO: actions of the current policy itself, here from the same noise."""
    return grad_q(a - old_mu + mu).mean(-2)


ESTIMATORS = {
    "score function, reused (PPO)": (score_function, "C4"),
    "pathwise, reused (RPO)": (pathwise_reused, "C0"),
    "pathwise, fresh actions (REPPO)": (pathwise_fresh, "C3"),
}


def ascend(estimator, seed, reuse=REUSE):
    """The path of mu (NUM_STEPS + 1, 2): `reuse` steps of gradient ascent on each set of samples."""
    generator = torch.Generator().manual_seed(seed)
    path = [torch.tensor([-1.2, 1.2])]
    for step in range(NUM_STEPS):
        if step % reuse == 0:
            old_mu = path[-1]
            a = old_mu + SIGMA * torch.randn(NUM_SAMPLES, 2, generator=generator)
        path.append(path[-1] + LEARNING_RATE * estimator(a, path[-1], old_mu))
    return torch.stack(path)


def best_mean():
    """Where the true gradient ends: not at the top of Q, because a policy with noise keeps off the steep side."""
    mu = torch.zeros(2)
    for _ in range(2000):
        mu = mu + LEARNING_RATE * true_gradient(mu)
    return mu


def deviation(estimator, distance, num_sets=20_000):
    """Root of the summed variance of an estimate from NUM_SAMPLES samples of a policy `distance` sigmas away."""
    generator = torch.Generator().manual_seed(0)
    mu = torch.tensor([0.0, 0.5])
    old_mu = mu - distance * SIGMA * torch.tensor([1.0, 0.0])
    a = old_mu + SIGMA * torch.randn(num_sets, NUM_SAMPLES, 2, generator=generator)
    return estimator(a, mu, old_mu).var(0).sum().sqrt().item()


def main():
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    x, y = torch.meshgrid(torch.linspace(-1.6, 1.6, 100), torch.linspace(-0.5, 1.9, 100), indexing="xy")
    axes[0].contour(x, y, -(-q(torch.stack([x, y], dim=-1))).log1p(), levels=12, colors="lightgray", linewidths=0.8)
    distances = torch.linspace(0.0, 1.5, 7).tolist()
    for name, (estimator, color) in ESTIMATORS.items():
        for seed in range(5):
            path = ascend(estimator, seed)
            axes[0].plot(*path.T, color, linewidth=0.9, alpha=0.8, label=name if seed == 0 else None)
        axes[1].plot(
            distances, [deviation(estimator, distance) for distance in distances], color, marker="o", label=name
        )
    axes[0].plot(*best_mean(), "k*", markersize=10, label="best mean", zorder=3)
    axes[0].set(
        title=f"five paths of the mean, {NUM_SAMPLES} samples for {REUSE} steps", xlabel="$a_1$", ylabel="$a_2$"
    )
    axes[0].set(xlim=(-1.6, 1.6), ylim=(-0.5, 1.9))
    axes[1].set(title="noise of the gradient", xlabel="distance of the policy from its samples [sigma]", yscale="log")
    axes[1].set(ylabel=f"standard deviation, {NUM_SAMPLES} samples")
    for ax in axes:
        ax.legend(fontsize=8)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
