"""A policy that was trained here, unchanged, in MuJoCo's own physics: return, distance and falls in both simulators.

    python -m benchmarks.transfer --checkpoint runs/<run>/checkpoint.pt --output benchmarks/results/transfer_ant.csv
    python -m benchmarks.transfer --checkpoint runs/<go1 run>/checkpoint.pt --xml <mjlab>/unitree_go1/xmls/go1.xml
    python -m benchmarks.transfer --checkpoint runs/<ant.xml run>/checkpoint.pt --gymnasium Ant-v5

Both simulators start from the same states, with the noise of the task's reset, and end an episode by the same rule.
From MuJoCo's state come the same observation and, from the same action, the same controls; the reward is the task's.
MuJoCo keeps what we leave out or approximate: its contact solver, joint limits, friction in joints, and contact between
bodies.  Its step is that of the file, or the largest below it of which a control step is a multiple.

A file without a ground gets the plane z = 0, and the joints of one without actuators get forces.  For go1, whose file
has no ground, motors or rotors, MuJoCo gets position servos with the gains, largest torques and armature of
envs/go1.py, in place of any that the file has, and a plane with its friction as ground.  With --gymnasium the
episodes are those of Gymnasium's environment with its own reset, reward and end, at the control rate of the training.
"""

import os
from dataclasses import dataclass

os.environ.setdefault("MUJOCO_GL", "egl")  # before MuJoCo is imported: no display

import gymnasium
import mujoco
import numpy as np
import torch

import envs
from benchmarks.provenance import read_flags, write_rows
from envs import go1, mjcf
from envs.evaluate import STEPS_PER_FRAME, write_video

COLUMNS = ("env_id", "simulator", "episode", "return", "length", "distance", "fell")


@dataclass
class Args:
    checkpoint: str
    """the run whose policy is evaluated, without its noise"""
    xml: str | None = None
    """MuJoCo's robot; default: the file of the run"""
    gymnasium: str | None = None
    """an environment of Gymnasium with the same file, such as Ant-v5, evaluated as well"""
    num_envs: int = 32
    """episodes in each simulator"""
    seed: int = 1
    """of the initial states"""
    video: str | None = None
    """path without suffix of a film of MuJoCo's first episode"""
    output: str | None = None
    """write a line per episode to this CSV file"""


class Mujoco:
    """MuJoCo's model of the robot of `env`, and the translation of states and actions."""

    def __init__(self, env, xml):
        self.env = env
        self.robot = env.robot if xml is None else mjcf.Robot(xml, floating=xml.lower().endswith(".urdf"))
        theirs, links = self.robot.articulation.links, env.articulation.links
        if [(link.name, link.joint) for link in theirs] != [(link.name, link.joint) for link in links]:
            names = ", ".join(link.name for link in theirs)
            raise ValueError(f"xml: expected the robot of the policy, {', '.join(x.name for x in links)}, got {names}")
        if isinstance(env, go1.Go1):
            self.robot.model = _go1_model(xml)
        self.model = self.robot.model
        self.model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET  # a state that blows up must not hide
        self.num_steps = int(np.ceil(round(env.dt / self.model.opt.timestep, 6)))
        self.model.opt.timestep = env.dt / self.num_steps

    def start(self, joint_q, joint_qd):
        """MuJoCo's data in our state (nq,), (nv,)."""
        data = mujoco.MjData(self.model)
        data.qpos, data.qvel = self.robot.to_mujoco(joint_q.numpy(), joint_qd.numpy())
        mujoco.mj_forward(self.model, data)
        return data

    def controls(self, action):
        """(N, nu) of actions (N, num_actions)."""
        return (self.env.target(action) if isinstance(self.env, go1.Go1) else self.env.controls(action)).numpy()

    def apply(self, data, controls):
        """Controls (nu,) for the next steps; in a file without actuators they are the forces of its joints."""
        if self.model.nu:
            data.ctrl = controls
        else:
            data.qfrc_applied = controls @ self.robot.actuation.matrix

    def states(self, all_data):
        """Our joint_q (N, nq) and joint_qd (N, nv) of MuJoCo's."""
        pairs = [self.robot.from_mujoco(data.qpos, data.qvel) for data in all_data]
        return [torch.tensor(np.array(part), dtype=torch.float32) for part in zip(*pairs)]


def _go1_model(xml):
    """The file with the ground and the motors of envs/go1.py."""
    spec = mujoco.MjSpec.from_file(xml)
    for actuator in list(spec.actuators):
        spec.delete(actuator)
    for key in list(spec.keys):
        spec.delete(key)
    # its friction counts, whatever the feet have
    friction = [go1.GROUND["friction"], 0.005, 0.0001]
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 1], friction=friction, priority=1)
    spec.worldbody.add_light(pos=[0, 0, 3], dir=[0, 0, -1])
    names = [joint.name for joint in spec.joints if joint.type == mujoco.mjtJoint.mjJNT_HINGE]
    for name, link in zip(names, go1.Go1.articulation.links[1:], strict=True):
        spec.joint(name).armature = link.armature
        servo = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        servo.set_to_position(kp=link.stiffness, kv=link.motor_damping)
        servo.forcelimited, servo.forcerange = True, [-link.effort_limit, link.effort_limit]
    return spec.compile()


class Episodes:
    """Statistics of the first episode of every environment."""

    def __init__(self, num_envs):
        self.returns, self.lengths = np.zeros(num_envs), np.zeros(num_envs, int)
        self.distances, self.fell = np.zeros(num_envs), np.zeros(num_envs, bool)
        self.running = np.ones(num_envs, bool)

    def add(self, reward, distance, fell, ended):
        self.returns += np.where(self.running, reward, 0.0)
        self.lengths += self.running
        self.distances = np.where(self.running, distance, self.distances)
        self.fell |= self.running & fell
        self.running = self.running & ~(fell | ended)

    def rows(self, env_id, simulator):
        numbers = zip(self.returns, self.lengths, self.distances, self.fell)
        for episode, (total, length, distance, fell) in enumerate(numbers):
            yield dict(zip(COLUMNS, (env_id, simulator, episode, f"{total:.1f}", length, f"{distance:.2f}", int(fell))))


def place_along_x(env, joint_q, joint_qd):
    """Of the root, (N,) m."""
    if isinstance(env, go1.Go1):
        return joint_q[:, 0].numpy()
    return env.root_state(joint_q, joint_qd)[0][:, 0].numpy()


def ours(env, policy, seed):
    """Episodes in our simulator, and the states that they started from."""
    episodes, obs = Episodes(env.num_envs), env.reset(seed=seed)[0]
    start = env.joint_q.clone(), env.joint_qd.clone()
    first, before = place_along_x(env, *start), start
    while episodes.running.any():
        _, reward, terminated, truncated, _ = env.step(policy(obs))
        obs = env.detach()
        ended = (terminated | truncated).numpy()
        # where an episode has ended the state is that of the next one: what counts is the step before
        place = np.where(ended, place_along_x(env, *before), place_along_x(env, env.joint_q, env.joint_qd))
        episodes.add(reward.numpy(), place - first, terminated.numpy(), truncated.numpy())
        before = env.joint_q.clone(), env.joint_qd.clone()
    return episodes, start


def mujocos(env, policy, start, world, draw=None):
    """Episodes in MuJoCo from the same states. draw: called with the data of the first one after every step."""
    episodes, data = Episodes(env.num_envs), [world.start(*state) for state in zip(*start)]
    first, action = place_along_x(env, *start), torch.zeros(env.num_envs, env.num_actions)
    obs = env.observe(*start, action)
    for step in range(env.max_episode_steps):
        env.last_action, action = action, policy(obs).clamp(-1.0, 1.0)
        env.actuate(action)  # for what a reward keeps of the action before
        for row, controls in enumerate(world.controls(action)):
            if episodes.running[row]:
                world.apply(data[row], controls)
                mujoco.mj_step(world.model, data[row], world.num_steps)
        state = world.states(data)
        obs = env.observe(*state, action)
        finite = obs.isfinite().all(dim=1)
        fell = (env.is_terminal(obs) | ~finite).numpy()
        reward = torch.where(finite, env.reward(obs, action), 0.0).numpy()
        place = np.where(finite, place_along_x(env, *state) - first, episodes.distances)
        last = np.full(env.num_envs, step + 1 == env.max_episode_steps)
        if draw is not None and episodes.running[0]:
            draw(step, data[0], state)
        episodes.add(reward, place, fell, last)
        if not episodes.running.any():
            break
    return episodes


def with_coordinates(env_id, env, world):
    """Gymnasium's environment at our control rate; ValueError where it is not one with the coordinates of `world`."""
    try:
        theirs = gymnasium.make(env_id)
    except (gymnasium.error.Error, ImportError) as error:
        raise ValueError(f"expected an environment of Gymnasium such as Ant-v5, got {env_id!r}: {error}") from None
    sizes = [(model.nq, model.nv, model.nu) if model else None for model in (world.model, _model_of(theirs))]
    if sizes[0] != sizes[1]:
        expected = "one of the policy's robot with {} coordinates, {} velocities and {} motors".format(*sizes[0])
        raise ValueError(f"expected {expected}, got {env_id} with {sizes[1] or 'no model of MuJoCo'}")
    return gymnasium.make(env_id, frame_skip=round(env.dt / _model_of(theirs).opt.timestep))


def _model_of(theirs):
    return getattr(theirs.unwrapped, "model", None)


def gymnasiums(env, policy, theirs, world, num_envs, seed):
    """Episodes of Gymnasium's environment, with its own reset, reward and end."""
    episodes = Episodes(num_envs)
    for row in range(num_envs):
        theirs.reset(seed=seed + row)
        data, action = theirs.unwrapped.data, torch.zeros(1, env.num_actions)
        first = place_along_x(env, *world.states([data]))[0]
        while episodes.running[row]:
            action = policy(env.observe(*world.states([data]), action)).clamp(-1.0, 1.0)
            _, reward, terminated, truncated, _ = theirs.step(world.controls(action)[0])
            one = np.arange(num_envs) == row
            place = place_along_x(env, *world.states([data]))[0] - first
            only_this, episodes.running = episodes.running.copy(), episodes.running & one
            episodes.add(reward, place, terminated & one, truncated & one)
            episodes.running = np.where(one, episodes.running, only_this)
    return episodes


def filmed(env, world, frames):
    """A function for mujocos() that appends pictures: MuJoCo's own or, without OpenGL, ours of its states."""
    try:
        renderer, camera = mujoco.Renderer(world.model, 240, 320), mujoco.MjvCamera()
    except Exception:  # whatever OpenGL says where there is none
        renderer = None

    def draw(step, data, state):
        if step % STEPS_PER_FRAME:
            return
        if renderer is None:
            env.set_state(*state)
            frames.append(env.render(0))
            return
        x, y, _ = data.subtree_com[0]
        camera.lookat, camera.distance = [x, y, env.camera_height], env.camera_distance
        camera.azimuth, camera.elevation = 110.0, -15.0
        renderer.update_scene(data, camera)
        frames.append(renderer.render().copy())

    return draw


def summary(rows):
    """A line of text per simulator."""
    for simulator in dict.fromkeys(row["simulator"] for row in rows):
        mine = [row for row in rows if row["simulator"] == simulator]
        means = {name: np.mean([float(row[name]) for row in mine]) for name in ("return", "length", "distance")}
        fell = sum(row["fell"] for row in mine)
        text = "return {return:.1f}, length {length:.0f}, distance {distance:.1f} m".format(**means)
        yield f"{simulator}: {text}, {fell} of {len(mine)} fell"


@torch.no_grad()
def main():
    args = read_flags(Args)
    try:
        policy, flags = envs.load_policy(args.checkpoint)
    except ValueError as error:
        envs.refuse("checkpoint", str(error).removeprefix("path: "))
    env_id, frames = flags["env_id"], []
    if env_id != "go1" and env_id in envs.TASKS:
        envs.refuse("checkpoint", f"expected a policy of go1 or of a robot's file, got one of {env_id}")
    if env_id == "go1" and args.xml is None:
        envs.refuse("xml", "expected go1's MJCF file, got none")
    env = envs.make(env_id, num_envs=args.num_envs, seed=args.seed)
    try:
        world = Mujoco(env, args.xml)
    except ValueError as error:
        envs.refuse("xml", str(error).removeprefix("path: ").removeprefix("xml: "))
    if args.gymnasium:
        try:
            theirs = with_coordinates(args.gymnasium, env, world)
        except ValueError as error:
            envs.refuse("gymnasium", str(error))
    name = os.path.basename(env_id)
    here, start = ours(env, policy, args.seed)
    there = mujocos(env, policy, start, world, filmed(env, world, frames) if args.video else None)
    rows = [*here.rows(name, "ours"), *there.rows(name, "MuJoCo")]
    if args.gymnasium:
        found = gymnasiums(env, policy, theirs, world, args.num_envs, args.seed)
        rows += found.rows(name, f"Gymnasium {args.gymnasium}")
    for line in summary(rows):
        print(line)
    if frames:
        print(f"video: {write_video(frames, args.video, fps=round(1.0 / (STEPS_PER_FRAME * env.dt)))}")
    if args.output:
        write_rows(args.output, rows)


if __name__ == "__main__":
    main()
