"""Robots from files: the same dynamics as MuJoCo's, contact and limits as documented, and what is refused by name."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from robot_files import find

from envs import mjcf
from envs.physics import Simulator
from envs.robot_file import RobotFile

mujoco = pytest.importorskip("mujoco")

GYMNASIUM = tuple(f"gymnasium/{name}.xml" for name in ("hopper", "half_cheetah", "walker2d", "ant", "humanoid"))
OTHERS = ("mjlab/unitree_go1/xmls/go1.xml", "mjlab/unitree_g1/xmls/g1.xml", "dm_control/humanoid.xml")
OTHERS += ("dm_control/walker.xml",)

# every kind of joint and actuator at once: two hinges on one body, off its origin, with ref and springref; a slide; a
# welded body; servos and motors with gear, damping, armature and clamps of the force
ALL_KINDS = """
<mujoco>
  <compiler angle="radian" autolimits="true"/>
  <option gravity="0.5 -0.3 -9"/>
  <worldbody>
    <geom type="plane" size="1 1 1"/>
    <body name="base" pos="0.1 0.2 1" quat="0.9 0.1 -0.3 0.2">
      <freejoint/>
      <inertial mass="3" pos="0.1 -0.05 0.02" fullinertia="0.05 0.04 0.06 0.01 -0.005 0.002"/>
      <body name="upper" pos="0.2 0.1 -0.1" quat="0.7 0.5 -0.1 0.3">
        <joint name="a" axis="0.6 0 0.8" pos="0.05 0 0.1" ref="0.3" springref="0.7" stiffness="4" damping="0.3"/>
        <joint name="b" axis="0 1 0" pos="-0.02 0.1 0" armature="0.02" range="-3 3"/>
        <geom type="capsule" size="0.05 0.2" mass="1.5"/>
        <body name="tool" pos="0 0 0.3" euler="0.3 0.2 0.1">
          <geom type="box" size="0.05 0.1 0.02" mass="0.4"/>
          <body name="rod" pos="0 0.1 0">
            <joint name="c" type="slide" axis="0 0 1" pos="0 0.2 0" ref="-0.1" damping="1"/>
            <geom type="sphere" size="0.1" mass="0.7"/>
          </body>
        </body>
      </body>
      <body name="arm" pos="-0.2 0 0.1">
        <joint name="d" axis="1 0 0" actuatorfrcrange="-2 2" damping="0.5"/>
        <geom type="capsule" size="0.04 0.1" mass="0.5"/>
      </body>
    </body>
  </worldbody>
  <actuator>
    <position name="servo" joint="a" kp="6" kv="0.4" gear="2" ctrlrange="-1 1"/>
    <motor name="motor" joint="b" gear="-3" ctrlrange="-1 1"/>
    <velocity name="velocity" joint="c" kv="3" ctrlrange="-1 1"/>
    <position name="clamped" joint="d" kp="20" kv="1" forcerange="-1 1" ctrlrange="-1 1"/>
    <motor name="pull" joint="c" gear="0.5" forcerange="-4 4"/>
  </actuator>
</mujoco>
"""


@pytest.fixture
def write(tmp_path):
    """A file with the given text: write(text) -> path."""

    def to_file(text, name="robot.xml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return to_file


def quiet(path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mjcf.Robot(path, **options)


def state(robot, seed, spread=0.3):
    """A random state, not far from the start, and controls in their range."""
    m, rng = robot.model, np.random.default_rng(seed)
    data = mujoco.MjData(m)
    data.qpos = robot.start_qpos
    mujoco.mj_integratePos(m, data.qpos, spread * rng.normal(size=m.nv), 1.0)
    data.qvel = rng.normal(size=m.nv)
    if m.nu:
        data.ctrl = rng.uniform(robot.actuation.low, robot.actuation.high)
    return data


def rollout(simulator, joint_q, joint_qd, act, steps):
    for t in range(steps):
        joint_q, joint_qd, diverged = simulator.step(joint_q, joint_qd, act[t])
        assert not diverged.any()
    return joint_q, joint_qd


def without_constraints(robot):
    """Neither contact nor limits nor friction in the joints, in both simulators. Returns our articulation."""
    flags = mujoco.mjtDisableBit
    robot.model.opt.disableflags |= int(flags.mjDSBL_CONSTRAINT) | int(flags.mjDSBL_EULERDAMP)
    links = [replace(link, limit_stiffness=0.0, limit_damping=0.0) for link in robot.articulation.links]
    return replace(robot.articulation, contacts=[], links=links)


def our_acceleration(robot, articulation, data):
    """The acceleration of MuJoCo's coordinates (nv,) in the state of `data`, and our link poses there."""
    joint_q, joint_qd = robot.from_mujoco(data.qpos, data.qvel)
    simulator = Simulator(articulation, 1, 1e-4, 1, 1)
    act = data.ctrl @ robot.actuation.matrix
    simulator.step(*(torch.tensor(x, dtype=torch.float32)[None] for x in (joint_q, joint_qd, act)))
    inside = simulator.batches[0].substeps[0]
    qacc, turn = inside.joint_qdd.numpy()[0].astype(float), mjcf.TO_Y_UP
    if robot.model.jnt_type[0] == mujoco.mjtJoint.mjJNT_FREE:
        p, w = joint_q[:3] * [0.0, 1.0, 0.0], joint_qd[:3]  # about the reference point
        velocity = joint_qd[3:6] + np.cross(w, joint_q[:3])
        R = np.zeros(9)
        mujoco.mju_quat2Mat(R, data.qpos[3:7])
        dw, dv = qacc[:3].copy(), qacc[3:6].copy()
        qacc[:3] = turn.T @ (dv + np.cross(dw, p) + np.cross(w, velocity))
        qacc[3:6] = R.reshape(3, 3).T @ turn.T @ dw
    return qacc, inside.link_pose.numpy()[0]


def assert_same_dynamics(robot, seeds=(0, 1, 2)):
    articulation = without_constraints(robot)
    assert sum(link.mass for link in articulation.links) == pytest.approx(robot.model.body_mass.sum(), rel=1e-9)
    for seed in seeds:
        data = state(robot, seed)
        mujoco.mj_forward(robot.model, data)
        ours, poses = our_acceleration(robot, articulation, data)
        assert np.allclose(ours, data.qacc, rtol=0.0, atol=1e-4 * np.abs(data.qacc).max())
        for body in range(1, robot.model.nbody):
            pose = poses[robot.link_of[body]]
            place = mjcf.TO_Y_UP @ (data.xpos[body] + data.xmat[body].reshape(3, 3) @ robot.shift[body])
            if robot.model.jnt_type[0] == mujoco.mjtJoint.mjJNT_FREE:
                place -= (mjcf.TO_Y_UP @ data.qpos[:3]) * [1.0, 0.0, 1.0]  # about the reference point
            elif articulation.translates_along_x:
                place[0] -= robot.from_mujoco(data.qpos, data.qvel)[0][0]
            assert np.allclose(pose[:3], place, atol=1e-5)


@pytest.mark.parametrize("name", GYMNASIUM + OTHERS)
def test_the_dynamics_are_mujocos(name):
    # without any armature G1's wrists have 1e-5 of its inertia, which costs float32 its digits
    robot = quiet(find(name), min_armature=0.01 if "g1" in name else 0.0)
    assert_same_dynamics(robot)


def test_the_dynamics_of_all_kinds_of_joints_and_actuators_are_mujocos(write):
    robot = quiet(write(ALL_KINDS))
    assert robot.actuation.names == ["servo", "motor", "velocity", "clamped", "pull"]
    assert robot.actuation.servo.tolist() == [True, False, False, True, False]
    # the last has no range of its own: what its force may be, through gain 1
    assert np.allclose(robot.actuation.low, [-1, -1, -1, -1, -4]) and np.allclose(
        -robot.actuation.low, robot.actuation.high
    )
    assert_same_dynamics(robot, seeds=range(6))


def test_a_clamped_servo_is_clamped(write):
    """Some states of the test above are clamped, and by the clamp: without it the acceleration is another."""
    robot = quiet(write(ALL_KINDS))
    data = state(robot, 0)
    data.ctrl[3] = 1.0
    data.qpos[-1] = -1.0  # 2 rad to go: 40 N m wanted, 1 allowed
    articulation = without_constraints(robot)
    mujoco.mj_forward(robot.model, data)
    ours, _ = our_acceleration(robot, articulation, data)
    assert ours[-1] == pytest.approx(data.qacc[-1], rel=1e-4)
    free = replace(articulation, links=[replace(link, effort_limit=np.inf) for link in articulation.links])
    assert our_acceleration(robot, free, data)[0][-1] > ours[-1] + 100.0


@pytest.mark.parametrize("name", ("gymnasium/hopper.xml", "gymnasium/ant.xml"))
def test_falling_like_mujoco(name):
    """0.1 s of gravity and motors, off the ground."""
    robot, h, steps = quiet(find(name)), 2.5e-4, 40
    articulation, data = without_constraints(robot), state(robot, 0, spread=0.1)
    robot.model.opt.timestep, robot.model.opt.integrator = h, mujoco.mjtIntegrator.mjINT_EULER
    joint_q, joint_qd = robot.from_mujoco(data.qpos, data.qvel)
    act = data.ctrl @ robot.actuation.matrix
    joint_q, joint_qd, act = (torch.tensor(x, dtype=torch.float32)[None] for x in (joint_q, joint_qd, act))
    simulator = Simulator(articulation, 1, 10 * h, 10, 1)
    new_q, new_qd = rollout(simulator, joint_q, joint_qd, act.repeat(steps, 1, 1), steps)
    for _ in range(10 * steps):
        mujoco.mj_step(robot.model, data)
    theirs = robot.from_mujoco(data.qpos, data.qvel)
    # ours sums up a twist about a fixed point, MuJoCo the velocity of the root's origin
    assert np.allclose(new_q[0].numpy(), theirs[0], rtol=0.0, atol=1e-3)
    assert np.allclose(new_qd[0].numpy(), theirs[1], rtol=0.0, atol=1e-2 * np.abs(theirs[1]).max())


@pytest.mark.parametrize("name", ("gymnasium/ant.xml", "gymnasium/half_cheetah.xml"))
def test_states_there_and_back(name):
    robot = quiet(find(name))
    data = state(robot, 3)
    qpos, qvel = robot.to_mujoco(*robot.from_mujoco(data.qpos, data.qvel))
    assert np.allclose(qpos, data.qpos) and np.allclose(qvel, data.qvel)


def random_actuation(robot, steps, n, seed=0):
    """(steps, n, nv): controls uniform in their range; without actuators, pushes at the joints."""
    rng, actuation = np.random.default_rng(seed), robot.actuation
    if len(actuation.names) == 0:
        act = 5.0 * rng.uniform(-1.0, 1.0, (steps, n, robot.articulation.num_dofs))
        act[..., :6] = 0.0
    else:
        act = rng.uniform(actuation.low, actuation.high, (steps, n, len(actuation.low))) @ actuation.matrix
    return torch.tensor(act, dtype=torch.float32)


@pytest.mark.parametrize("name", GYMNASIUM + OTHERS)
def test_a_thousand_steps_of_random_actions(name):
    """With the defaults of --env-id; the robots fall, lie and thrash about, gradients through 25 steps are finite."""
    robot, dt, n = quiet(find(name), min_armature=0.01 if "g1" in name else 0.0), RobotFile.dt, 2
    art, substeps = robot.articulation, robot.substeps(dt)
    simulator = Simulator(art, n, dt, substeps, substeps)
    start = torch.tensor(robot.start, dtype=torch.float32).repeat(n, 1)
    joint_q, joint_qd = start, torch.zeros(n, art.num_dofs)
    for act in random_actuation(robot, 1000, n).split(25):
        act.requires_grad_()
        joint_q, joint_qd = rollout(simulator, joint_q.detach(), joint_qd.detach(), act, len(act))
        (gradient,) = torch.autograd.grad(joint_qd.sum(), act)
        assert gradient.isfinite().all()
    # nothing has gathered energy that the motors did not give, and nobody has sunk through the ground
    assert joint_qd.abs().max() < 200.0 and joint_q[:, 1].abs().max() < 3.0


@pytest.mark.parametrize("name", GYMNASIUM + OTHERS)
def test_gradients_match_central_differences(name):
    """Of five steps on the ground, with respect to the actuation, with the defaults of --env-id."""
    robot, dt, steps = quiet(find(name), min_armature=0.01 if "g1" in name else 0.0), RobotFile.dt, 5
    art, substeps = robot.articulation, robot.substeps(dt)
    start, still = torch.tensor(robot.start, dtype=torch.float32)[None], torch.zeros(1, art.num_dofs)
    # on the ground already
    start, still = rollout(Simulator(art, 1, dt, substeps, 4), start, still, torch.zeros(30, *still.shape), 30)
    act = 0.3 * random_actuation(robot, steps, 1)
    direction = torch.randn(8, *act.shape, generator=torch.Generator().manual_seed(1)) * (act != 0.0)
    weight = torch.randn(art.num_dofs, generator=torch.Generator().manual_seed(2))

    def end(act, n):
        q, qd = start.repeat(n, 1), still.repeat(n, 1)
        return rollout(Simulator(art, n, dt, substeps, 4), q, qd, act, steps)[1] @ weight

    act.requires_grad_()
    (gradient,) = torch.autograd.grad(end(act, 1).sum(), act)
    slopes, errors = (direction * gradient).sum(dim=(1, 2, 3)).double(), []
    for size in (2e-3, 5e-4):  # curvature spoils the larger step, rounding the smaller one
        scale = size * float(act.detach().abs().max())
        shifted = torch.cat([act.detach() + k * scale * d for k in (1, -1) for d in direction], dim=1)
        plus, minus = end(shifted, 16).double().split(8)
        differences = (plus - minus) / (2.0 * scale)
        errors.append(float((slopes - differences).norm() / differences.norm()))
    assert gradient.isfinite().all() and min(errors) < 0.05, errors


BALL = """<mujoco><worldbody>{ground}<body pos="0 0 1"><freejoint/><geom size="0.1" mass="5" {ball}/></body>
</worldbody></mujoco>"""


def test_a_point_under_the_whole_weight_sinks_in_by_the_penetration(write):
    robot = quiet(write(BALL.format(ground="", ball="")), penetration=0.004, time_constant=0.02)
    simulator = Simulator(robot.articulation, 1, 1.0 / 60.0, 16, 16)
    start = torch.tensor(robot.start, dtype=torch.float32)[None]
    assert start[0, 1].item() == pytest.approx(0.1, abs=1e-6)  # its lowest point is on the ground
    joint_q, _ = rollout(simulator, start, torch.zeros(1, 6), torch.zeros(200, 1, 6), 200)
    assert joint_q[0, 1].item() == pytest.approx(0.1 - 0.004, abs=2e-4)


def test_a_limit_gives_as_documented(write):
    text = """<mujoco><worldbody><body pos="0 0 1"><joint name="z" type="slide" axis="0 0 1" range="-0.5 0.5"/>
    <geom size="0.1" mass="5" contype="0" conaffinity="0"/></body></worldbody></mujoco>"""
    robot = quiet(write(text.replace("range", "limited='true' range")), limit_give=0.02)
    start = torch.full((1, 1), -0.5)
    joint_q, _ = rollout(
        Simulator(robot.articulation, 1, 1.0 / 60.0, 16, 16), start, torch.zeros(1, 1), torch.zeros(200, 1, 1), 200
    )
    assert joint_q.item() == pytest.approx(-0.52, abs=1e-4)


def test_a_limit_holds_against_the_motor(write):
    text = """<mujoco><worldbody><body pos="0 0 1">
    <joint name="x" type="slide" axis="1 0 0" limited="true" range="-0.5 0.5"/>
    <geom size="0.1" mass="0.5" contype="0" conaffinity="0"/></body></worldbody>
    <actuator><motor joint="x" gear="200" ctrllimited="true" ctrlrange="-1 1"/></actuator></mujoco>"""
    robot = quiet(write(text), limit_give=0.02)  # it weighs 4.9 N
    start, force = torch.full((1, 1), 0.5), torch.full((200, 1, 1), 200.0)
    substeps = robot.substeps(1.0 / 60.0)
    joint_q, _ = rollout(
        Simulator(robot.articulation, 1, 1.0 / 60.0, substeps, substeps), start, torch.zeros(1, 1), force, 200
    )
    assert joint_q.item() == pytest.approx(0.52, abs=1e-4)


@pytest.mark.parametrize(
    "ground, ball, friction",
    [
        ("", "", 1.0),  # MuJoCo's default plane has 1
        ("", 'friction="0.6" priority="1"', 0.6),
        ('<geom type="plane" size="1 1 1" friction="0.3"/>', 'friction="0.6"', 0.6),  # the larger one
        ('<geom type="plane" size="1 1 1" friction="0.3" condim="1"/>', 'friction="0.6" condim="1"', 0.0),
        ('<geom type="plane" size="1 1 1" contype="2" conaffinity="2"/>', "", None),  # they do not meet
    ],
)
def test_friction_is_combined_as_in_mujoco(write, ground, ball, friction):
    contacts = quiet(write(BALL.format(ground=ground, ball=ball))).articulation.contacts
    assert [contact.friction for contact in contacts] == ([] if friction is None else [pytest.approx(friction)])


def test_a_keyframe_is_the_start(write):
    key = '<keyframe><key qpos="1 2 3 0 0 0 1"/></keyframe></mujoco>'
    robot = quiet(write(BALL.format(ground="", ball="").replace("</mujoco>", key)))
    assert np.allclose(robot.start[:3], [1.0, 3.0, -2.0])  # y up


URDF = """<robot name="two"><link name="base"><inertial><mass value="2"/><inertia ixx="0.1" iyy="0.2" izz="0.25" ixy="0"
ixz="0" iyz="0"/></inertial><collision><geometry><sphere radius="0.1"/></geometry></collision></link>
<link name="leg"><inertial><origin xyz="0 0 -0.1"/><mass value="1"/><inertia ixx="0.01" iyy="0.01" izz="0.01" ixy="0"
ixz="0" iyz="0"/></inertial></link><joint name="knee" type="revolute"><parent link="base"/><child link="leg"/>
<axis xyz="0 1 0"/><origin xyz="0 0 -0.2"/><limit lower="-1" upper="2" effort="7" velocity="5"/></joint></robot>"""


def test_urdf(write):
    """The root floats on request; a file without actuators gets motors as strong as its joints' effort."""
    robot = quiet(write(URDF, "robot.urdf"), floating=True)
    articulation, actuation = robot.articulation, robot.actuation
    base, leg = articulation.links
    assert (articulation.num_coords, base.mass, leg.mass, leg.limits) == (8, 2.0, 1.0, (-1.0, 2.0))
    assert actuation.names == ["knee"] and (actuation.low, actuation.high) == (-7.0, 7.0)
    assert actuation.matrix.tolist() == [[0.0] * 6 + [1.0]] and leg.effort_limit == 7.0
    assert [link.name for link in quiet(robot.path).links] == ["leg"]  # the base is welded to the world


# a body with one hinge, and what each name stands for
PLAIN = """<mujoco><compiler autolimits="true"/>{top}<worldbody>{world}<body name="b" pos="0 0 1"{body}><joint name="j"
{joint}/><geom size="0.1"{geom}/><site name="s"/>{inside}</body></worldbody>{end}</mujoco>"""
MOTOR = '<actuator><motor joint="j" ctrlrange="-1 1"/></actuator>'
TENDON = '<tendon><spatial name="t"{}><site site="s"/><site site="w"/></spatial></tendon>'
BODY = '<body pos="0 0 0.5"><joint/><geom size="0.1"/>{}</body>'
PID = """<extension><plugin plugin="mujoco.pid"><instance name="p"><config key="kp" value="10"/></instance></plugin>
</extension>"""
CASES = {
    "ball joint": {"joint": 'type="ball"'},
    "equality constraint": {"end": '<equality><joint joint1="j"/></equality>'},
    "tendon with a force": {"world": '<site name="w"/>', "end": TENDON.format(' stiffness="3"')},
    "actuator not on a hinge or slide": {"end": '<actuator><motor site="s" ctrlrange="-1 1"/></actuator>'},
    "actuator with a state or a delay": {
        "end": '<actuator><general joint="j" dyntype="filter" dynprm="0.1" ctrlrange="-1 1"/></actuator>'
    },
    "actuator with a varying gain": {
        "end": '<actuator><general joint="j" gaintype="affine" gainprm="1 2 3" ctrlrange="-1 1"/></actuator>'
    },
    "actuator with a constant force": {
        "end": '<actuator><general joint="j" biastype="affine" biasprm="1 0 0" ctrlrange="-1 1"/></actuator>'
    },
    "gravity compensation": {"body": ' gravcomp="1"'},
    "fluid": {"top": '<option density="1000"/>'},
    "spring or damper that is not linear": {"joint": 'damping="1 2"'},
    "spring of a free joint": {"joint": 'type="free" stiffness="7"'},
    "adhesion": {"geom": ' adhesion="50"'},
    "moving surface": {"geom": ' surfacevel="1 0 0 0 0 0"'},
    "override of contact parameters": {"top": '<option><flag override="enable"/></option>'},
    "plugin": {"top": PID, "end": '<actuator><plugin joint="j" plugin="mujoco.pid" instance="p"/></actuator>'},
    "flexible body": {"world": '<flexcomp name="f" type="grid" count="2 2 1" spacing="0.1 0.1 0.1" dim="2" mass="1"/>'},
    "ground that is not the plane z = 0": {"world": '<geom type="plane" size="1 1 1" pos="0 0 0.1"/>'},
    "disabled part of the physics": {"top": '<option><flag actuation="disable"/></option>'},
    "friction in a joint": {"joint": 'frictionloss="0.1"'},
    "damping or armature of a free joint": {"joint": 'type="free" damping="1"'},
    "contact between two bodies": {"inside": BODY.format(BODY.format(""))},
    "contact with another shape of the world": {"world": '<geom size="0.1"/>'},
    "contact of a cylinder, ellipsoid or field": {"geom": ' type="cylinder"', "joint": 'axis="0 0 1"'},
    "control without a range, taken as -1 to 1": {"end": '<actuator><motor joint="j"/></actuator>'},
    "force clamp that is not symmetric": {
        "end": '<actuator><motor joint="j" ctrlrange="-1 1" forcerange="-1 2"/></actuator>'
    },
}


def plain(**parts):
    names = ("top", "world", "body", "joint", "geom", "inside", "end")
    text = PLAIN.format(**dict.fromkeys(names, "") | parts)
    return text.replace('size="0.1" type="cylinder"', 'size="0.1 0.2" type="cylinder"')


def test_there_is_a_case_for_every_name():
    assert tuple(CASES) == mjcf.REFUSED + mjcf.LEFT_OUT


@pytest.mark.parametrize("name", mjcf.REFUSED)
def test_what_would_be_another_robot_is_refused_by_name(write, name):
    path = write(plain(**CASES[name]))
    with pytest.raises(ValueError, match=f"expected a robot without {name} \\([0-9]+\\)"):
        mjcf.load(path)
    if name not in mjcf.IGNORABLE:  # without it MuJoCo's coordinates would not be ours
        with pytest.raises(ValueError, match=f"expected a robot without {name} \\([0-9]+\\); a ball joint cannot be"):
            mjcf.load(path, ignore=mjcf.IGNORABLE)
        return
    with pytest.warns(UserWarning, match=f"left out: .*{name} \\([0-9]+\\)"):
        robot = mjcf.Robot(path, ignore=mjcf.IGNORABLE)
    Simulator(robot.articulation, 1, 0.01, 1, 1)  # what is left can be simulated


@pytest.mark.parametrize("spring", ('stiffness="1 2"', 'damping="1 2"', 'stiffness="5" springyield="0.1"'))
def test_every_bend_of_a_spring_or_damper_is_seen(write, spring):
    assert mjcf.unsupported(write(plain(joint=spring))) == {"spring or damper that is not linear": 1}


@pytest.mark.parametrize("force", ('stiffness="0 5"', 'damping="0 5"', 'frictionloss="1"', 'range="0 1"'))
def test_every_force_of_a_tendon_is_seen(write, force):
    path = write(plain(world='<site name="w"/>', end=TENDON.format(f" {force}")))
    assert mjcf.unsupported(path) == {"tendon with a force": 1}
    assert mjcf.unsupported(write(plain(world='<site name="w"/>', end=TENDON.format("")))) == {}


@pytest.mark.parametrize("default", ('pos="0 0 .1" euler="0 90 0"', 'friction=".3"', 'contype="2" conaffinity="1"'))
def test_the_ground_of_a_file_without_one_has_none_of_its_defaults(write, default):
    body = '<body pos="0 0 1"><freejoint/><geom size="0.1"/></body>'
    path = write(f"<mujoco><default><geom {default}/></default><worldbody>{body}</worldbody></mujoco>")
    (contact,) = mjcf.Robot(path).contacts
    assert contact.friction == 1.0  # the larger one, which is the ground's


def test_an_actuator_with_two_controls_is_refused_by_name(write):
    pid = '<pid name="two" joint="j" kp="10" kv="1"/><motor joint="k" ctrlrange="-3 3"/>'
    other = BODY.format("").replace("<joint/>", '<joint name="k"/>')
    path = write(plain(inside=other, end=f"<actuator>{pid}</actuator>"))
    with pytest.raises(ValueError, match="actuator with a varying gain \\(1\\)"):
        mjcf.load(path)
    actuation = quiet(path, ignore=mjcf.IGNORABLE).actuation
    assert (actuation.low[1], actuation.high[1]) == (-3.0, 3.0)


def test_an_actuator_that_is_switched_off_has_a_finite_range(write):
    general = '<general joint="j" gainprm="0" forcerange="-1 1"/>'
    path = write(plain(end=f"<actuator>{general}</actuator>"))
    assert mjcf.unsupported(path) == {"control without a range, taken as -1 to 1": 1}
    actuation = quiet(path).actuation
    assert (actuation.low[0], actuation.high[0]) == (-1.0, 1.0) and not actuation.matrix.any()


@pytest.mark.parametrize("name", mjcf.LEFT_OUT)
def test_what_is_left_out_is_counted(write, name):
    path = write(plain(**CASES[name]))
    assert mjcf.unsupported(path) == {name: {"damping or armature of a free joint": 6}.get(name, 1)}
    with pytest.warns(UserWarning, match="left out: "):
        mjcf.load(path)


@pytest.mark.parametrize(
    "flag, gravity, contacts, limited",
    [("gravity", 0.0, 1, 1), ("contact", -9.81, 0, 1), ("limit", -9.81, 1, 0), ("constraint", -9.81, 0, 0)],
)
def test_gravity_contact_and_limits_that_a_file_turns_off_are_off(write, flag, gravity, contacts, limited):
    parts = {"joint": 'range="-1 1"', "world": '<geom size="0.1"/>', "inside": BODY.format(BODY.format(""))}
    path = write(plain(top=f'<option><flag {flag}="disable"/></option>', end=MOTOR, **parts))
    left_out = {"contact between two bodies": 1, "contact with another shape of the world": 1} if contacts else {}
    assert mjcf.unsupported(path) == left_out
    robot = quiet(path)
    assert robot.articulation.gravity[1] == pytest.approx(gravity) and bool(robot.contacts) == bool(contacts)
    limits = robot.links[0]
    assert (abs(limits.limits[0]) < 10.0, limits.limit_stiffness > 1.0) == (bool(limited), True)


@pytest.mark.parametrize("flag", ("spring", "damper", "clampctrl", "actuation"))
def test_a_file_that_turns_other_physics_off_is_refused(write, flag):
    path = write(plain(top=f'<option><flag {flag}="disable"/></option>', end=MOTOR))
    assert mjcf.unsupported(path) == {"disabled part of the physics": 1}
    assert mjcf.unsupported(write(plain(top='<option actuatorgroupdisable="0"/>', end=MOTOR))) != {}


PAIRS = """<mujoco><worldbody><body pos="0 0 1"><freejoint/><geom name="trunk" size="0.1" {quiet}/>
<body pos="0.3 0 0"><joint/><geom name="a" size="0.1" {quiet}/></body>
<body name="b" pos="-0.3 0 0"><joint/><geom name="b" size="0.1" {quiet}/></body></body>{world}</worldbody>
<contact>{contact}</contact></mujoco>"""


@pytest.mark.parametrize(
    "quiet, world, contact, name",
    [
        ('contype="0" conaffinity="0"', "", '<pair geom1="a" geom2="b"/>', "contact between two bodies"),
        ("", "", "", "contact between two bodies"),
        (
            'contype="0" conaffinity="0"',
            '<geom name="w" size="0.1" contype="0" conaffinity="0"/>',
            '<pair geom1="a" geom2="w"/>',
            "contact with another shape of the world",
        ),
    ],
)
def test_contacts_that_a_file_lists_are_counted(write, quiet, world, contact, name):
    assert mjcf.unsupported(write(PAIRS.format(quiet=quiet, world=world, contact=contact))) == {name: 1}


def test_contacts_that_a_file_excludes_are_not_there(write):
    text = PAIRS.format(quiet="", world="", contact="{}").replace('<body pos="0.3', '<body name="a" pos="0.3')
    path = write(text.format('<exclude body1="b" body2="a"/><exclude body1="world" body2="a"/>'))
    assert mjcf.unsupported(path) == {}
    assert [contact.link for contact in mjcf.Robot(path).contacts] == [0, 2]
    both = '<exclude body1="world" body2="a"/><pair geom1="a" geom2="ground"/>'  # MuJoCo has this contact
    ground = '<geom name="ground" type="plane" size="1 1 1"/>'
    text = PAIRS.format(quiet="", world=ground, contact=both).replace('<body pos="0.3', '<body name="a" pos="0.3')
    assert [contact.link for contact in quiet(write(text)).contacts] == [0, 1, 2]


def test_the_clamp_of_a_joints_motors_is_none_of_its_spring(write):
    joints = 'stiffness="100" actuatorfrcrange="-1 1"'
    with_motor = quiet(write(plain(joint=joints, end=MOTOR)))
    other = BODY.format("").replace("<joint/>", '<joint name="k"/>')
    without = quiet(write(plain(joint=joints, inside=other, end=MOTOR.replace('"j"', '"k"'))))
    assert [link.effort_limit for link in with_motor.links] == [1.0]
    assert [link.effort_limit for link in without.links] == [np.inf, np.inf]
    path = write(plain(joint='actuatorfrcrange="-1 50"', end=MOTOR))
    assert mjcf.unsupported(path) == {"force clamp that is not symmetric": 1}


POST = """<mujoco><worldbody>
<body name="post" pos="1 2 0" euler="0 0 30"><geom size="0.1" contype="0" conaffinity="0"/>
<body pos="0.5 0 1" euler="20 0 0">{joint}<geom type="capsule" size="0.05 0.2" mass="2"/>
<body name="leg" pos="0 0 0.5"><joint axis="0 1 0"/><geom type="box" size="0.1 0.05 0.02" pos="0.1 0 0" mass="1"/>
</body></body></body></worldbody></mujoco>"""


def test_what_is_welded_to_the_world_is_no_link(write):
    robot = quiet(write(POST.format(joint='<joint axis="1 0 0" pos="0 0 0.1"/>')))
    assert robot.link_of == {0: -1, 1: -1, 2: 0, 3: 1} and len(robot.links) == 2
    articulation = without_constraints(robot)
    for seed in range(3):
        data = state(robot, seed)
        mujoco.mj_forward(robot.model, data)
        ours, poses = our_acceleration(robot, articulation, data)
        assert np.allclose(ours, data.qacc, rtol=0.0, atol=1e-4 * np.abs(data.qacc).max())
        assert np.allclose(poses[1, :3], mjcf.TO_Y_UP @ data.xpos[3], atol=1e-5)
    marked = BALL.format(ground='<body name="marker"><geom size="0.1" contype="0" conaffinity="0"/></body>', ball="")
    assert quiet(write(marked)).articulation.floats
    with pytest.raises(ValueError, match="path: expected a robot with a joint, got none"):
        quiet(write('<mujoco><worldbody><body><geom size="0.1"/></body></worldbody></mujoco>'))


def test_a_plain_file_leaves_nothing_out(write):
    path = write(plain(end=MOTOR))
    assert mjcf.unsupported(path) == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mjcf.load(path)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"path": "nowhere.xml"}, ["path", "'nowhere.xml'", "not there"]),
        ({"ignore": ("wheels",)}, ["ignore", "fluid", "got 'wheels'"]),
        ({"ignore": ("ball joint",)}, ["ignore", "fluid", "got 'ball joint'"]),
        ({"ignore": "fluid"}, ["ignore", "a tuple of names", "got 'fluid'"]),
        ({"penetration": "0.01"}, ["penetration", "'0.01'"]),
        ({"min_armature": None}, ["min_armature", "at least 0", "None"]),
        ({"penetration": 0.0}, ["penetration", "above 0", "0.0"]),
        ({"time_constant": float("nan")}, ["time_constant", "nan"]),
        ({"limit_give": -1.0}, ["limit_give", "-1.0"]),
        ({"min_armature": -1.0}, ["min_armature", "at least 0", "-1.0"]),
    ],
)
def test_wrong_options(write, options, words):
    with pytest.raises(ValueError) as caught:
        mjcf.load(**{"path": write(plain())} | options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_file_that_is_no_robot(write):
    with pytest.raises(ValueError, match="path: expected a file that MuJoCo can read, got .*robot.xml' \\(.*XML"):
        mjcf.load(write("<mujoco><worldbody>"))


def test_without_mujoco(monkeypatch, write):
    monkeypatch.setattr(mjcf, "mujoco", None)
    with pytest.raises(ImportError, match="is read by MuJoCo, which is not installed: pip install mujoco"):
        mjcf.load(write(plain()))
