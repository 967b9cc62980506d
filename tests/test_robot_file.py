"""The task of a robot from a file: what the docstring of robot_file.py promises, and a whole run of a script."""

import gc
import re
import warnings

import numpy as np
import pytest
import torch
from robot_files import find
from running import run_here

import envs
from envs import mjcf
from envs.robot_file import RobotFile

mujoco = pytest.importorskip("mujoco")

FILES = ("gymnasium/ant.xml", "gymnasium/hopper.xml")
OTHERS = ("gymnasium/half_cheetah.xml", "gymnasium/walker2d.xml", "gymnasium/humanoid.xml")

# a trunk 0.3 m above the ground on a leg with a position servo, and an arm with a motor
SERVO = """<mujoco><compiler angle="radian" autolimits="true"/><worldbody><body name="trunk" pos="0 0 0.3"><freejoint/>
<geom size="0.05" mass="2"/><body><joint name="leg" axis="0 1 0" range="-2 1"/><geom type="capsule" size="0.02"
fromto="0 0 0 0 0 -0.28" mass="0.3"/></body><body><joint name="arm" axis="0 1 0" armature="0.01"/><geom size="0.03"
mass="0.1"/></body></body></worldbody><actuator><position name="p" joint="leg" kp="20" kv="1" ctrlrange="-2 1"/>
<motor name="m" joint="arm" ctrlrange="-1 3"/></actuator>{}</mujoco>"""
KEY = '<keyframe><key qpos="0 0 0.4 1 0 0 0 0.8 0"/></keyframe>'


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*left out")
        warnings.filterwarnings("ignore", message=".*settotalmass")
        yield


@pytest.fixture
def servo_file(tmp_path):
    (tmp_path / "servo.xml").write_text(SERVO.format(KEY))
    return str(tmp_path / "servo.xml")


@pytest.mark.parametrize("name", FILES + OTHERS)
def test_full_actions_do_not_blow_a_robot_up(name):
    """At the number of substeps that the importer proposes: Gymnasium's ant is a light torso on strong motors."""
    env, generator = envs.make(str(find(name)), num_envs=64), torch.Generator().manual_seed(0)
    env.reset()
    for _ in range(300):
        _, reward, _, _, infos = env.step(2.0 * torch.rand(64, env.num_actions, generator=generator) - 1.0)
        assert reward.min() > -100.0 and env.joint_qd.abs().max() < 100.0
    assert infos["diverged"] == 0


@pytest.mark.parametrize("name", FILES)
def test_observation(name):
    env = envs.make(str(find(name)))
    env.reset()
    robot, rng = env.robot, np.random.default_rng(0)
    data = mujoco.MjData(robot.model)
    data.qpos = robot.start_qpos
    mujoco.mj_integratePos(robot.model, data.qpos, 0.4 * rng.normal(size=robot.model.nv), 1.0)
    data.qvel = rng.normal(size=robot.model.nv)
    mujoco.mj_forward(robot.model, data)
    action = torch.linspace(-1, 1, env.num_actions)[None]
    q, qd = (torch.tensor(x, dtype=torch.float32)[None] for x in robot.from_mujoco(data.qpos, data.qvel))
    obs = env.observe(q, qd, action)[0].numpy()
    body = mujoco.mj_name2id(robot.model, mujoco.mjtObj.mjOBJ_BODY, "torso")
    velocity = np.zeros(6)
    mujoco.mj_objectVelocity(robot.model, data, mujoco.mjtObj.mjOBJ_BODY, body, velocity, 0)
    spin = velocity[:3]
    if name == "gymnasium/ant.xml":
        speed = data.qvel[:3]
    else:
        speed = np.array([data.qvel[0], 0.0, data.qvel[1]])
    R, turn = data.xmat[body].reshape(3, 3), mjcf.TO_Y_UP
    assert obs[0] == pytest.approx(data.xpos[body, 2], abs=1e-5)
    assert np.allclose(obs[1:4], turn @ R[:, 0], atol=1e-5) and np.allclose(obs[4:7], turn @ R[:, 2], atol=1e-5)
    assert np.allclose(obs[7:10], turn @ speed, atol=1e-5) and np.allclose(obs[10:13], turn @ spin, atol=1e-5)
    n, root = len(q[0]) - env.num_root[0], env.num_root
    assert np.allclose(obs[13 : 13 + n], q[0, root[0] :]) and np.allclose(
        obs[13 + n : 13 + 2 * n], 0.1 * qd[0, root[1] :]
    )
    assert np.allclose(obs[13 + 2 * n :], action[0]) and len(obs) == env.num_obs


def test_reward_and_termination():
    env = envs.make(str(find("gymnasium/hopper.xml")))
    assert env.start_height == pytest.approx(1.25) and env.wanted_speed == pytest.approx(0.5 * (9.81 * 1.25) ** 0.5)
    obs, v = torch.zeros(1, env.num_obs), env.wanted_speed
    obs[0, [0, 1, 5, 7, 9]] = torch.tensor([1.2, 0.8, 0.9, 0.5 * v, 0.1 * v])
    action = torch.full((1, 3), 0.5)
    assert env.reward(obs, action).item() == pytest.approx(2.0 - 0.26 - 0.1 - 0.2 - 0.025, abs=1e-5)
    for height, up, falls in ((1.2, 0.9, False), (0.6, 0.9, True), (1.2, 0.49, True)):
        obs[0, [0, 5]] = torch.tensor([height, up])
        assert env.is_terminal(obs).item() == falls
    faster = envs.make(str(find("gymnasium/hopper.xml")), wanted_speed=3.0)
    assert faster.wanted_speed == 3.0 and env.wanted_speed == v
    for wrong in (-1, "fast", float("nan"), True, 1e300):
        with pytest.raises(
            ValueError, match=f"wanted_speed: expected a number above 0 .*, got {re.escape(repr(wrong))}"
        ):
            envs.make(str(find("gymnasium/hopper.xml")), wanted_speed=wrong)


@pytest.mark.parametrize("name", FILES)
def test_reset(name):
    env = envs.make(str(find(name)), num_envs=512)
    obs, _ = env.reset()
    h = env.start_height
    assert obs[:, 0].min() >= h - 1e-5 and obs[:, 0].max() <= 1.05 * h and obs[:, 0].max() > 1.045 * h
    assert env.joint_qd.abs().max() <= 0.25 and env.joint_qd.abs().max() > 0.245
    noise = (env.joint_q - env.rest_state()[0])[:, env.num_root[0] :]
    assert noise.abs().max() <= 0.05 + 1e-6 and (noise.abs().amax(0) > 0.048).all()
    tilt = torch.arccos(obs[:, 5].clamp(max=1.0))
    assert tilt.max() < 0.09 and tilt.max() > 0.045
    lowest = [link.limits[0] for link in env.articulation.links if link.limits[0] > -1e5]
    assert len(lowest) > 0  # the start is within the limits of the joints
    angles = env.rest_state()[0][0, env.num_root[0] :]
    limits = torch.tensor([link.limits for link in env.articulation.links if link not in env.root and any(link.axis)])
    assert (angles >= limits[:, 0] - 1e-6).all() and (angles <= limits[:, 1] + 1e-6).all()


def test_servos_are_centred_on_the_start_pose(servo_file):
    """Action 0 holds the pose of the keyframe; +-1 moves the target by 0.5 rad, but not beyond its range."""
    env = envs.make(servo_file)
    assert env.start_height == pytest.approx(0.4) and env.rest_state()[0][0, 7:].tolist() == pytest.approx([0.8, 0.0])
    for action, control, torque in ((0.0, 0.8, 1.0), (-1.0, 0.3, -1.0), (1.0, 1.0, 3.0)):
        joint_act = env.actuate(torch.full((1, 2), action))
        assert joint_act[0].tolist() == pytest.approx([0.0] * 6 + [20.0 * control, torque], abs=1e-5)


@pytest.mark.parametrize(
    "actuator",
    [
        '<position joint="leg" kp="20" ctrlrange="-2 2"/>',
        '<position joint="leg" kp="1" gear="10" ctrlrange="-20 20"/>',
        '<position joint="leg" kp="1" gear="-4"/>',
        '<general joint="leg" biastype="affine" gainprm="78.5" biasprm="26.2 -100 -1" ctrlrange="-3 3"/>',
    ],
)
def test_a_servo_moves_by_half_a_radian_whatever_its_gear_and_gain(tmp_path, actuator):
    """At each of these angles MuJoCo's servo has no force, with the control of this action."""
    text = SERVO.format(KEY).replace('<position name="p" joint="leg" kp="20" kv="1" ctrlrange="-2 1"/>', actuator)
    (tmp_path / "robot.xml").write_text(text.replace('range="-2 1"/>', 'range="-2 2"/>', 1))
    env = envs.make(str(tmp_path / "robot.xml"))
    data = mujoco.MjData(env.robot.model)
    for action, angle in ((0.0, 0.8), (-1.0, 0.3), (1.0, 1.3)):
        toward = -action if 'gear="-4"' in actuator else action  # a negative gear turns the other way
        data.qpos, data.ctrl = env.robot.start_qpos, env.controls(torch.full((1, 2), toward))[0].numpy()
        data.qpos[7] = angle
        mujoco.mj_forward(env.robot.model, data)
        assert data.qfrc_actuator[6] == pytest.approx(0.0, abs=1e-4)


def test_gradients_reach_the_actions(servo_file):
    env = envs.make(servo_file, num_envs=2)
    env.reset()
    action = torch.zeros(2, 2, requires_grad=True)
    total = sum(env.step(action)[1].sum() for _ in range(5))
    (gradient,) = torch.autograd.grad(total, action)
    assert gradient.isfinite().all() and (gradient != 0.0).all()


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("<actuator>", "<actuator><!--", None),
        ("<freejoint/>", "", ["root has a free joint, or slides and then hinges", "got a body without a name, a body"]),
        ("<freejoint/>", '<joint/><joint type="slide"/>', ["slides and then hinges"]),
        ("<worldbody>", '<option gravity="0 0 0"/><worldbody>', ["gravity that points down", "got (0.0, 0.0, 0.0)"]),
        (
            "<worldbody>",
            '<option><flag gravity="disable"/></option><worldbody>',
            ["points down", "got (0.0, 0.0, 0.0)"],
        ),
        ("<worldbody>", '<default><geom contype="2" conaffinity="2"/></default><worldbody>', ["touches the ground"]),
        ("</worldbody>", '<body pos="1 0 0"><freejoint/><geom size="0.1"/></body></worldbody>', ["one robot"]),
    ],
)
def test_robots_that_cannot_run(tmp_path, old, new, words):
    text = SERVO.format("").replace(old, new)
    if words is None:
        text, words = SERVO.format("").split("<actuator>")[0] + "</mujoco>", ["with actuators", "got none"]
    (tmp_path / "robot.xml").write_text(text)
    with pytest.raises(ValueError) as caught:
        envs.make(str(tmp_path / "robot.xml"))
    assert all(word in str(caught.value) for word in ["path: expected", *words]), str(caught.value)


def test_a_changed_file_is_read_again(servo_file, tmp_path):
    first, same = envs.task(servo_file), envs.task(servo_file)
    assert first is same and issubclass(first, RobotFile)
    (tmp_path / "servo.xml").write_text(SERVO.format(""))
    assert envs.task(servo_file).start_height == pytest.approx(0.3)


@pytest.mark.parametrize("env_id", ("nowhere.xml", "hoper", 3))
def test_an_unknown_robot(env_id):
    with pytest.raises(ValueError, match=f"(path|env_id): expected .*got .*{env_id}"):
        envs.make(env_id)


def test_a_script_trains_it_and_goes_on(tmp_path, servo_file):
    flags = ("--env-id", servo_file, "--num-eval-envs", 2, "--num-steps", 4, "--num-envs", 8)
    output = run_here(tmp_path, "rpo", *flags, "--total-timesteps", 64)
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("servo.xml__rpo_continuous__1__") and "done: 64 steps" in output
    policy, args = envs.load_policy(folder / "checkpoint.pt")
    assert args["env_id"] == servo_file and policy(torch.zeros(3, 19)).shape == (3, 2)
    gc.collect()  # the first run is in this process, and holds its folder until it is gone
    output = run_here(tmp_path, "rpo", "--checkpoint", folder / "checkpoint.pt", "--total-timesteps", 128)
    assert "done: 128 steps" in output


@pytest.mark.parametrize(
    "env_id, words",
    [
        ("nowhere.xml", ["--env-id", "not there"]),
        ("hoper", ["--env-id", "hopper", "'hoper'", "robot's .xml or .urdf file"]),
    ],
)
def test_a_script_refuses_an_unknown_robot(tmp_path, env_id, words):
    output = run_here(tmp_path, "rpo", "--env-id", env_id, expect=2)
    assert all(word in output for word in words), output
