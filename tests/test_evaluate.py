"""An evaluation: which episodes count, whose random numbers are drawn, what a watcher and a film see."""

import math
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import envs


def noisy(obs):
    return torch.tanh(0.5 * obs[:, :3] + torch.randn(len(obs), 3))


def evaluate(num_envs=6, policy=noisy, seed=1, max_episode_steps=150, **options):
    return envs.evaluate(envs.make("hopper", num_envs, max_episode_steps=max_episode_steps), policy, seed, **options)


def test_the_first_episode_of_every_environment_counts_once():
    returns, lengths = evaluate()
    env = envs.make("hopper", 6, seed=1 + 1_000_000, max_episode_steps=150)
    torch.manual_seed(1)
    obs, _ = env.reset()
    rewards, ends = [], []
    with torch.no_grad():
        for _ in range(150):
            obs, reward, terminated, truncated, _ = env.step(noisy(obs))
            rewards.append(reward)
            ends.append(terminated | truncated)
    ends = torch.stack(ends).int()
    assert (ends.sum(dim=0) > 1).any()  # an episode after the first has ended too
    first = ends.argmax(dim=0) + 1
    expected = [sum(reward[i] for reward in rewards[:length]) for i, length in enumerate(first.tolist())]
    assert len(set(first.tolist())) > 1 and torch.equal(lengths, first.float())
    assert torch.equal(returns, torch.stack(expected))


def test_random_numbers_go_on_as_if_nothing_had_happened():
    torch.manual_seed(7)
    expected = torch.randn(4)
    torch.manual_seed(7)
    returns = evaluate()[0]
    assert torch.equal(torch.randn(4), expected)
    assert torch.equal(evaluate()[0], returns)  # whatever was drawn in between
    assert not torch.equal(evaluate(seed=2)[0], returns)


def test_the_seed_decides_both_the_episodes_and_the_noise():
    at_rest = envs.make("hopper", 3, stochastic_reset=False)
    one, two = (envs.evaluate(at_rest, noisy, seed)[0] for seed in (1, 2))
    assert not torch.equal(one, two)
    one, two = (evaluate(policy=lambda obs: torch.tanh(obs[:, :3]), seed=seed)[0] for seed in (1, 2))
    assert not torch.equal(one, two)


def test_nothing_is_differentiated():
    def policy(obs):
        assert not torch.is_grad_enabled()
        return weight * obs[:, :3]

    weight = torch.ones(3, requires_grad=True)
    assert not evaluate(policy=policy)[0].requires_grad


def test_a_watcher_sees_every_state_of_an_episode_and_its_last_infos():
    env, seen = envs.make("hopper", 6, max_episode_steps=60), []

    def watch(running, infos):
        seen.append((running, env.joint_q, env.episode_length, infos))

    _, lengths = envs.evaluate(env, noisy, seed=1, watch=watch)
    assert seen[0][0].all() and seen[0][3] == {} and (seen[0][2] == 0).all()
    assert len(seen) == lengths.max() + 1  # before the first step and after every one
    for t, (running, _, length, infos) in enumerate(seen):
        assert torch.equal(running, t < lengths)
        assert (length[running] == t).all()  # the state is still that of the first episode
        assert t == 0 or infos["_episode"][lengths == t].all()
    env.reset(seed=1 + 1_000_000)
    assert torch.equal(seen[0][1], env.joint_q)


def test_watching_and_filming_change_nothing(tmp_path):
    expected = evaluate()
    results = evaluate(watch=lambda running, infos: None, video=str(tmp_path / "film"))
    assert all(torch.equal(x, y) for x, y in zip(results, expected))


def test_an_environment_that_renders_all_its_pictures_is_filmed_too(tmp_path):
    env = envs.make("cartpole", num_envs=2, max_episode_steps=4, render_mode="rgb_array")
    envs.evaluate(env, lambda obs: torch.zeros(2, 1), seed=1, video=tmp_path / "film")
    assert len([*tmp_path.glob("film.*")]) == 1


def test_the_film_shows_every_second_step_of_environment_0(monkeypatch, tmp_path):
    env, expected, films = envs.make("hopper", 2, max_episode_steps=20), [], []

    def see(running, infos):
        if running[0] and env.episode_length[0] % 2 == 0:
            expected.append(env.render(index=0))

    module = sys.modules["envs.evaluate"]
    monkeypatch.setattr(module, "write_video", lambda frames, path, fps: films.append(frames) or path)
    envs.evaluate(env, noisy, seed=1, watch=see, video=tmp_path / "film")
    (frames,) = films
    assert len(frames) > 3 and not np.array_equal(frames[0], frames[1])
    assert all(map(np.array_equal, frames, expected)) and len(frames) == len(expected)


def test_the_film_is_one_that_browsers_play(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    env = envs.make("hopper", 2, max_episode_steps=60)
    _, lengths = envs.evaluate(env, noisy, seed=1, video=str(tmp_path / "film"))
    assert capsys.readouterr().out == f"video of one episode: {tmp_path}/film.webp\n"
    film = Image.open(tmp_path / "film.webp")
    assert film.n_frames == math.ceil(lengths[0] / 2) and lengths[0] > 4
    assert film.size == (320, 240) and film.info["loop"] == 0
    env.reset(seed=1 + 1_000_000)
    expected, shown = torch.tensor(env.render()).float(), torch.tensor(np.array(film.convert("RGB"))).float()
    assert (shown - expected).abs().mean() < 8.0  # compressed


def test_an_mp4_is_written_where_imageio_ffmpeg_is_installed(tmp_path, monkeypatch, capsys):
    written = []

    def write_frames(path, size, fps):
        written.append((path, size, fps))
        while True:
            written.append((yield).shape)

    encoder = ModuleType("imageio_ffmpeg")
    encoder.write_frames = write_frames
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", encoder)
    _, lengths = evaluate(video=str(tmp_path / "film"))
    assert written[0] == (f"{tmp_path}/film.mp4", (320, 240), 30)
    assert written[1:] == [(240, 320, 3)] * math.ceil(lengths[0] / 2)
    assert capsys.readouterr().out.endswith("film.mp4\n")


def test_an_action_that_is_not_a_number_is_refused():
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="action: expected numbers, got NaN in environment"):
        evaluate(policy=lambda obs: obs[:, :3] * math.nan)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"seed": -1}, "seed: .*-1"),
        ({"seed": 0.5}, "seed: .*0.5"),
        ({"video": "missing/film"}, "video: .*missing/film"),
    ],
)
def test_wrong_input_is_refused(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        evaluate(**options)
