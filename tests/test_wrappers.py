"""Every vector wrapper of gymnasium on these environments, directly and behind ArrayConversion: docs/third_party.md."""

import sys
import types
from unittest import mock

import gymnasium.wrappers as single
import gymnasium.wrappers.vector as wrappers
import numpy as np
import pytest
import torch
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers.vector import ArrayConversion

import envs
from benchmarks.records import ROOT

WORKS = None
SAME_STEP = "Expected autoreset_mode to be NEXT_STEP or DISABLED"
NUMPY_ACTIONS = r"action: expected a torch tensor of shape \(3, 3\), got ndarray"
JAX = "jax"
# arguments, and what becomes of it directly and behind ArrayConversion: it works, or an error with these words
WRAPPERS = {
    "VectorizeTransformObservation": ([single.FlattenObservation], SAME_STEP, SAME_STEP),
    "TransformObservation": ([lambda obs: obs], SAME_STEP, SAME_STEP),
    "FilterObservation": ([["height"]], SAME_STEP, SAME_STEP),
    "FlattenObservation": ([], SAME_STEP, SAME_STEP),
    "GrayscaleObservation": ([], SAME_STEP, SAME_STEP),
    "ResizeObservation": ([(4, 4)], SAME_STEP, SAME_STEP),
    "ReshapeObservation": ([(11, 1)], SAME_STEP, SAME_STEP),
    "RescaleObservation": ([0.0, 1.0], SAME_STEP, SAME_STEP),
    "DtypeObservation": ([np.float64], SAME_STEP, SAME_STEP),
    "NormalizeObservation": ([], SAME_STEP, SAME_STEP),
    "VectorizeTransformAction": ([lambda env: single.RescaleAction(env, 0.0, 1.0)], NUMPY_ACTIONS, WORKS),
    "TransformAction": ([lambda action: 2.0 * action - 1.0], WORKS, WORKS),
    "ClipAction": ([], NUMPY_ACTIONS, WORKS),
    "RescaleAction": ([0.0, 1.0], NUMPY_ACTIONS, WORKS),
    "VectorizeTransformReward": ([lambda env: single.ClipReward(env, -0.5, 0.5)], WORKS, WORKS),
    "TransformReward": ([lambda reward: reward.clip(-0.5, 0.5)], WORKS, WORKS),
    "ClipReward": ([-0.5, 0.5], WORKS, WORKS),
    "NormalizeReward": ([], "Subtraction, the `-` operator, with a bool tensor", WORKS),
    "RecordEpisodeStatistics": ([], "Concatenation operation", "key 'episode' but this key already exists"),
    "DictInfoToList": ([], "^$", r"len\(\) of unsized object"),
    "RecordVideo": (["videos"], WORKS, WORKS),
    "HumanRendering": ([], WORKS, WORKS),
    "ArrayConversion": ([torch, np], WORKS, WORKS),
    "NumpyToTorch": ([], NUMPY_ACTIONS, WORKS),
    "JaxToNumpy": ([], JAX, JAX),
    "JaxToTorch": ([], JAX, JAX),
}
RESCALE_ACTIONS = ("VectorizeTransformAction", "TransformAction", "RescaleAction")
CLIP_REWARDS = ("VectorizeTransformReward", "TransformReward", "ClipReward")


def make():
    return envs.make("hopper", num_envs=3, max_episode_steps=3, num_threads=1, render_mode="rgb_array")


def wrap(name, behind):
    env = ArrayConversion(make(), env_xp=torch, target_xp=np) if behind else make()
    return getattr(wrappers, name)(env, *WRAPPERS[name][0])


def rollout(env, actions):
    """Observations, rewards and ends (steps, N, ...) as numpy arrays."""
    results = [env.step(action)[:4] for action in actions]
    return [np.stack([np.asarray(x) for x in column]) for column in zip(*results)]


class Movie:
    """In place of moviepy's ImageSequenceClip; an encoder is not needed to see what would be encoded."""

    written = []

    def __init__(self, frames, fps):
        self.frames, self.fps = frames, fps

    def write_videofile(self, path, logger):
        self.written.append((path, self.fps, np.stack(self.frames)))


@pytest.fixture
def windows_and_movies(tmp_path, monkeypatch):
    """The packages that RecordVideo and HumanRendering need, as far as these use them."""
    monkeypatch.chdir(tmp_path)
    Movie.written = []
    clip = types.SimpleNamespace(ImageSequenceClip=Movie)
    resized = types.SimpleNamespace(resize=lambda image, size: np.resize(image, (size[1], size[0], 3)))
    stubs = {"moviepy": mock.MagicMock(), "moviepy.video.io.ImageSequenceClip": clip, "pygame": mock.MagicMock()}
    for module, stub in (stubs | {"cv2": resized}).items():
        monkeypatch.setitem(sys.modules, module, stub)


def test_every_wrapper_is_classified_and_has_its_row():
    assert set(WRAPPERS) == set(wrappers.__all__)
    page = (ROOT / "docs" / "third_party.md").read_text()
    assert [name for name in WRAPPERS if f"`{name}`" not in page] == []


@pytest.mark.filterwarnings("ignore:.*same-step.*", "ignore:.*Overwriting existing videos.*")
@pytest.mark.parametrize("behind", [False, True], ids=["directly", "behind"])
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_does_what_it_says_or_refuses(name, behind, windows_and_movies):
    fate = WRAPPERS[name][1 + behind]
    actions = np.random.default_rng(0).uniform(0.0, 1.0, (5, 3, 3)).astype(np.float32)
    # behind ArrayConversion actions are arrays, but for the wrapper that takes tensors, and where arrays are refused
    arrays = behind and name != "NumpyToTorch" or name == "ArrayConversion" or fate == NUMPY_ACTIONS
    given = actions if arrays else [torch.from_numpy(action) for action in actions]
    if fate is not WORKS:
        with pytest.raises((ValueError, TypeError, RuntimeError, AssertionError, ImportError), match=fate):
            env = wrap(name, behind)
            env.reset()
            rollout(env, given)
        return
    env = wrap(name, behind)
    first, _ = env.reset(seed=7)
    found = rollout(env, given)
    env.close()
    bare = make()
    expected_first, _ = bare.reset(seed=7)
    expected = rollout(bare, torch.from_numpy(2.0 * actions - 1.0 if name in RESCALE_ACTIONS else actions))
    if name in CLIP_REWARDS:
        expected[1] = expected[1].clip(-0.5, 0.5)
    if name == "NormalizeReward":
        assert np.isfinite(found[1]).all() and (np.sign(found[1]) == np.sign(expected[1])).all()
        found[1] = expected[1]
    assert np.array_equal(np.asarray(first), expected_first.numpy())
    for ours, theirs in zip(found, expected):
        assert ours.dtype.kind == theirs.dtype.kind and np.allclose(ours, theirs, atol=1e-5)
    assert expected[3][2].all()  # across the end of an episode


@pytest.mark.filterwarnings("ignore:.*same-step.*", "ignore:.*Overwriting existing videos.*")
def test_gymnasiums_recorder_sees_every_environment(windows_and_movies):
    env = wrap("RecordVideo", False)
    env.reset()
    picture = env.render()
    rollout(env, torch.zeros(2, 3, 3))
    env.close()
    ((path, fps, frames),) = Movie.written
    assert path.endswith("rl-video-episode-0.mp4") and fps == 60 and frames.shape == (3, 240, 3 * 320, 3)
    assert np.array_equal(frames[0], np.concatenate(picture, axis=1)) and (frames[1] != frames[0]).any()


def test_statistics_have_room_under_another_name():
    env = ArrayConversion(make(), env_xp=torch, target_xp=np)
    env = wrappers.RecordEpisodeStatistics(env, stats_key="statistics")
    env.reset()
    for _ in range(3):
        *_, infos = env.step(np.zeros((3, 3), dtype=np.float32))
    assert np.allclose(infos["statistics"]["r"], infos["episode"]["r"]) and infos["_statistics"].all()


def test_a_mask_for_reset_passes_through_wrappers():
    env = wrappers.NormalizeReward(ArrayConversion(make(), env_xp=torch, target_xp=np))
    env.reset()
    before, *_ = env.step(np.zeros((3, 3), dtype=np.float32))
    obs, _ = env.reset(options={"reset_mask": np.array([True, False, False])})
    assert np.array_equal(obs[1:], before[1:]) and (obs[0] != before[0]).any()


def test_pictures_are_those_of_the_render_mode():
    env = make()
    env.reset()
    assert env.render_mode == "rgb_array" and env.render_mode in env.metadata["render_modes"]
    pictures = env.render()
    assert isinstance(pictures, tuple) and len(pictures) == 3
    assert all(np.array_equal(picture, env.render(k)) for k, picture in enumerate(pictures))
    plain = envs.make("hopper", num_envs=3)
    plain.reset()
    assert plain.render_mode is None and np.array_equal(plain.render(), pictures[0])


@pytest.mark.parametrize("env_id", envs.ENV_IDS)
def test_the_interface_is_gymnasiums(env_id):
    """What gymnasium's own vector environments promise, with tensors in place of arrays."""
    env = envs.make(env_id, num_envs=3)
    assert env.unwrapped is env and env.spec is None and not env.closed
    for kind in ("observation_space", "action_space"):
        space = getattr(env, kind)
        assert space == batch_space(getattr(env, f"single_{kind}"), 3) and space.dtype == np.float32
    obs, infos = env.reset(seed=3, options=None)
    assert obs.numpy() in env.observation_space and infos == {}
    obs, reward, terminated, truncated, infos = env.step(torch.from_numpy(env.action_space.sample()))
    assert obs.numpy() in env.observation_space and isinstance(infos, dict)
    assert reward.dtype == torch.float32 and terminated.dtype == truncated.dtype == torch.bool
    assert reward.shape == terminated.shape == truncated.shape == (3,)
    for name, value in infos.items():  # one row per environment, a mask beside what not all of them have
        if name != "diverged":
            assert all(len(x) == 3 for x in (value.values() if isinstance(value, dict) else [value]))
    assert {"_episode", "_final_obs"} < set(infos)
