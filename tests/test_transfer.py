"""Policies in MuJoCo's own physics: the same observations and torques as here, and the rows that the command writes."""

import csv
import importlib
import sys
import warnings

import numpy as np
import pytest
import torch
from robot_files import find

import envs

mujoco = pytest.importorskip("mujoco")
transfer = pytest.importorskip("benchmarks.transfer")

GO1 = "mjlab/unitree_go1/xmls/go1.xml"


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def go1(num_envs=2):
    """Our go1 in a state of its reset, and MuJoCo's model of it."""
    env = envs.make("go1", num_envs=num_envs)
    env.reset(seed=3)
    return env, transfer.Mujoco(env, str(find(GO1)))


def random_policy(path, env_id):
    """A checkpoint of RPO's networks with random weights."""
    script, task = importlib.import_module("rpo_continuous"), envs.task(env_id)
    torch.manual_seed(0)
    actor, normalizer = script.Actor(task.num_obs, task.num_actions), script.ObsNormalizer(task.num_obs)
    state = {"actor": actor.state_dict(), "normalizer": normalizer.state_dict(), "script": "rpo_continuous.py"}
    state |= {"args": {"env_id": str(env_id), "seed": 1, "num_envs": 2, "num_steps": 4}, "iteration": 1}
    state |= {"env": {}, "episodes": [], "process": [1, "cpu", 1], "rng": torch.get_rng_state(), "cuda_rng": []}
    torch.save(state, path)
    return path


def run(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["transfer", *map(str, flags)])
    monkeypatch.setattr(transfer, "write_rows", write_rows)
    transfer.main()


def write_rows(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_the_observation_of_mujocos_state_is_ours():
    """There and back; and its parts against what MuJoCo itself says of the trunk."""
    env, world = go1()
    data = [world.start(*state) for state in zip(env.joint_q, env.joint_qd)]
    action = torch.linspace(-1.0, 1.0, 24).reshape(2, 12)
    obs = env.observe(*world.states(data), action)
    assert torch.allclose(obs, env.observe(env.joint_q, env.joint_qd, action), atol=1e-5)
    turn, trunk = transfer.mjcf.TO_Y_UP, data[1].body("trunk")
    velocity = np.zeros(6)
    kind = mujoco.mjtObj.mjOBJ_XBODY  # at the body's origin; OBJ_BODY is its centre of mass
    mujoco.mj_objectVelocity(world.model, data[1], kind, trunk.id, velocity, 0)
    assert obs[1, 0].item() == pytest.approx(trunk.xpos[2], abs=1e-5)
    assert np.allclose(obs[1, 5:8], turn @ velocity[3:], atol=1e-5)
    assert np.allclose(obs[1, 8:11], turn @ velocity[:3], atol=1e-5)
    assert np.allclose(obs[1, 11:23], data[1].qpos[7:], atol=1e-5)
    assert np.allclose(10.0 * obs[1, 23:35], data[1].qvel[6:], atol=1e-4)
    assert obs[1, 35].item() == pytest.approx(trunk.xmat[8], abs=1e-5)


def test_the_torques_of_mujocos_servos_are_ours():
    """Also where the motor is at its limit, and with the rotors' inertia."""
    env, world = go1()
    env.joint_qd[1, 6 + 2] = -20.0
    action = torch.linspace(1.0, -1.0, 24).reshape(2, 12)
    expected = env.torques(env.observe(env.joint_q, env.joint_qd, action), action)
    assert expected[1, 2] == pytest.approx(35.55)
    for row, controls in enumerate(world.controls(action)):
        data = world.start(env.joint_q[row], env.joint_qd[row])
        data.ctrl = controls
        mujoco.mj_forward(world.model, data)
        assert np.allclose(data.actuator_force, expected[row], atol=1e-3)
    armature = [link.armature for link in env.articulation.links[1:]]
    assert np.allclose(world.model.dof_armature[6:], armature)
    assert world.num_steps * world.model.opt.timestep == pytest.approx(env.dt)


def test_go1_stands_on_the_friction_of_its_task():
    env, world = go1()
    data = world.start(*(x[0] for x in env.rest_state()))
    data.qpos[2] -= 0.01
    mujoco.mj_forward(world.model, data)
    assert data.ncon >= 4
    assert all(contact.friction[0] == pytest.approx(env.articulation.contacts[0].friction) for contact in data.contact)


def test_a_state_that_blows_up_counts_as_a_fall(tmp_path, monkeypatch):
    """MuJoCo would put it back to its start, and count on."""
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log
    env, world = go1()
    joint_q, joint_qd = env.rest_state()
    joint_qd[0] = torch.nan
    env.max_episode_steps = 5
    episodes = transfer.mujocos(env, lambda obs: torch.zeros(2, 12), (joint_q, joint_qd), world)
    assert episodes.fell.tolist() == [True, False] and episodes.lengths.tolist() == [1, 5]
    assert np.isfinite(episodes.returns).all() and np.isfinite(episodes.distances).all()


@pytest.mark.parametrize("env_id, file", [("go1", GO1), ("gymnasium/hopper.xml", "gymnasium/hopper.xml")])
def test_rows_are_those_of_the_documentation(tmp_path, monkeypatch, capsys, env_id, file):
    env_id, xml = str(find(env_id)) if "/" in env_id else env_id, str(find(file))
    monkeypatch.setattr(envs.task(env_id), "max_episode_steps", 5)
    checkpoint = random_policy(tmp_path / "checkpoint.pt", env_id)
    run(monkeypatch, "--checkpoint", checkpoint, "--xml", xml, "--num-envs", 2, "--output", tmp_path / "rows.csv")
    rows = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    assert [row["simulator"] for row in rows] == ["ours"] * 2 + ["MuJoCo"] * 2 and tuple(rows[0]) == transfer.COLUMNS
    assert all(row["length"] == "5" and row["fell"] == "0" for row in rows)
    for here, there in zip(rows[:2], rows[2:]):  # in a tenth of a second the two simulators do much the same
        assert float(here["return"]) == pytest.approx(float(there["return"]), abs=1.0)
        assert float(here["distance"]) == pytest.approx(float(there["distance"]), abs=0.03)
    output = capsys.readouterr().out
    assert "ours: return" in output and "MuJoCo: return" in output and "0 of 2 fell" in output


BOX = """<mujoco><compiler autolimits="true"/><default><geom contype="0" conaffinity="0"/></default><worldbody>
<body pos="0 0 0.3"><freejoint/><geom type="box" size="0.2 0.1 0.05" mass="3"/>{legs}</body></worldbody></mujoco>"""
LEG = """<body pos="{x} {y} 0"><joint name="leg{k}" axis="0 1 0" range="-60 60" damping="1" actuatorfrcrange="-5 5"/>
<geom type="capsule" size="0.02" fromto="0 0 0 0 0 -0.25" mass="0.2" contype="1" conaffinity="1"/></body>"""


def test_a_file_without_ground_and_actuators_has_both_in_mujoco(tmp_path):
    """As in most files of robots; actuators come from the joints' largest forces, as in every URDF file."""
    places = [(x, y) for x in (-0.15, 0.15) for y in (-0.08, 0.08)]
    legs = "".join(LEG.format(x=x, y=y, k=k) for k, (x, y) in enumerate(places))
    (tmp_path / "robot.xml").write_text(BOX.format(legs=legs))
    env = envs.make(str(tmp_path / "robot.xml"), num_envs=2)
    world, policy = transfer.Mujoco(env, None), lambda obs: 0.1 * torch.ones(2, 4)
    env.max_episode_steps = 25
    here, start = transfer.ours(env, policy, 1)
    there = transfer.mujocos(env, policy, start, world)
    assert not here.fell.any() and not there.fell.any()
    data = world.start(*(x[0] for x in start))
    world.apply(data, world.controls(torch.full((2, 4), 0.5))[0])
    assert np.allclose(data.qfrc_applied, [0.0] * 6 + [2.5] * 4)


def test_gymnasiums_reward_is_its_own(tmp_path, monkeypatch):
    """Hopper-v5: one for every control step on its feet, with an end of its own."""
    hopper = str(find("gymnasium/hopper.xml"))
    monkeypatch.setattr(envs.task(hopper), "max_episode_steps", 5)
    checkpoint = random_policy(tmp_path / "checkpoint.pt", hopper)
    flags = ("--num-envs", 2, "--gymnasium", "Hopper-v5", "--output", tmp_path / "rows.csv")
    run(monkeypatch, "--checkpoint", checkpoint, *flags)
    rows = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))[4:]
    assert [row["simulator"] for row in rows] == ["Gymnasium Hopper-v5"] * 2
    assert all(int(row["length"]) > 5 and row["fell"] == "1" for row in rows)  # it goes on until it falls
    for row in rows:  # healthy reward 1, forward velocity, less the controls' squares
        mean_speed = float(row["distance"]) / (0.02 * int(row["length"]))
        assert float(row["return"]) == pytest.approx(int(row["length"]) * (1.0 + mean_speed), rel=0.1)


@pytest.mark.parametrize(
    "env_id, xml, words",
    [
        ("go1", None, "--xml: expected go1's MJCF file, got none"),
        ("go1", "nowhere.xml", "--xml: expected an MJCF or URDF file, got 'nowhere.xml', which is not there"),
        ("go1", "gymnasium/ant.xml", "--xml: expected the robot of the policy, trunk, FR_hip"),
        ("cartpole", "gymnasium/ant.xml", "--checkpoint: expected a policy of go1 or of a robot's file, got one of"),
    ],
)
def test_another_robot_is_refused_in_a_sentence(tmp_path, monkeypatch, capsys, env_id, xml, words):
    checkpoint = random_policy(tmp_path / "checkpoint.pt", env_id)
    flags = [] if xml is None else ["--xml", find(xml) if "/" in xml else xml]
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "--checkpoint", checkpoint, *flags)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and words in error and error.count("\n") == 1, error


@pytest.mark.parametrize(
    "name, words",
    [
        ("Hopper-v999", "--gymnasium: expected an environment of Gymnasium such as Ant-v5, got 'Hopper-v999': "),
        (
            "Ant-v5",
            "--gymnasium: expected one of the policy's robot with 6 coordinates, 6 velocities and 3 motors, got",
        ),
        ("Ant-v3", "--gymnasium: expected an environment of Gymnasium such as Ant-v5, got 'Ant-v3': "),
        ("nowhere:Ant-v5", "--gymnasium: expected an environment of Gymnasium such as Ant-v5, got 'nowhere:Ant-v5': "),
        ("CartPole-v1", "got CartPole-v1 with no model of MuJoCo"),
    ],
)
def test_another_environment_of_gymnasium_is_refused_before_the_episodes(tmp_path, monkeypatch, capsys, name, words):
    monkeypatch.setattr(transfer, "ours", None)  # which would end in an error
    checkpoint = random_policy(tmp_path / "checkpoint.pt", str(find("gymnasium/hopper.xml")))
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "--checkpoint", checkpoint, "--gymnasium", name)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and words in error and error.count("\n") == 1, error
