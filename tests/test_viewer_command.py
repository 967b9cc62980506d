"""The replay as a command: whose policy moves the robot, one HTML file or a live page, wrong input."""

import base64
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import zstandard

import envs
from envs import viewer

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
COMMAND = [sys.executable, "-m", "envs.viewer"]
LOADED = re.compile(r"""<(?:script|link|img|iframe)\s[^>]*?(?:src|href)\s*=\s*["']?([^"'\s>]+)""")


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
    poses = viewer.poses_of_episode(env, viewer.random_actions(env), seed=3)
    assert output.stdout == f"{len(poses)} frames of random actions: out.html\n"
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


def test_the_episode_is_that_of_an_evaluation():
    def policy(obs):
        return torch.tanh(obs[:, 2:3] + torch.randn(len(obs), 1))

    env, expected = envs.make("cartpole", max_episode_steps=21), []
    poses = viewer.poses_of_episode(env, policy, seed=5)
    obs, _ = env.reset(seed=5 + 1_000_000)
    torch.manual_seed(5)
    for t in range(21):
        if t % 2 == 0:
            expected.append(env.joint_q[0])
        obs, *_ = env.step(policy(obs))
    assert torch.equal(poses, torch.stack(expected))


def test_the_policy_is_that_of_the_checkpoint(saved_run, monkeypatch):
    torch.save(saved_run, "checkpoint.pt")
    monkeypatch.setattr(sys, "argv", ["viewer", "--checkpoint", "checkpoint.pt"])
    args, policy = viewer.parse_args()
    expected, _ = envs.load_policy("checkpoint.pt", deterministic=True)
    obs = torch.randn(4, 5)
    assert args.env_id == "cartpole" and torch.equal(policy(obs), expected(obs))


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


@pytest.mark.parametrize(
    "flags, message",
    [
        ("", r"--env-id: expected a task"),
        ("--env-id ant --record missing/out.html", r"--record: expected a file in an existing folder, got 'miss"),
        ("--env-id ant --record folder", r"--record: expected a file in an existing folder, got 'folder'"),
        ("--env-id ant --record=", r"--record: expected a value, got ''"),
        ("--env-id ant --seed -1", r"--seed: expected 0 to 4294967295, got -1"),
        ("--env-id ant --seed 4294967296", r"--seed: expected 0 to 4294967295, got 4294967296"),
        ("--env-id ant --port 70000", r"--port: expected 0 to 65535, got 70000"),
        ("--env-id ant --port -1", r"--port: expected 0 to 65535, got -1"),
        ("--env-id ant --host=", r"--host: expected a value, got ''"),
        ("--env-id ant --host 999.1.1.1", r"--host: expected a name or an address of this machine, got '999.1.1.1'"),
        ("--env-id ant --host 192.0.2.1", r"--host: expected a name or an address of this machine, got '192.0.2.1'"),
        ("--env-id ant --host a..b", r"--host: expected a name or an address of this machine, got 'a..b'"),
        ("--env-id ant --record out.html --port 9", r"--port: expected none beside --record, where nothing is served"),
        ("--env-id ant --record out.html --host ::1", r"--host: expected none beside --record"),
        ("--env-id ant --follow=no", r"--follow: expected --follow or --no-follow without a value, got 'no'"),
        ("--checkpoint=", r"--checkpoint: expected a value, got ''"),
        ("--checkpoint none.pt", r"--checkpoint: expected .*, got 'none.pt' \(there is no such file"),
        ("--checkpoint checkpoint.pt --actions zero", r"--actions: expected none beside --checkpoint, .*, got zero"),
        ("--checkpoint checkpoint.pt --env-id ant", r"--env-id: expected cartpole, the task of --checkpoint, got ant"),
    ],
)
def test_wrong_input_is_refused_in_one_sentence(flags, message, saved_run, monkeypatch, capsys):
    torch.save(saved_run, "checkpoint.pt")
    Path("folder").mkdir()
    monkeypatch.setattr(sys, "argv", ["viewer", *flags.split()])
    with pytest.raises(SystemExit, match="2"):
        viewer.main()
    error = capsys.readouterr().err
    assert re.search(message, error) and error.startswith("error: ") and error.count("\n") == 1


def test_a_port_that_is_taken_is_refused(monkeypatch, capsys):
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["viewer", "--env-id", "ant", "--host", "127.0.0.1", "--port", str(port)])
        with pytest.raises(SystemExit, match="2"):
            viewer.parse_args()
    assert f"--port: expected a free port, or 0 for any, got {port}" in capsys.readouterr().err
    assert viewer.parse_args()[0].port == port


def test_a_missing_viser_is_named(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["viewer", "--env-id", "ant"])
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(SystemExit, match="^error: viser is not installed: pip install viser$"):
        viewer.main()


def test_an_unknown_task_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["viewer", "--env-id", "bat"])
    with pytest.raises(SystemExit, match="2"):
        viewer.main()
    assert "--env-id" in capsys.readouterr().err
