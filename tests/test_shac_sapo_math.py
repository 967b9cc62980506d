"""shac_continuous.py and sapo_continuous.py on toys with known answers, and against RPO where they agree; float64."""

import copy
import math

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
import sapo_continuous as sapo
import shac_continuous as shac

ALPHA = 0.3


pytestmark = pytest.mark.usefixtures("float64")


def make_args(script, **changes):
    return script.Args(**{"num_steps": H, "gamma": GAMMA} | changes)


def toy_policy(script):
    torch.manual_seed(1)
    actor, normalizer = script.Actor(2, 2), script.ObsNormalizer(2)
    normalizer.mean, normalizer.var = torch.tensor([0.125, -0.25]), torch.tensor([0.5, 2.0])
    return actor, normalizer


def collect(script, actor, normalizer, env=None, critic=critic, **changes):
    """The rollout of a script with the noise of brute_force_return; SAPO's at temperature ALPHA."""
    torch.manual_seed(7)
    alpha = [ALPHA] if script is sapo else []
    return script.rollout(
        env or ToyEnv(), actor, critic, copy.deepcopy(normalizer), *alpha, make_args(script, **changes)
    )


@pytest.mark.parametrize("script, options", ((shac, {"draws_entropy": False}), (sapo, {"ent_coef": ALPHA})))
def test_policy_gradient_is_that_of_the_return(script, options):
    actor, normalizer = toy_policy(script)
    _, returns, _ = collect(script, actor, normalizer)
    ours = gradient(script.policy_loss(returns, make_args(script)), actor)
    total, _, _ = brute_force_return(actor, normalizer, **options)
    assert relative(ours, gradient(-total / (H * N), actor)) < 1e-12
    # a bootstrap from the state before the step, the known defect of the reference implementation, is far off
    wrong, _, _ = brute_force_return(actor, normalizer, value_of="current", **options)
    assert relative(gradient(-wrong / (H * N), actor), ours) > 1e-2


def test_rpo_with_one_epoch_is_shac(monkeypatch):  # M1
    monkeypatch.setattr(rpo, "squashed_entropy", lambda mean, log_std: 0.0 * mean.sum(-1))  # draws no noise, like SHAC
    actor, normalizer = toy_policy(shac)
    _, returns, _ = collect(shac, actor, normalizer)
    args = make_args(rpo, kl_coef=0.0, ent_coef=0.0)
    torch.manual_seed(7)
    data, rpo_returns, us = rpo.rollout(ToyEnv(), actor, critic, copy.deepcopy(normalizer), args)
    data["action_grads"] = rpo.action_gradients(rpo_returns, us)
    loss, _ = rpo.policy_loss(actor, flatten(data), args)
    assert torch.equal(returns, rpo_returns)
    assert relative(gradient(loss, actor), gradient(shac.policy_loss(returns, args), actor)) < 1e-12


def test_rpo_with_discounted_entropy_is_sapo():  # M2
    actor, normalizer = toy_policy(sapo)
    data, returns, _ = collect(sapo, actor, normalizer)
    args = make_args(rpo, kl_coef=0.0, ent_coef=ALPHA)
    torch.manual_seed(7)
    rpo_data, rpo_returns, us = rpo.rollout(ToyEnv(), actor, critic, copy.deepcopy(normalizer), args)
    rpo_data["action_grads"] = rpo.action_gradients(rpo_returns, us)
    args.ent_coef = 0.0  # the direct term, discounted, comes from the brute force instead of the plain mean
    cached = gradient(rpo.policy_loss(actor, flatten(rpo_data), args)[0], actor)
    _, _, direct = brute_force_return(actor, normalizer, ent_coef=ALPHA)
    whole = gradient(sapo.policy_loss(returns, args), actor)
    assert relative(cached + gradient(-ALPHA * direct / (H * N), actor), whole) < 1e-12
    assert relative(cached, whole) > 0.05
    assert torch.allclose(data["rewards"] + ALPHA * data["entropies"], rpo_data["rewards"])


@pytest.mark.parametrize(
    "curvature, expected, dkappa", [(0.0, (-0.6125, -0.225), 0.725), (2.0, (-1.0175, -1.035), 1.535)]
)
def test_two_steps_by_hand(curvature, expected, dkappa):  # M1b, V(s) = -curvature s^2
    policy = LinearPolicy()
    args = make_args(shac, num_steps=2)
    _, returns, action_grads = shac.rollout(
        ChainEnv(), policy, lambda s: -curvature * torch.cat([s, s], -1) ** 2, torch.nn.Identity(), args
    )
    loss = shac.policy_loss(returns, args)
    loss.backward(inputs=[policy.kappa])
    # the loss is minus the return over 2 steps; the backward pass meets the last action first
    assert -2.0 * policy.kappa.grad.item() == pytest.approx(dkappa, abs=1e-9)
    assert [-2.0 * grad.item() for grad in action_grads[::-1]] == pytest.approx(expected, abs=1e-9)


class Poisoned(ToyEnv):
    """With `factor` in place of the gradient that reaches the third action of environment 2 through the simulator."""

    def __init__(self, factor):
        super().__init__()
        self.factor = torch.ones(N, 1)
        self.factor[2] = factor

    def step(self, action):
        if self.t == 2:
            action.register_hook(lambda grad: grad * self.factor)
        return super().step(action)


@pytest.mark.parametrize("script", (shac, sapo))
def test_a_gradient_that_is_not_finite_stops_at_its_action(script):
    actor, normalizer = toy_policy(script)
    expected = None
    for factor in (1e-300, math.nan, math.inf):
        _, returns, action_grads = collect(script, actor, normalizer, Poisoned(factor))
        loss = script.policy_loss(returns, make_args(script))
        grads = gradient(loss, actor)
        expected = grads if expected is None else expected
        assert torch.allclose(grads, expected, rtol=1e-12, atol=0.0)
        rows = torch.stack(action_grads)  # as they came, the last action first
        finite = torch.ones(H, N, dtype=torch.bool)
        finite[H - 1 - 2, 2] = math.isfinite(factor)
        assert torch.equal(rows.isfinite().all(-1), finite)


@pytest.mark.parametrize("script", (shac, sapo))
def test_a_final_observation_that_is_not_finite_poisons_nothing_after_a_fall(script):
    class Fallen(ToyEnv):
        def step(self, action):
            *result, infos = super().step(action)
            infos["final_obs"] = infos["final_obs"] + torch.where(result[2][:, None], torch.nan, 0.0)
            return *result, infos

    actor, normalizer = toy_policy(script)
    clean, poisoned = (collect(script, actor, normalizer, env) for env in (ToyEnv(), Fallen()))
    assert torch.equal(clean[0]["next_values"], poisoned[0]["next_values"]) and torch.equal(clean[1], poisoned[1])
    clean, poisoned = (gradient(script.policy_loss(x[1], make_args(script)), actor) for x in (clean, poisoned))
    assert relative(poisoned, clean) < 1e-12


@pytest.mark.parametrize("script", (shac, sapo))
def test_the_limit_of_the_action_gradient_is_that_of_the_return(script, monkeypatch):
    # the chain by hand, without SAPO's entropy: both rows, -0.6125 and -0.225, are cut to 0.1 before they go on
    monkeypatch.setattr(sapo, "squashed_entropy", lambda mean, log_std: 0.0 * mean.sum(-1))
    policy = LinearPolicy()
    # N is that of the rollout, which under torchrun is a share of --num-envs
    args = make_args(script, num_steps=2, num_envs=999, max_action_grad_norm=0.1)
    alpha = [ALPHA] if script is sapo else []
    constant = lambda s: torch.zeros(len(s), 2)  # noqa: E731
    _, returns, _ = script.rollout(ChainEnv(), policy, constant, torch.nn.Identity(), *alpha, args)
    script.policy_loss(returns, args).backward(inputs=[policy.kappa])
    # sum_t (du_t / dkappa) grad_t = 1 * 0.1 + 0.5 * 0.1, and the loss is minus the return over 2 steps
    assert -2.0 * policy.kappa.grad.item() == pytest.approx(0.15, abs=1e-9)


@pytest.mark.parametrize("script", (shac, sapo))
def test_the_smaller_critic_is_the_target_and_their_mean_the_return(script):
    actor, normalizer = toy_policy(script)
    apart = lambda s: torch.stack([value(s) + 2.0, value(s) - 2.0], dim=-1)  # noqa: E731
    data, returns, _ = collect(script, actor, normalizer, critic=apart)
    plain, plain_returns, _ = collect(script, actor, normalizer, critic=lambda s: torch.stack(2 * [value(s)], dim=-1))
    assert torch.allclose(returns, plain_returns)
    fallen = data["terminated"]
    assert torch.allclose(data["next_values"], torch.where(fallen, 0.0, plain["next_values"] - 2.0))
    assert fallen.sum() == 1 and fallen[1, 0]


def test_temperature_moves_against_the_distance_of_the_entropy_from_its_target():  # M14
    # A = 8, so the target is -4; H = -2 is h = (H + 4) / 8 = 0.25: d loss / d log alpha = alpha |H_bar| (H - H_bar) = 8
    for alpha, h, slope in ((1.0, 0.25, 8.0), (0.5, 0.25, 4.0), (1.0, -0.25, -8.0), (1.0, 0.0, 0.0)):
        temperature = sapo.Temperature(alpha)
        assert temperature().item() == pytest.approx(alpha)
        loss = sapo.temperature_loss(temperature(), torch.full((3, 5), h), num_actions=8)
        (grad,) = torch.autograd.grad(loss, temperature.log_alpha)
        assert grad.item() == pytest.approx(slope)
    temperature = sapo.Temperature(1.0)
    optimizer = torch.optim.AdamW(temperature.parameters(), lr=5e-3)
    sapo.temperature_loss(temperature(), torch.tensor([0.25]), 8).backward()
    optimizer.step()
    assert temperature().item() < 1.0


def test_entropy_is_scaled_by_its_target():  # M8
    # almost no noise around u = 0, where tanh is the identity: E = A (log sigma + (1 + log 2 pi) / 2), and h is
    # (E + A/2) / A
    for per_dimension, scaled in ((-4.5, -4.0), (-6.5, -6.0)):
        log_std = torch.full((1, 8), per_dimension - 0.5 * (1.0 + math.log(2.0 * math.pi)))
        entropy = sapo.squashed_entropy(torch.zeros(1, 8), log_std)
        assert entropy.item() == pytest.approx(scaled, abs=1e-3)
