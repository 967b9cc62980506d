"""The toy of docs/pathwise.md: its estimators against the exact gradient."""

import pytest
import torch

from docs import pathwise as toy


@pytest.mark.parametrize("distance", (0.0, 0.5))
@pytest.mark.parametrize("estimator", [estimator for estimator, _ in toy.ESTIMATORS.values()])
def test_every_estimator_is_right_on_average(estimator, distance):
    mu = torch.tensor([0.3, 0.5])
    old_mu = mu - distance * toy.SIGMA
    a = old_mu + toy.SIGMA * torch.randn(20_000, 64, 2, generator=torch.Generator().manual_seed(1))
    estimates = estimator(a, mu, old_mu)
    error = estimates.mean(0) - toy.true_gradient(mu)
    assert (error.abs() < 4.0 * estimates.std(0) / 20_000**0.5).all()  # four standard errors


def test_the_gradient_of_q_is_that_of_autograd():
    a = torch.randn(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    assert torch.allclose(toy.grad_q(a), torch.autograd.grad(toy.q(a).sum(), a)[0])


def test_the_best_mean_is_in_closed_form():
    # y = x^2 + s^2 and 1 - x = 8 s^2 x
    x = 1.0 / (1.0 + 8.0 * toy.SIGMA**2)
    assert toy.best_mean().tolist() == pytest.approx([x, x**2 + toy.SIGMA**2], abs=1e-4)


def test_the_noise_is_as_the_page_says():
    at = {
        name: [toy.deviation(f, distance, 2_000) for distance in (0.0, 1.0)] for name, (f, _) in toy.ESTIMATORS.items()
    }
    score, reused, fresh = at.values()
    assert 0.25 < reused[0] / score[0] < 0.4  # a third
    assert reused[1] < score[0]  # RPO one sigma away is below where PPO begins
    assert fresh[0] == pytest.approx(fresh[1], rel=0.1) and reused[1] > 2.0 * reused[0] and score[1] > 2.0 * score[0]


def test_the_paths_of_the_pathwise_gradients_are_the_straighter_ones():
    def length(estimator):
        paths = [toy.ascend(estimator, seed) for seed in range(3)]
        return sum((path[1:] - path[:-1]).norm(dim=1).sum().item() for path in paths)

    score, reused, fresh = (length(estimator) for estimator, _ in toy.ESTIMATORS.values())
    assert fresh < score and reused < score
    assert all((toy.ascend(f, 0)[-1] - toy.best_mean()).norm() < 0.4 for f in (toy.pathwise_reused, toy.pathwise_fresh))
