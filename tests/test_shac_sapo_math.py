"""shac_continuous.py and sapo_continuous.py on toys with known answers, and against RPO where they agree; float64."""

import copy
import math

import pytest
import torch
from toy_mdp import (
    GAMMA,
    ChainEnv,
    H,
    Identity,
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
    _, returns, _, _ = collect(script, actor, normalizer)
    ours = gradient(script.policy_loss(returns, make_args(script)), actor)
    total, _, _ = brute_force_return(actor, normalizer, **options)
    assert relative(ours, gradient(-total / (H * N), actor)) < 1e-12
    # a bootstrap from the state before the step, the known defect of the reference implementation, is far off
    wrong, _, _ = brute_force_return(actor, normalizer, value_of="current", **options)
    assert relative(gradient(-wrong / (H * N), actor), ours) > 1e-2


def test_rpo_with_one_epoch_is_shac(monkeypatch):  # M1
    monkeypatch.setattr(rpo, "squashed_entropy", lambda mean, log_std: 0.0 * mean.sum(-1))  # draws no noise, like SHAC
    actor, normalizer = toy_policy(shac)
    _, returns, _, _ = collect(shac, actor, normalizer)
    args = make_args(rpo, kl_coef=0.0, ent_coef=0.0)
    torch.manual_seed(7)
    data, rpo_returns, us, _ = rpo.rollout(ToyEnv(), actor, critic, copy.deepcopy(normalizer), args)
    data["action_grads"] = rpo.action_gradients(rpo_returns, us)
    loss, _ = rpo.policy_loss(actor, flatten(data), args)
    assert torch.equal(returns, rpo_returns)
    assert relative(gradient(loss, actor), gradient(shac.policy_loss(returns, args), actor)) < 1e-12


def test_rpo_with_discounted_entropy_is_sapo():  # M2
    actor, normalizer = toy_policy(sapo)
    data, returns, _, _ = collect(sapo, actor, normalizer)
    args = make_args(rpo, kl_coef=0.0, ent_coef=ALPHA)
    torch.manual_seed(7)
    rpo_data, rpo_returns, us, _ = rpo.rollout(ToyEnv(), actor, critic, copy.deepcopy(normalizer), args)
    rpo_data["action_grads"] = rpo.action_gradients(rpo_returns, us)
    args.ent_coef = 0.0  # the direct term, discounted, comes from the brute force instead of the plain mean
    cached = gradient(rpo.policy_loss(actor, flatten(rpo_data), args)[0], actor)
    _, _, direct = brute_force_return(actor, normalizer, ent_coef=ALPHA)
    whole = gradient(sapo.policy_loss(returns, args), actor)
    assert relative(cached + gradient(-ALPHA * direct / (H * N), actor), whole) < 1e-12
    assert relative(cached, whole) > 0.05
    assert torch.allclose(data["rewards"] + ALPHA * data["entropies"], rpo_data["soft_rewards"])


@pytest.mark.parametrize(
    "curvature, expected, dkappa", [(0.0, (-0.6125, -0.225), 0.725), (2.0, (-1.0175, -1.035), 1.535)]
)
def test_two_steps_by_hand(curvature, expected, dkappa):  # M1b, V(s) = -curvature s^2
    policy = LinearPolicy()
    args = make_args(shac, num_steps=2)
    _, returns, action_grads, _ = shac.rollout(
        ChainEnv(), policy, lambda s: -curvature * torch.cat([s, s], -1) ** 2, Identity(), args
    )
    loss = shac.policy_loss(returns, args)
    loss.backward(inputs=[policy.kappa])
    # the loss is minus the return over 2 steps; the backward pass meets the last action first
    assert -2.0 * policy.kappa.grad.item() == pytest.approx(dkappa, abs=1e-9)
    assert [-2.0 * grad.item() for grad in action_grads[::-1]] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("script", (shac, sapo))
def test_a_gradient_that_is_not_finite_stops_at_its_action(script):
    u = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    noted = []
    watched = u * 1.0
    script.watch(watched, noted)
    (watched * torch.tensor([[1.0, torch.nan], [5.0, 6.0]])).sum().backward()
    assert u.grad.tolist() == [[0.0, 0.0], [5.0, 6.0]]
    assert noted[0].isnan().tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize("script", (shac, sapo))
def test_long_rows_of_the_action_gradient_are_shortened(script):
    u = torch.zeros(4, 2, requires_grad=True)
    grads = torch.tensor([[3.0, 4.0], [30.0, -40.0], [0.0, 0.0], [torch.inf, 1.0]])
    for limit, shortened in ((5.0, [3.0, -4.0]), (math.inf, [30.0, -40.0])):
        noted = []
        watched = u * 1.0
        script.watch(watched, noted, limit)
        (grad,) = torch.autograd.grad((watched * grads).sum(), u)
        assert grad.tolist() == [[3.0, 4.0], shortened, [0.0, 0.0], [0.0, 0.0]]
        assert noted[0][:3].equal(grad[:3]) and not noted[0][3].isfinite().all()
    # the square of this length overflows: without a limit it is left alone all the same
    watched = u * 1.0
    script.watch(watched, [])
    assert torch.autograd.grad((watched * 1e30).sum(), u)[0].equal(torch.full((4, 2), 1e30))


@pytest.mark.parametrize("script", (shac, sapo))
def test_the_limit_of_the_action_gradient_is_that_of_the_return(script):
    actor, normalizer = toy_policy(script)
    rows = {}
    for limit in (None, 1e-4):
        # N is that of the rollout, which under torchrun is a share of --num-envs
        _, returns, action_grads, _ = collect(script, actor, normalizer, max_action_grad_norm=limit, num_envs=999)
        script.policy_loss(returns, make_args(script)).backward()
        rows[limit] = torch.stack(action_grads) * len(action_grads) * len(returns)
    assert (rows[None].norm(dim=-1) > 1e-3).all()
    assert rows[1e-4].norm(dim=-1) == pytest.approx(1e-4, rel=1e-5)


@pytest.mark.parametrize("script", (shac, sapo))
def test_the_smaller_critic_is_the_target_and_their_mean_the_return(script):
    actor, normalizer = toy_policy(script)
    data, returns, _, _ = collect(script, actor, normalizer)
    shifted, shifted_returns, _, _ = collect(
        script, actor, normalizer, critic=lambda s: torch.stack([value(s) + 2.0, value(s) - 2.0], dim=-1)
    )
    assert torch.allclose(returns, shifted_returns)
    alive = data["td_values"] != 0.0
    mean = collect(script, actor, normalizer, critic_agg="mean")[0]["td_values"]
    assert torch.allclose(shifted["td_values"][alive], mean[alive] - 2.0)
    # env 0 falls at t = 1: no value there
    assert data["td_values"][1, 0] == 0.0 and (~alive).sum() == 1


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
    sapo.clipped_step(optimizer, 0.5)
    assert temperature().item() < 1.0


def test_entropy_is_scaled_by_its_target():  # M8
    # almost no noise around u = 0, where tanh is the identity: E = A (log sigma + (1 + log 2 pi) / 2), and h is
    # (E + A/2) / A
    for per_dimension, scaled in ((-4.5, -4.0), (-6.5, -6.0)):
        log_std = torch.full((1, 8), per_dimension - 0.5 * (1.0 + math.log(2.0 * math.pi)))
        entropy = sapo.squashed_entropy(torch.zeros(1, 8), log_std)
        assert entropy.item() == pytest.approx(scaled, abs=1e-3)


def test_the_three_scripts_share_their_networks_and_their_critic_targets():
    for script in (shac, sapo):
        for name in ("Actor", "Critic", "ObsNormalizer"):
            torch.manual_seed(0)
            ours = getattr(script, name)(*(5, 2) if name == "Actor" else (5,))
            torch.manual_seed(0)
            theirs = getattr(rpo, name)(*(5, 2) if name == "Actor" else (5,))
            assert ours.state_dict().keys() == theirs.state_dict().keys()
            assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()))
            x = 20.0 * torch.randn(4, 5)  # so far out that log sigma is clamped
            if name == "ObsNormalizer":
                ours.update(x)
                theirs.update(x)
            assert all(torch.equal(a, b) for a, b in zip(ours(x), theirs(x)))
        x = torch.randn(4, 3)
        ends = torch.tensor([[False, True, False]] * 3 + [[True] * 3])
        ours, theirs = (module.td_lambda_targets(x, x + 1.0, ends, 0.9, 0.8) for module in (script, rpo))
        assert torch.equal(ours, theirs)
