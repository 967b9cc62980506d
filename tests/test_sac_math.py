"""The algorithm of sac_continuous.py on toys with known answers, without a simulator; float64 unless said otherwise."""

import inspect
import io
import math
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Normal, TanhTransform, TransformedDistribution
from toy_mdp import GAMMA, H, N, ToyEnv, gradient, relative

import rpo_continuous as rpo
import sac_continuous as sac

T = 40  # steps of the recorded stream


pytestmark = pytest.mark.usefixtures("float64")


# the replay buffer
def stream(seed=0):
    """T steps of N environments, whose observations tell them apart: obs is (t, env), next_obs (t + 1/2, env)."""
    torch.manual_seed(seed)
    t, env = torch.meshgrid(torch.arange(float(T)), torch.arange(float(N)), indexing="ij")
    data = {"obs": torch.stack([t, env], dim=-1), "next_obs": torch.stack([t + 0.5, env], dim=-1)}
    data |= {"action": torch.rand(T, N, 3), "reward": torch.randn(T, N)}
    data |= {"terminated": torch.rand(T, N) < 0.1, "truncated": torch.rand(T, N) < 0.1}
    assert (data["terminated"] & data["truncated"]).any()  # both at once happens too, and is a fall
    return data


def filled(rows, data, steps=T, num_envs=N):
    replay = sac.Replay(rows, num_envs, 2, data["action"].shape[-1], "cpu")
    for t in range(steps):
        replay.add(**{name: column[t] for name, column in data.items()})
    return replay


def brute_force_window(data, t, env, n, steps=T):
    """The steps of the window that begins at t: until the episode ends, at most n, none that has not happened yet."""
    window = []
    for j in range(t, min(t + n, steps)):
        window.append(j)
        if data["terminated"][j, env] or data["truncated"][j, env]:
            break
    return window


def check_against_brute_force(data, batch, n, steps=T):
    """Every window of the batch; returns how often each step was drawn (T, N)."""
    rewards, discounts, last = torch.zeros(T, N), torch.zeros(T, N), torch.zeros(T, N, dtype=torch.long)
    for t in range(steps):
        for env in range(N):
            window = brute_force_window(data, t, env, n, steps)
            rewards[t, env] = sum(GAMMA**i * data["reward"][j, env].item() for i, j in enumerate(window))
            discounts[t, env], last[t, env] = GAMMA ** len(window), window[-1]
    t, env = batch["obs"].long().unbind(1)
    end = last[t, env]
    assert torch.equal(batch["action"], data["action"][t, env])
    assert torch.allclose(batch["rewards"], rewards[t, env], rtol=1e-12, atol=1e-14)  # atol: rewards may cancel
    assert torch.allclose(batch["discount"], discounts[t, env], rtol=1e-12)
    assert torch.equal(batch["next_obs"], data["next_obs"][end, env])
    assert torch.equal(batch["terminated"], data["terminated"][end, env])
    return torch.bincount(t * N + env, minlength=T * N).reshape(T, N).double()


# 5 is shorter than the longest window, 16 wraps, 40 is just full and 64 not yet
@pytest.mark.parametrize("n", (1, 3, 10))
@pytest.mark.parametrize("rows", (5, 16, T, 64))
def test_windows_are_those_of_brute_force_and_every_stored_step_begins_some(rows, n):
    data = stream()
    replay = filled(rows, data)
    torch.manual_seed(1)
    drawn = check_against_brute_force(data, replay.sample(10_000, n, GAMMA), n)
    stored, expected = min(rows, T), 10_000 / (min(rows, T) * N)
    assert len(replay) == stored and drawn[: T - stored].sum() == 0
    # as often as the others: the counts are nearly Poisson, at most 240 of them are looked at
    assert ((drawn[T - stored :] - expected).abs() < 5.0 * math.sqrt(expected)).all()


@pytest.mark.parametrize("rows", (7, 64))
def test_windows_are_right_after_every_step(rows):
    data = stream()
    torch.manual_seed(1)
    for steps in (1, 2, 6, 7, 8, 13, 14, 15):
        replay = filled(rows, data, steps)
        # 90 steps at most: to miss a given one has probability (1 - 1/90)^2000 = 2e-10
        drawn = check_against_brute_force(data, replay.sample(2000, 3, GAMMA), 3, steps)
        oldest = max(0, steps - rows)
        assert len(replay) == steps - oldest and (drawn[oldest:steps] > 0).all()
        assert drawn.sum() == drawn[oldest:steps].sum()


def test_window_by_hand():
    # gamma = 1/2, rewards 1, 2, 4, 8, 16; a time-out after the third step and a fall after the fifth
    no, yes = torch.tensor([False]), torch.tensor([True])
    replay = sac.Replay(8, 1, 1, 1, "cpu")
    for t, (terminated, truncated) in enumerate(((no, no), (no, no), (no, yes), (no, no), (yes, no))):
        step = {"obs": torch.full((1, 1), float(t)), "action": torch.zeros(1, 1), "reward": torch.tensor([2.0**t])}
        replay.add(**step, next_obs=torch.full((1, 1), 10.0 + t), terminated=terminated, truncated=truncated)
    torch.manual_seed(0)
    batch = replay.sample(200, 4, 0.5)
    columns = (batch[name].flatten().tolist() for name in ("obs", "rewards", "discount", "next_obs", "terminated"))
    assert set(zip(*columns)) == {
        (0.0, 3.0, 0.125, 12.0, False),  # 1 + 2/2 + 4/4, then the observation that the time-out cut off
        (1.0, 4.0, 0.25, 12.0, False),
        (2.0, 4.0, 0.5, 12.0, False),
        (3.0, 16.0, 0.25, 14.0, True),
        (4.0, 16.0, 0.5, 14.0, True),
    }


@pytest.mark.parametrize("kind", ("terminated", "truncated"))
def test_no_window_touches_the_next_episode_or_a_step_that_is_not_stored(kind):
    # the first episode ends at t = 2, whatever comes after it is poison; so are the rows that nobody has written
    data = {name: column[:6] for name, column in stream().items()}
    data |= {name: torch.zeros(6, N, dtype=torch.bool) for name in ("terminated", "truncated")}
    data[kind][2] = True
    for name in ("obs", "next_obs", "action", "reward"):
        data[name] = data[name].clone()
        data[name][3:] = torch.nan
    replay = sac.Replay(9, N, 2, 3, "cpu")
    for name in ("obs", "next_obs", "action", "reward"):
        replay.data[name][:] = torch.nan
    for t in range(6):
        replay.add(**{name: column[t] for name, column in data.items()})
    batch = replay.sample(1000, 10, GAMMA)
    first_episode = batch["obs"][:, 0].isfinite()
    assert 0.4 < first_episode.double().mean() < 0.6
    assert all(batch[name][first_episode].isfinite().all() for name in ("rewards", "next_obs", "action"))
    replay = sac.Replay(9, N, 2, 3, "cpu")
    for name in ("obs", "next_obs", "action", "reward"):
        replay.data[name][:] = torch.nan
    for t in range(4):
        replay.add(**{name: column[t] for name, column in stream().items()})
    assert all(column.isfinite().all() for column in replay.sample(1000, 10, GAMMA).values())


@pytest.mark.parametrize("steps", (5, 16, 37))
def test_saved_replay_goes_on_as_if_nothing_had_happened(steps):
    data = stream()
    replay, restored = filled(16, data, steps), filled(16, stream(seed=5), 3)  # whatever it held before
    file = io.BytesIO()
    torch.save(replay.state_dict(), file)
    file.seek(0)
    restored.load_state_dict(torch.load(file, weights_only=True))
    for t in (None, *range(steps, min(T, steps + 3))):
        if t is not None:
            for each in (replay, restored):
                each.add(**{name: column[t] for name, column in data.items()})
        batches = []
        for each in (replay, restored):
            torch.manual_seed(2)
            batches.append(each.sample(500, 3, GAMMA))
        assert batches[0].keys() == batches[1].keys() and len(restored) == len(replay)
        assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])
    assert restored.count == replay.count


def test_saved_state_is_a_copy_of_the_steps_that_were_made():
    data = stream()
    replay = filled(16, data, 5)
    state = replay.state_dict()
    for t in range(5, T):
        replay.add(**{name: column[t] for name, column in data.items()})
    assert state["count"] == 5 and state.keys() == {"count", *data}
    for name, column in data.items():
        assert torch.equal(state[name], column[:5])
        assert state[name].untyped_storage().nbytes() == state[name].nbytes  # torch.save() writes all of the storage


@pytest.mark.parametrize("num_envs", (2, 9))
def test_steps_of_another_number_of_environments_are_left_out_or_come_twice(num_envs):
    data = stream()
    restored = sac.Replay(16, num_envs, 2, 3, "cpu")
    restored.load_state_dict(filled(16, data).state_dict())
    for env in range(num_envs):
        for name, column in data.items():
            assert torch.equal(restored.data[name][:, env].sort(0)[0], column[-16:, env % N].sort(0)[0])


# targets
class Gaussian(torch.nn.Module):
    """The same Gaussian in every state, with a mean and a deviation per dimension of the action."""

    def __init__(self, mean, log_std):
        super().__init__()
        self.mean, self.log_std = torch.nn.Parameter(torch.tensor(mean)), torch.nn.Parameter(torch.tensor(log_std))

    def forward(self, obs):
        return self.mean.expand(len(obs), -1), self.log_std.expand(len(obs), -1)


def batch_of(rewards, discount, terminated):
    n = len(rewards)
    batch = {"rewards": torch.tensor(rewards), "discount": torch.tensor(discount), "obs": torch.zeros(n, 2)}
    return batch | {"terminated": torch.tensor(terminated), "next_obs": torch.arange(2.0 * n).reshape(n, 2)}


def test_targets_by_hand():
    # 1 + 0.5 min(10, 4) = 3,   2 + 0.25 min(-7, 8) = 0.25,   and of the fall only the rewards
    values = torch.tensor([[10.0, 4.0], [-7.0, 8.0], [1e6, 1e6]])
    batch = batch_of([1.0, 2.0, 3.0], [0.5, 0.25, 0.5], [False, False, True])
    targets = sac.nstep_targets(Gaussian([0.3, 0.1], [0.0, 0.0]), lambda obs, action: values, batch, 0.0)
    assert targets.tolist() == [3.0, 0.25, 3.0]


def test_targets_take_a_fresh_action_of_the_policy_after_the_window_and_pay_for_its_log_prob():
    torch.manual_seed(0)
    actor, n, alpha = sac.Actor(2, 2), 50, 0.3
    batch = batch_of(torch.randn(n).tolist(), torch.rand(n).tolist(), (torch.rand(n) < 0.3).tolist())
    batch["next_obs"] = torch.randn(n, 2)
    target_critic = sac.Critic(2, 2)
    torch.manual_seed(1)
    targets = sac.nstep_targets(actor, target_critic, batch, alpha)
    torch.manual_seed(1)
    mean, log_std = actor(batch["next_obs"])
    action = torch.tanh(mean + log_std.exp() * torch.randn(n, 2))
    log_prob = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform()).log_prob(action).sum(-1)
    q1, q2 = target_critic(batch["next_obs"], action).unbind(-1)
    soft_value = torch.minimum(q1, q2) - alpha * log_prob
    expected = batch["rewards"] + batch["discount"] * soft_value * ~batch["terminated"]
    assert torch.allclose(targets, expected, rtol=1e-9)  # the library inverts the tanh, which costs digits
    assert not targets.requires_grad and ((q1 < q2).any() and (q1 > q2).any())


def test_a_fall_into_a_state_that_is_not_finite_poisons_no_target():
    batch = batch_of([1.0, 2.0], [0.5, 0.5], [False, True])
    batch["next_obs"][1] = torch.nan
    torch.manual_seed(0)
    targets = sac.nstep_targets(sac.Actor(2, 2), sac.Critic(2, 2), batch, 0.1)
    assert targets.isfinite().all() and targets[1] == 2.0


# losses
def squashed(mean, log_std):
    return TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform())


def test_log_prob_is_that_of_the_squashed_gaussian():
    torch.manual_seed(0)
    u, mean, log_std = torch.rand(200, 3) * 10.0 - 5.0, torch.randn(200, 3), 0.4 * torch.randn(200, 3)
    # the library inverts the tanh: at |u| = 5 that costs a factor of 1e4 of the precision of float64
    theirs = squashed(mean, log_std).log_prob(torch.tanh(u)).sum(-1)
    assert torch.allclose(sac.squashed_log_prob(u, mean, log_std), theirs, rtol=1e-10)
    one = (torch.tensor([x]) for x in (0.5, 0.2, math.log(0.7)))
    assert sac.squashed_log_prob(*one).item() == pytest.approx(-0.413871, abs=1e-6)  # M8


def test_log_prob_is_finite_where_the_action_has_rounded_to_one():
    for dtype in (torch.float32, torch.float64):
        u = torch.tensor([[20.0], [-20.0]], dtype=dtype, requires_grad=True)
        zeros = torch.zeros(2, 1, dtype=dtype)
        assert torch.tanh(u).abs().tolist() == [[1.0], [1.0]]
        # log(1 - tanh(u)^2) = 2 (log 2 - |u|) there
        expected = -200.0 - 0.5 * math.log(2.0 * math.pi) - 2.0 * (math.log(2.0) - 20.0)
        log_prob = sac.squashed_log_prob(u, zeros, zeros)
        assert log_prob.tolist() == pytest.approx([expected, expected], rel=1e-5)
        grad = torch.autograd.grad(log_prob.sum(), u)[0]
        assert grad.flatten().tolist() == pytest.approx([-18.0, 18.0], rel=1e-5)


def test_critic_loss_is_the_sum_of_two_mean_squared_errors():
    values = torch.tensor([[1.0, 2.0], [3.0, 6.0], [0.0, 0.0], [5.0, 4.0]], requires_grad=True)
    targets = torch.tensor([0.0, 5.0, 0.0, 5.0])
    # (1 + 4 + 0 + 0) / 4 + (4 + 1 + 0 + 1) / 4
    loss = sac.critic_loss(lambda obs, action: values, {"obs": None, "action": None}, targets)
    assert loss.item() == pytest.approx(1.25 + 1.5)
    # d L / d Q_i = 2 (Q_i - y) / B
    grad = torch.autograd.grad(loss, values)[0]
    assert grad.tolist() == [[0.5, 1.0], [-1.0, 0.5], [0.0, 0.0], [0.0, -0.5]]


def test_critic_loss_is_of_the_stored_action_in_its_own_state():
    torch.manual_seed(0)
    critic, obs, action, targets = sac.Critic(2, 3), torch.randn(5, 2), torch.rand(5, 3), torch.randn(5)
    loss = sac.critic_loss(critic, {"obs": obs, "action": action, "next_obs": torch.randn(5, 2)}, targets)
    errors = [value(torch.cat([obs, action], dim=1))[:, 0] - targets for value in critic.values]
    assert loss.item() == pytest.approx(sum((error**2).mean().item() for error in errors), rel=1e-12)


def test_policy_loss_is_the_soft_value_of_the_smaller_critic_sample_by_sample():
    torch.manual_seed(0)
    actor, critic, obs, alpha = sac.Actor(2, 2), sac.Critic(2, 2), torch.randn(200, 2), 0.3
    torch.manual_seed(1)
    loss, entropy = sac.policy_loss(actor, critic, obs, alpha)
    torch.manual_seed(1)
    mean, log_std = actor(obs)
    action = torch.tanh(mean + log_std.exp() * torch.randn(200, 2))
    log_prob = squashed(mean, log_std).log_prob(action).sum(-1)
    q1, q2 = critic(obs, action).unbind(-1)
    assert 20 < (q1 < q2).sum() < 180
    expected = (alpha * log_prob - torch.minimum(q1, q2)).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    assert relative(gradient(loss, actor), gradient(expected, actor)) < 1e-8
    assert entropy.item() == pytest.approx(-log_prob.mean().item(), rel=1e-9) and not entropy.requires_grad


def test_policy_loss_gives_the_critics_weights_no_gradient():
    torch.manual_seed(0)
    actor, critic = sac.Actor(2, 2), sac.Critic(2, 2)
    sac.policy_loss(actor, critic, torch.randn(10, 2), 0.1)[0].backward(inputs=list(actor.parameters()))
    assert all(parameter.grad is None for parameter in critic.parameters())
    # that of the biases behind a layer norm is small; the action's is there: without it alpha alone would be left
    assert all(parameter.grad.abs().sum() > 0 for parameter in actor.parameters())
    through_q = gradient(sac.policy_loss(actor, critic, torch.randn(10, 2), 0.0)[0], actor)
    assert through_q.norm() > 1e-3


def test_temperature_falls_where_the_entropy_is_above_its_target():  # M14
    # A = 8: the target is -4
    for entropy, expected in ((-2.0, 2.0), (-4.0, 0.0), (-6.0, -2.0)):
        temperature = sac.Temperature(1.0)
        optimizer = torch.optim.AdamW(temperature.parameters(), lr=5e-3)
        loss = sac.temperature_loss(temperature(), torch.tensor(entropy), 8)
        loss.backward()
        # d L / d log alpha = alpha (H + A / 2)
        assert temperature.log_alpha.grad.item() == pytest.approx(expected, abs=1e-12)
        optimizer.step()
        # Adam's first step is the learning rate, whatever the gradient; log alpha = 0 does not decay
        step = math.copysign(5e-3, -expected) if expected else 0.0
        assert temperature.log_alpha.item() == pytest.approx(step, abs=1e-9)


def test_temperature_starts_where_asked_and_is_positive():
    temperature = sac.Temperature(0.2)
    assert temperature().item() == pytest.approx(0.2)
    temperature.log_alpha.data -= 100.0
    assert temperature().item() > 0.0


# collecting steps
ENDS = (1, 0, "terminated"), (2, 3, "truncated"), (H - 1, 4, "terminated"), (H - 1, 5, "truncated")


class Env(ToyEnv):
    num_actions = 2


def toy_policy():
    torch.manual_seed(1)
    actor, normalizer = sac.Actor(2, 2), sac.ObsNormalizer(2)
    normalizer.mean, normalizer.var = torch.tensor([0.125, -0.25]), torch.tensor([0.5, 2.0])  # exact in float32
    return actor, normalizer


def make_args(**changes):
    return sac.Args(**{"num_envs": N, "num_steps": H, "learning_starts": 0, "gamma": GAMMA} | changes)


def collect(env=None, rows=8, act=None, **changes):
    policy, normalizer = toy_policy()
    replay = sac.Replay(rows, N, 2, 2, "cpu")
    torch.manual_seed(7)
    # a stub stands for an actor that only acts
    actor = policy if act is None else SimpleNamespace(act=act)
    return replay, sac.collect(env or Env(ENDS), actor, normalizer, replay, make_args(**changes))


@pytest.mark.parametrize("learning_starts", (0, 2 * N, H * N))
def test_steps_are_stored_as_they_were_with_the_true_successor(learning_starts):
    replay, *_ = collect(learning_starts=learning_starts)
    env = Env(ENDS)
    for t in range(H):
        # raw observations; of an episode that ended the last one, not the first of the next
        assert torch.equal(replay.data["obs"][t], env.state)
        obs, reward, terminated, truncated, infos = env.step(replay.data["action"][t])
        assert torch.equal(replay.data["next_obs"][t], infos["final_obs"])
        assert torch.equal(replay.data["reward"][t], reward)
        assert torch.equal(replay.data["terminated"][t], terminated)
        assert torch.equal(replay.data["truncated"][t], truncated)
        assert ((infos["final_obs"] - obs).abs().sum(-1) > 0.01).equal(terminated | truncated)
    assert replay.count == H and replay.data["terminated"].sum() == replay.data["truncated"].sum() == 2


# the number of random steps: those begun before learning_starts, counted over all environments
@pytest.mark.parametrize("learning_starts, random_steps", ((0, 0), (1, 1), (2 * N, 2), (2 * N + 1, 3), (100 * N, H)))
def test_actions_are_uniform_before_learning_starts_and_the_policys_after(learning_starts, random_steps):
    replay, *_ = collect(learning_starts=learning_starts)
    actor, normalizer = toy_policy()
    torch.manual_seed(7)
    for t, obs in enumerate(replay.data["obs"][:H]):
        if t < random_steps:
            expected = 2.0 * torch.rand(N, 2) - 1.0
        else:
            mean, log_std = actor(normalizer(obs))
            expected = torch.tanh(mean + log_std.exp() * torch.randn(N, 2))
        assert torch.allclose(replay.data["action"][t], expected, rtol=1e-12)


def test_learning_has_started_for_good_when_the_ring_has_forgotten_the_first_steps():
    asked = []

    def act(obs):
        asked.append(len(obs))
        return torch.zeros(N, 2)

    collect(rows=1, act=act, learning_starts=2 * N)
    assert asked == [N] * (H - 2)


def test_collecting_records_no_gradient():
    actor, normalizer = toy_policy()
    env, replay = Env(), sac.Replay(8, N, 2, 2, "cpu")
    env.state.requires_grad_()
    sac.collect(env, actor, normalizer, replay, make_args())
    assert not any(column.requires_grad for column in replay.data.values()) and not env.state.requires_grad
    assert all(parameter.grad is None for parameter in actor.parameters())
    assert not normalizer.mean.requires_grad


def test_collecting_tells_which_episodes_ended_and_which_observations_it_has_seen():
    class Counting(Env):
        def step(self, action):
            *rest, infos = super().step(action)
            infos["episode"] = {"r": torch.arange(N) + 10.0 * self.t, "l": torch.arange(N) + 100.0}
            return *rest, infos

    replay, data = collect(Counting(ENDS))
    episodes = torch.stack([data["episode_return"], data["episode_length"]], dim=-1)[data["dones"]]
    assert episodes.tolist() == [[20.0, 100.0], [33.0, 103.0], [54.0, 104.0], [55.0, 105.0]]
    assert torch.equal(data["raw_obs"], replay.data["obs"][:H])


def test_collecting_goes_on_where_it_stopped():
    whole, _ = collect()
    actor, normalizer = toy_policy()
    env, replay = Env(ENDS), sac.Replay(8, N, 2, 2, "cpu")
    torch.manual_seed(7)
    for n in (1, 2, H - 3):
        sac.collect(env, actor, normalizer, replay, make_args(num_steps=n))
    assert all(torch.equal(replay.data[name], column) for name, column in whole.data.items())


@pytest.mark.parametrize("n", (1, 3, 10))
def test_a_fall_costs_the_value_and_a_time_out_does_not(n):  # M15
    # without rewards, Q = 1000 everywhere: a target is gamma^k 1000, or 0 where the window ends with a fall
    class Free(Env):
        def step(self, action):
            obs, reward, *rest = super().step(action)
            return obs, 0.0 * reward, *rest

    replay, *_ = collect(Free(ENDS))
    batch = replay.sample(500, n, GAMMA)
    actor, _ = toy_policy()
    targets = sac.nstep_targets(actor, lambda obs, action: 1000.0 + 0.0 * action, batch, 0.0)
    for obs, target in zip(batch["obs"], targets):
        t, env = (replay.data["obs"][:H] == obs).all(-1).nonzero()[0].tolist()
        end = {0: 1 if t <= 1 else H - 1, 3: 2 if t <= 2 else H - 1}.get(env, H - 1)
        k = min(n, end - t + 1)
        fell = (t + k - 1, env) in ((1, 0), (H - 1, 4))
        assert target.item() == pytest.approx(0.0 if fell else 1000.0 * GAMMA**k, rel=1e-12)
    assert (targets == 0.0).any()


# networks
def test_networks_are_those_of_the_paper_and_the_two_critics_differ():
    torch.manual_seed(0)
    actor, critic = sac.Actor(11, 3), sac.Critic(11, 3)
    block = [torch.nn.Linear, torch.nn.LayerNorm, torch.nn.SiLU]
    assert [type(layer) for layer in actor.trunk] == [type(layer) for layer in critic.values[0][:-1]] == 3 * block
    linears = [layer for net in (actor, critic) for layer in net.modules() if isinstance(layer, torch.nn.Linear)]
    widths = [(layer.in_features, layer.out_features) for layer in linears]
    trunk = [(400, 200), (200, 100)]
    assert widths == [(11, 400), *trunk, (100, 3), (100, 3)] + 2 * [(14, 400), *trunk, (100, 1)]
    obs, action = torch.randn(4, 5, 11), torch.rand(4, 5, 3)
    q = critic(obs, action)
    assert q.shape == (4, 5, 2) and ((q[..., 0] - q[..., 1]).abs() > 1e-3).all()
    assert (critic(obs, -action) != q).all()
    actor.log_std.bias.data[:] = torch.tensor([100.0, -100.0, 0.0])
    log_std = actor(obs)[1]
    assert (log_std[..., 0] == 2.0).all() and (log_std[..., 1] == -5.0).all() and log_std[..., 2].std() > 1e-3


def test_what_is_not_sac_is_as_in_rpo():
    for name in ("Actor", "ObsNormalizer", "evaluate"):
        assert inspect.getsource(getattr(sac, name)) == inspect.getsource(getattr(rpo, name))
