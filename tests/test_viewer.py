"""The replay in a browser: what the scene holds and where, whose policy moves it, what is said about wrong input."""

import base64
import importlib
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
import zstandard

import envs
from envs import viewer
from envs.physics import FREE, Articulation, Box, Capsule, Link
from envs.render import VIEW

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path.stem for path in ROOT.glob("*_continuous.py"))
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
COMMAND = [sys.executable, "-m", "envs.viewer"]
LOADED = re.compile(r"""<(?:script|link|img|iframe)\s[^>]*?(?:src|href)\s*=\s*["']?([^"'\s>]+)""")


class Server:
    """Takes down what a viser server is asked to show."""

    def __init__(self):
        self.nodes, self.scene, self.initial_camera = {}, self, SimpleNamespace()

    def set_up_direction(self, up):
        self.up = up

    def add_frame(self, name, show_axes):
        return self._add(name, position=np.zeros(3))

    def add_mesh_simple(self, name, vertices, faces, color, position=(0, 0, 0)):
        return self._add(name, vertices=vertices + np.array(position), faces=faces, color=color)

    def add_box(self, name, color, dimensions, position):
        return self._add(name, dimensions=dimensions, position=position, color=color)

    def _add(self, name, **content):
        self.nodes[name] = SimpleNamespace(**content)
        return self.nodes[name]


def scene_of(shapes=(), gravity=(0.0, -9.81, 0.0), position=(0.0, 0.0, 0.0)):
    """A robot of one free link, shown at a position, and the server it is shown by."""
    shapes = list(shapes) or [Box(0, (0, 0, 0), (0.1, 0.1, 0.1))]
    robot = Articulation([Link("moving", -1, FREE, mass=1.0, inertia=(1, 1, 1))], shapes=shapes, gravity=gravity)
    env, server = SimpleNamespace(drawn_articulation=robot, camera_height=0.5, camera_distance=4.0), Server()
    return viewer.Scene(server, env, torch.tensor([[*position, 0.0, 0.0, 0.0, 1.0]])), server


@pytest.mark.parametrize("end", [(0.1, 0.2, 0.3), (0.5, -0.3, 0.3), (0.1, 0.2, -0.4)])  # a ball; slanted; upside down
def test_a_capsule_is_all_points_at_its_radius_from_the_line(end):
    start, radius = np.array([0.1, 0.2, 0.3]), 0.05
    _, server = scene_of([Capsule(0, tuple(start), end, radius)])
    vertices, axis = server.nodes["/world/link_0/shape_0"].vertices, end - start
    along = ((vertices - start) @ axis / max(axis @ axis, 1e-9)).clip(0.0, 1.0)
    distance = np.linalg.norm(vertices - start - along[:, None] * axis, axis=1)
    assert np.allclose(distance, radius, atol=1e-5)
    assert np.allclose(vertices.min(0), np.minimum(start, end) - radius, atol=2e-3)  # 24 sections: 1 % of the radius
    assert np.allclose(vertices.max(0), np.maximum(start, end) + radius, atol=2e-3)


def test_a_box_has_its_size_and_place():
    _, server = scene_of([Box(0, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))])
    box = server.nodes["/world/link_0/shape_0"]
    assert np.allclose(box.dimensions, (0.8, 1.0, 1.2)) and box.position == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("up", [1, 2])
def test_the_ground_is_flat_checkered_and_seen_from_above(up):
    scene, server = scene_of(gravity=tuple(-9.81 * (k == up) for k in range(3)))
    assert np.allclose(server.up, np.eye(3)[up])
    centers = []
    for parity in range(2):
        tiles = server.nodes[f"/world/ground/tiles_{parity}"]
        corners = tiles.vertices[tiles.faces]
        assert np.allclose(corners[..., up], 0.0, atol=1e-5)
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        assert np.allclose(normals, np.eye(3)[up], atol=1e-5)  # two triangles of a square metre
        centers.append(np.delete(tiles.vertices.reshape(-1, 4, 3).mean(1), up, axis=1))
    for parity, tiles in enumerate(centers):
        assert len(np.unique(np.floor(tiles).sum(1) % 2)) == 1, parity
    assert len(np.unique(np.concatenate(centers).round(1), axis=0)) == viewer.TILES_PER_SIDE**2
    camera = server.initial_camera
    assert np.allclose(camera.look_at, 0.5 * np.eye(3)[up], atol=1e-6)
    assert np.linalg.norm(camera.position - camera.look_at) == pytest.approx(4.0)
    assert (camera.position - camera.look_at)[up] == pytest.approx(4.0 * VIEW[1])  # as steeply as in the pictures


@pytest.mark.parametrize("follow", [True, False])
def test_the_ground_stays_under_the_robot_and_the_camera_moves_along_if_wanted(follow):
    scene, server = scene_of(position=(7.3, 0.6, -3.9))
    scene.show(0, follow)
    world, ground, link = (server.nodes[name].position for name in ("/world", "/world/ground", "/world/link_0"))
    assert np.allclose(link, (7.3, 0.6, -3.9))
    assert np.allclose(world, (-7.3, 0.0, 3.9) if follow else 0.0)
    assert np.allclose(ground, (6.0, 0.0, -4.0))  # whole pairs of tiles, which look the same
    assert np.allclose(server.nodes["/world/link_0"].wxyz, (1.0, 0.0, 0.0, 0.0))


def recording(html):
    """The messages (time in s, content) that viser has put into the page, and how long they last."""
    (data,) = re.findall(r'window\.__VISER_EMBED_DATA__="([^"]+)"', html)
    payload = zstandard.ZstdDecompressor().decompressobj().decompress(base64.b64decode(data)[8:])
    size = int.from_bytes(payload[:8], "little")
    content = msgspec.msgpack.decode(payload[8 : 8 + size])
    return content["messages"], content["durationSeconds"]


def test_a_recording_is_one_file_with_the_robot_in_motion(tmp_path):
    flags = "--env-id ant --seed 3 --record out.html".split()
    options = {"cwd": tmp_path, "env": ENVIRONMENT, "text": True, "capture_output": True, "timeout": 240}
    output = subprocess.run([*COMMAND, *flags], **options)
    assert output.returncode == 0, output.stderr
    env = envs.make("ant")
    poses = viewer.untrained_episode(env, "random", seed=3)
    assert output.stdout == f"{len(poses)} frames: out.html\n"
    html = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert len(html) < 2_000_000
    assert all(source.startswith("data:") for source in LOADED.findall(html))
    assert set(re.findall(r"https?://[^/\s\"'`]+", html)) <= {"http://www.w3.org"}  # the name of a format
    messages, duration = recording(html)
    assert duration == pytest.approx(len(poses) / 30)
    named = {message["name"] for _, message in messages if "name" in message}
    shapes = env.articulation.shapes
    assert {f"/world/link_{shape.link}/shape_{k}" for k, shape in enumerate(shapes)} <= named
    torso = [
        message["position"]
        for _, message in messages
        if message["type"] == "SetPositionMessage" and message["name"] == "/world/link_0"
    ]
    assert np.allclose(torso[-len(poses) :], poses[:, :3], atol=1e-5)
    assert np.ptp(poses[:, 1].numpy()) > 0.05  # it has fallen


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_policy_is_the_one_that_the_script_evaluates(name, tmp_path, monkeypatch):
    script = importlib.import_module(name)
    args = script.Args(env_id="cartpole")
    env = envs.make("cartpole", seed=5 + 1_000_000)
    torch.manual_seed(0)
    sizes = env.num_obs, env.num_actions
    actor = script.Actor(*sizes, args) if name == "reppo_continuous" else script.Actor(*sizes)
    normalizer = script.ObsNormalizer(env.num_obs)
    normalizer.update(torch.randn(100, env.num_obs))
    state = {"script": f"{name}.py", "args": asdict(args), "global_step": 7}
    state |= {"actor": actor.state_dict(), "normalizer": normalizer.state_dict()}
    torch.save(state, tmp_path / "checkpoint.pt")

    expected = []
    obs, _ = env.reset()
    with torch.no_grad():
        for t in range(env.max_episode_steps):
            if t % 2 == 0:
                expected.append(env.joint_q[0])
            mean, _ = actor(normalizer(obs))
            obs, *_ = env.step(mean if name == "ppo_continuous" else torch.tanh(mean))
    monkeypatch.setattr(sys, "argv", [])  # the viewer sets it for the script
    loaded = viewer.load_checkpoint(str(tmp_path / "checkpoint.pt"))
    poses = viewer.trained_episode(loaded, str(tmp_path / "checkpoint.pt"), seed=5)
    assert torch.equal(poses, torch.stack(expected))
    assert script.envs is envs  # the script that others have imported is left alone
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


def test_the_live_replay_serves_a_page_and_ends_with_ctrl_c(tmp_path):
    flags = "--env-id cartpole --actions zero --port 0".split()
    options = {"cwd": tmp_path, "env": ENVIRONMENT, "text": True, "stdout": subprocess.PIPE}
    # where the tests run in a shell's background, Ctrl-C is ignored, and children inherit that
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen([*COMMAND, *flags], **options)
    watchdog = threading.Timer(240, process.kill)  # ends the lines of one that never prints its address
    watchdog.start()
    try:
        addresses = (re.search(r"http://localhost:\d+", line) for line in process.stdout)
        address = next((match[0] for match in addresses if match), None)
        assert address is not None
        assert b"<html" in urllib.request.urlopen(address, timeout=120).read()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 130
    finally:
        watchdog.cancel()
        process.kill()


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """Writes a checkpoint.pt with this content to the current folder."""
    monkeypatch.chdir(tmp_path)
    return lambda content: torch.save(content, "checkpoint.pt")


@pytest.mark.parametrize(
    "flags, content, message",
    [
        ("", {}, r"--env-id: expected a task"),
        ("--env-id ant --record missing/out.html", {}, r"--record: expected a file in an existing folder, got 'miss"),
        ("--env-id ant --seed -1", {}, r"--seed: expected 0 or more, got -1"),
        ("--checkpoint none.pt", {}, r"--checkpoint: expected .*, got 'none.pt' \(FileNotFoundError"),
        ("--checkpoint checkpoint.pt", {"actor": 1}, r"--checkpoint: expected .*, got 'checkpoint.pt' \(KeyError"),
        ("--checkpoint checkpoint.pt", {"script": "../x.py", "args": {"env_id": "ant"}}, r"written by \.\./x\.py for"),
        ("--checkpoint checkpoint.pt", {"script": SCRIPTS[0] + ".py", "args": {"env_id": "bat"}}, r"for bat\)"),
        (
            "--checkpoint checkpoint.pt --env-id hopper",
            {"script": SCRIPTS[0] + ".py", "args": {"env_id": "ant"}},
            r"--env-id: expected ant, the task of --checkpoint, got hopper",
        ),
    ],
)
def test_wrong_input_is_refused_in_one_sentence(flags, content, message, checkpoint, monkeypatch, capsys):
    checkpoint(content)
    monkeypatch.setattr(sys, "argv", ["viewer", *flags.split()])
    with pytest.raises(SystemExit, match="2"):
        viewer.main()
    error = capsys.readouterr().err
    assert re.search(message, error) and error.startswith("error: ") and error.count("\n") == 1


def test_a_missing_viser_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["viewer", "--env-id", "ant"])
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(SystemExit, match="2"):
        viewer.main()
    assert capsys.readouterr().err == "error: viser: expected to be installed (pip install viser), got none\n"


def test_an_unknown_task_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["viewer", "--env-id", "bat"])
    with pytest.raises(SystemExit, match="2"):
        viewer.main()
    assert "--env-id" in capsys.readouterr().err
