"""The algorithm of fasttd3_continuous.py on numbers with known answers; float64 unless said otherwise."""

import math

import pytest
import torch
from toy_mdp import A as STATE_MATRIX
from toy_mdp import B as ACTION_MATRIX
from toy_mdp import H, N, ToyEnv

import fasttd3_continuous as fasttd3

pytestmark = pytest.mark.usefixtures("float64")

ATOMS = [-2.0, -1.0, 0.0, 1.0, 2.0]
P = [0.1, 0.2, 0.4, 0.2, 0.1]


def project(probs, reward, discount, atoms=ATOMS):
    args = (torch.tensor([reward]), torch.tensor([discount]), torch.tensor(atoms))
    return fasttd3.project(torch.tensor([probs]), *args)[0]


def approx(values):
    return pytest.approx(values, abs=1e-12)


# the projection
@pytest.mark.parametrize(
    "probs, reward, discount, expected, mean",
    [
        (P, 0.5, 0.9, [0.03, 0.15, 0.32, 0.32, 0.18], 0.47),  # 0.5 without clipping: 2.3 is cut to 2
        ([0.0, 0.1, 0.2, 0.3, 0.4], 0.5, 0.9, [0.0, 0.04, 0.16, 0.28, 0.52], 1.28),
        (P, -2.3, 0.9, [0.78, 0.17, 0.05, 0.0, 0.0], -1.73),
        (P, 0.5, 0.0, [0.0, 0.0, 0.5, 0.5, 0.0], 0.5),  # a fall
        (P, 1.0, 0.0, [0.0, 0.0, 0.0, 1.0, 0.0], 1.0),  # on an atom
        (P, 5.0, 0.0, [0.0, 0.0, 0.0, 0.0, 1.0], 2.0),
        (P, -5.0, 0.0, [1.0, 0.0, 0.0, 0.0, 0.0], -2.0),
    ],
)
def test_projection_by_hand(probs, reward, discount, expected, mean):
    projected = project(probs, reward, discount)
    assert projected.tolist() == approx(expected) and projected.sum().item() == approx(1.0)
    assert (projected @ torch.tensor(ATOMS)).item() == approx(mean)


def test_projection_keeps_mass_and_mean():
    torch.manual_seed(0)
    atoms, probs = torch.linspace(-200.0, 200.0, 251), torch.rand(500, 2, 251).softmax(-1)
    probs[:, 0] = torch.softmax(-((atoms - 40.0 * torch.randn(500, 1)) ** 2) / 100.0, -1)  # narrow ones, too
    rewards, discount = 20.0 * torch.randn(500), torch.rand(500)
    projected = fasttd3.project(probs, rewards, discount, atoms)
    assert projected.min() >= 0.0 and (projected.sum(-1) - 1.0).abs().max() < 1e-12
    inside = ((rewards[:, None] + discount[:, None] * atoms).abs() <= 200.0).all(-1)
    expected = rewards[:, None] + discount[:, None] * (probs @ atoms)
    assert 300 < inside.sum() < 500
    assert ((projected @ atoms) - expected)[inside].abs().max() < 1e-9


def test_what_falls_on_an_atom_stays_there():
    probs = torch.zeros(101)
    probs[70] = 1.0  # the atom 100
    projected = project(probs.tolist(), 1.0, 0.99, torch.linspace(-250.0, 250.0, 101).tolist())
    assert projected[70].item() == approx(1.0)


# targets
class Fixed(torch.nn.Module):
    """A critic with the same two distributions everywhere, which notes the actions that it is asked about."""

    def __init__(self, *probs):
        super().__init__()
        self.logits, self.atoms = torch.tensor(probs).log(), torch.tensor(ATOMS)

    def forward(self, obs, action):
        self.action = action
        return self.logits.expand(len(obs), 2, -1)


A, B = [0.2, 0.3, 0.3, 0.1, 0.1], [0.5, 0.0, 0.0, 0.0, 0.5]


def batch_of(rewards, discount, terminated):
    obs = torch.arange(2.0 * len(rewards)).reshape(-1, 2)
    batch = {"rewards": torch.tensor(rewards), "discount": torch.tensor(discount), "next_obs": obs}
    return batch | {"terminated": torch.tensor(terminated)}


@pytest.mark.parametrize("critics", [(A, B), (B, A)])
def test_the_whole_distribution_of_the_critic_with_the_smaller_mean_is_the_target(critics):
    batch = batch_of([0.5, 0.5, 2.0], [0.9, 0.9, 0.9], [False, True, False])
    targets = fasttd3.target_distribution(fasttd3.Actor(2, 3), Fixed(*critics), batch, fasttd3.Args())
    assert targets[0].tolist() == approx([0.06, 0.26, 0.33, 0.21, 0.14])  # mean 0.11; the other has 0.35
    assert targets[1].tolist() == approx([0.0, 0.0, 0.5, 0.5, 0.0])  # only the rewards of a fall
    # what comes after a fall, or is missing there, does not count
    batch["next_obs"][1] = torch.nan
    again = fasttd3.target_distribution(fasttd3.Actor(2, 3), fasttd3.Critic(2, 3, -2.0, 2.0, 5), batch, fasttd3.Args())
    assert again[1].tolist() == approx([0.0, 0.0, 0.5, 0.5, 0.0]) and again.isfinite().all()
    # clipping turns the order around: the means after the projection decide, and B has the smaller one
    assert targets[2].tolist() == approx(project(B, 2.0, 0.9).tolist())


def test_actions_of_the_targets_are_blurred_within_limits():
    torch.manual_seed(0)
    actor, critic = fasttd3.Actor(2, 3), Fixed(A, B)
    batch = batch_of([0.0] * 5000, [0.9] * 5000, [False] * 5000)
    batch["next_obs"] = torch.randn(5000, 2)
    means = actor(batch["next_obs"])
    targets = fasttd3.target_distribution(actor, critic, batch, fasttd3.Args())
    assert (critic.action - means).std().item() == pytest.approx(0.1, rel=0.05) and not targets.requires_grad
    fasttd3.target_distribution(actor, critic, batch, fasttd3.Args(target_noise=10.0, target_noise_clip=0.3))
    blur = critic.action - means
    assert blur.abs().max().item() == approx(0.3) and (blur.abs() < 0.29).double().mean() < 0.05
    with torch.no_grad():
        actor.network[-1].bias.fill_(20.0)  # the action is 1
    fasttd3.target_distribution(actor, critic, batch, fasttd3.Args(target_noise=1.0))
    assert critic.action.max() == 1.0 and critic.action.min().item() == pytest.approx(0.5)
    batch["next_obs"] = torch.zeros(5000, 2)
    fasttd3.target_distribution(actor, critic, batch, fasttd3.Args(target_noise=0.0))
    assert torch.equal(critic.action, actor(batch["next_obs"]))


# losses
def logits_critic(logits):
    return lambda obs, action: logits


def test_critic_loss_by_hand():
    targets = torch.tensor([[0.03, 0.15, 0.32, 0.32, 0.18]])
    row = torch.tensor([0.0, 1.0, 2.0, 1.0, 0.0], requires_grad=True)
    batch = {"obs": None, "action": None}
    loss = fasttd3.critic_loss(logits_critic(torch.stack([row, torch.zeros(5)])[None]), batch, targets)
    assert loss.item() == pytest.approx(1.5863567 + math.log(5.0), abs=1e-7)  # one for each critic
    (grad,) = torch.autograd.grad(loss, row)
    assert grad.tolist() == pytest.approx([0.037451, 0.033350, 0.178398, -0.136650, -0.112549], abs=1e-6)
    perfect = fasttd3.critic_loss(logits_critic(targets.log()[None].expand(1, 2, 5)), batch, targets)
    assert perfect.item() == pytest.approx(2 * 1.427666, abs=1e-6)


def test_a_fresh_critic_knows_nothing():
    torch.manual_seed(0)
    critic, obs = fasttd3.Critic(37, 8, -200.0, 200.0, 251), torch.randn(256, 37)
    action = torch.rand(256, 8)
    assert critic.q_values(obs, action).abs().max() < 4.0
    targets = torch.full((256, 251), 1.0 / 251)
    loss = fasttd3.critic_loss(critic, {"obs": obs, "action": action}, targets)
    assert loss.item() == pytest.approx(2.0 * math.log(251.0), abs=0.05)
    assert critic(obs, action).shape == (256, 2, 251) and critic.atoms[1] - critic.atoms[0] == pytest.approx(1.6)


def test_critics_share_no_weights_and_read_the_action():
    torch.manual_seed(0)
    critic, obs, action = fasttd3.Critic(2, 3, -1.0, 1.0, 5), torch.randn(4, 2), torch.rand(4, 3)
    before = critic.q_values(obs, action)
    assert (critic.q_values(obs, -action) != before).all()
    with torch.no_grad():
        critic.networks[0][-1].bias[0] += 1.0
    after = critic.q_values(obs, action)
    assert torch.equal(before[:, 1], after[:, 1]) and (after[:, 0] < before[:, 0]).all()


def test_policy_loss_is_the_smaller_q_and_moves_only_the_actor():
    torch.manual_seed(0)
    actor, critic, obs = fasttd3.Actor(2, 3), fasttd3.Critic(2, 3, -2.0, 2.0, 5), torch.randn(200, 2)
    q1, q2 = critic.q_values(obs, actor(obs)).unbind(-1)
    assert 0 < (q1 < q2).sum() < 200
    loss, action = fasttd3.policy_loss(actor, critic, obs)
    assert loss.item() == pytest.approx(-torch.minimum(q1, q2).mean().item(), rel=1e-12)
    assert torch.equal(action, actor(obs)) and not action.requires_grad
    loss.backward(inputs=[*actor.parameters()])
    assert all(parameter.grad is None for parameter in critic.parameters())
    assert actor.network[-1].weight.grad.abs().sum() > 0
    # a step along it raises the smaller Q
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter -= 0.1 * parameter.grad
        assert fasttd3.policy_loss(actor, critic, obs)[0] < loss


# noise
def test_first_actions_are_small_and_never_leave_the_range():
    torch.manual_seed(0)
    actor = fasttd3.Actor(37, 8)
    action = actor(torch.randn(500, 37))
    assert action.abs().max() < 0.2
    noisy = fasttd3.add_noise(action, torch.full((500,), 3.0))
    assert noisy.abs().max() == 1.0 and (noisy.abs() == 1.0).double().mean() > 0.5


@pytest.mark.parametrize("low, high, expected", [(0.001, 0.4, 0.2312), (0.1, 0.4, 0.2646), (0.2, 0.8, 0.5292)])
def test_noise_levels_fill_their_range(low, high, expected):
    torch.manual_seed(0)
    noise = fasttd3.MixedNoise(100_000, low, high, "cpu")
    assert noise.std.min() >= low and noise.std.max() <= high
    assert noise.std.square().mean().sqrt().item() == pytest.approx(expected, rel=0.01)
    action = fasttd3.add_noise(torch.zeros(100_000, 3), 0.1 * noise.std)
    assert action.std().item() == pytest.approx(0.1 * expected, rel=0.01)


def test_a_noise_level_lasts_for_an_episode():
    torch.manual_seed(0)
    noise = fasttd3.MixedNoise(5, 0.1, 0.4, "cpu")
    before = noise.std.clone()
    noise.redraw(torch.tensor([False, True, False, False, True]))
    assert (noise.std == before).tolist() == [True, False, True, True, False]


def test_policy_with_noise_has_the_levels_of_the_range():
    torch.manual_seed(0)
    actor = fasttd3.Actor(2, 20_000)
    actor.noise_range.copy_(torch.tensor([0.05, 0.15]))
    obs = torch.randn(3, 2)
    deviations = (actor.act(obs) - actor.act(obs, deterministic=True)).std(1)
    assert deviations.tolist() == pytest.approx([0.05, 0.1, 0.15], rel=0.05)
    assert torch.equal(actor.act(obs, deterministic=True), actor(obs))


# collecting
class Toy(ToyEnv):
    num_actions = 2

    def step(self, action):
        self.action = action
        return super().step(action)


def test_steps_go_into_the_buffer_as_the_environment_made_them():
    torch.manual_seed(0)
    env, args = Toy(), fasttd3.Args(reward_scale=0.1)
    actor, normalizer = fasttd3.Actor(2, 2), fasttd3.ObsNormalizer(2)
    normalizer.mean += 1.0
    noise, replay = fasttd3.MixedNoise(N, 0.5, 3.0, "cpu"), fasttd3.Replay(H, N, 2, 2, "cpu")
    raw_obs = env.detach()
    for t in range(H):
        obs, levels = env.state, noise.std
        torch.manual_seed(t)
        raw_obs, data = fasttd3.collect(env, raw_obs, actor, noise, normalizer, replay, args)
        stored = {name: column[t] for name, column in replay.data.items()}
        torch.manual_seed(t)
        expected = fasttd3.add_noise(actor(normalizer(obs)), levels)
        assert torch.equal(stored["action"], expected) and torch.equal(env.action, expected)
        assert torch.equal(stored["obs"], obs) and torch.equal(data["raw_obs"], obs)
        ends = data["dones"]
        assert torch.equal(stored["next_obs"][~ends], env.state[~ends]) and torch.equal(raw_obs, env.state)
        assert ends.sum() == (t in (1, 2)) and (noise.std != levels).sum() == ends.sum()
        if t in (1, 2):  # the true successor, not the first state of the next episode
            assert (stored["next_obs"][ends] != env.state[ends]).any()
            assert stored["terminated" if t == 1 else "truncated"].sum() == 1
        final = torch.tanh(obs @ STATE_MATRIX.T + expected @ ACTION_MATRIX.T)
        reward = -(final**2).sum(-1) + 0.3 * final[:, 0] - 0.05 * (expected**2).sum(-1)
        assert torch.allclose(stored["reward"], 0.1 * reward)


def test_windows_by_hand():
    """Of at most 3 steps with rewards 1, 2, 3, gamma 0.99."""
    for end, rewards, discount in ((None, 5.9203, 0.970299), ("terminated", 2.98, 0.9801), ("truncated", 2.98, 0.9801)):
        replay = fasttd3.Replay(4, 1, 1, 1, "cpu")
        for t in range(3):
            flags = {kind: torch.tensor([t == 1 and end == kind]) for kind in ("terminated", "truncated")}
            step = {"obs": torch.full((1, 1), float(t)), "action": torch.zeros(1, 1), "reward": torch.tensor([t + 1.0])}
            replay.add(**step, next_obs=torch.full((1, 1), 10.0 + t), **flags)
        torch.manual_seed(0)
        batch = replay.sample(50, 3, 0.99)
        first = batch["obs"][:, 0] == 0.0
        assert batch["rewards"][first].unique().tolist() == approx([rewards])
        assert batch["discount"][first].unique().tolist() == approx([discount])
        assert batch["next_obs"][first].unique().tolist() == [12.0 if end is None else 11.0]
        assert batch["terminated"][first].all() == (end == "terminated")
