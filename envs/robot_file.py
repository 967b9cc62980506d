"""A robot from an MJCF or URDF file that is to run along +x: `envs.make("path/to/robot.xml")`.

The file is read by mjcf.py, which says what is exact, approximate, left out and refused.  Its root has a free joint, or
moves in a plane on slides and hinges, as that of Gymnasium's hopper; the root of a URDF file is set free.  All other
joints are hinges and slides.  With n of them and m actuators:

    action      a motor's control from the low to the high end of its range; for a position servo the start pose +-0.5
                (rad, or m), within its range
    observation
    0                       height of the root's origin                                    m
    1 2 3                   the root's forward axis, in the world                          -
    4 5 6                   the root's upward axis, in the world                           -
    7 8 9                   velocity of the root's origin, world axes                      m/s
    10 11 12                angular velocity of the root, world axes                       rad/s
    13 .. 12+n              joint positions, from those of the file's qpos0                rad, m
    13+n .. 12+2n           0.1 * joint velocities                                         rad/s, m/s
    13+2n .. 12+2n+m        the clamped action of the step before; 0 at the start          -

Forward and upward are the axes of the root that point along +x and up in the start pose.

Reward, from the observation o after the step and the clamped action a, with the wanted speed v:

    2 - ((o7 - v)^2 + o9^2) / v^2     on its feet; forward velocity v, none sideways
    + (o5 - 1) + (o1 - 1)             upright, heading
    - 0.1 mean(a^2)                   effort

v: 0.5 sqrt(g h), h the height of the root at the start; two- and four-legged animals go from a walk to a run or trot
at about that speed (a Froude number v^2 / (g h) of 0.25).
Termination: o0 < h / 2, or o5 < 0.5 (tilted by 60 degrees).  Time limit: 1000 steps of 0.02 s (substeps: mjcf.py).
Reset: the file's first keyframe or, without one, its reference pose, where it has a free joint on the ground; noise
+-0.05 on joint positions, 0 to 0.05 h on the height, +-0.05 rad on hinges of the root or about each axis of a free one,
+-0.25 on all velocities.
"""

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize, pad

from envs import mjcf
from envs.physics import FREE, PRISMATIC, REVOLUTE, positive_number
from envs.quaternion import inverse, product, rotate
from envs.vector_env import VectorEnv

SERVO_REACH = 0.5  # rad or m
SUFFIXES = (".xml", ".urdf")


def is_robot_file(env_id):
    """Whether an env_id is meant as the path of a file."""
    return isinstance(env_id, str | Path) and str(env_id).lower().endswith(SUFFIXES)


def robot_task(path):
    """The task of the robot in a file: a subclass of RobotFile. Raises ValueError and ImportError like mjcf.Robot.

    A file is read again once it has changed; changes in the files that it includes are not noticed.
    """
    return _task(str(Path(path).absolute()), Path(path).stat().st_mtime_ns if Path(path).is_file() else 0)


@lru_cache(maxsize=8)
def _task(path, modified):
    robot = mjcf.Robot(path, floating=path.lower().endswith(".urdf"))
    root = _root_joints(robot)
    joints = [link for link in robot.links[len(root) :] if link.joint in (PRISMATIC, REVOLUTE)]
    height, num_actions = float(_root_place(robot)[1]), len(robot.actuation.names)
    _check(path, robot, height)
    attributes = {
        "robot": robot,
        "articulation": robot.articulation,
        "root": root,
        "num_actions": num_actions,
        "num_obs": 13 + 2 * len(joints) + num_actions,
        "reset_noise_size": robot.articulation.num_coords + robot.articulation.num_dofs,
        "substeps": robot.substeps(RobotFile.dt),
        "mass_matrix_interval": robot.substeps(RobotFile.dt) // 2,
        "start_height": height,
        "wanted_speed": 0.5 * math.sqrt(float(np.linalg.norm(robot.articulation.gravity)) * height),
        "camera_distance": max(1.0, 4.0 * height),
        "camera_height": 0.8 * height,
    }
    return type("RobotFile", (RobotFile,), attributes)


def _check(path, robot, height):
    """Raise ValueError for a robot that cannot learn to walk."""
    if len(robot.actuation.names) == 0:
        expected = "path: expected a robot with actuators, or with joints that have an actuatorfrcrange (URDF: effort)"
        raise ValueError(f"{expected}, got none in {path!r}")
    if not robot.contacts:
        raise ValueError(f"path: expected a robot with a shape that touches the ground, got none in {path!r}")
    if height <= 0.0:
        raise ValueError(
            f"path: expected a robot whose root starts above the ground, got one at {height} m in {path!r}"
        )
    if not robot.articulation.gravity[1] < 0.0:
        got = tuple((mjcf.TO_Y_UP.T @ robot.articulation.gravity + 0.0).tolist())  # in the file's axes
        raise ValueError(f"path: expected gravity that points down (its z below 0), got {got} in {path!r}")


def _root_joints(robot):
    """The links of the joints that move the root: one free joint, or slides and then hinges."""
    root = robot.links[: robot.model.body_jntnum[_root_body(robot)]]
    kinds = [link.joint for link in root]
    in_a_plane = PRISMATIC in kinds and set(kinds) <= {PRISMATIC, REVOLUTE} and kinds == sorted(kinds)
    if len(robot.articulation.roots) > 1 or not (kinds == [FREE] or in_a_plane):
        names = ", ".join(link.name or "a body without a name" for link in robot.articulation.roots)
        expected = "path: expected one robot whose root has a free joint, or slides and then hinges"
        raise ValueError(f"{expected}, got {names} in {robot.path!r}")
    return root


def _root_body(robot):
    return next(b for b in range(1, robot.model.nbody) if robot.link_of[b] >= 0)


def _root_place(robot):
    """Where the root's origin is in the start pose, y up; on slides and hinges it is the place of the last hinge."""
    body = _root_body(robot)
    last = robot.model.body_jntadr[body] + robot.model.body_jntnum[body] - 1
    return mjcf.TO_Y_UP @ robot.data.xanchor[last]


class RobotFile(VectorEnv):
    """The task of this file, for the robot that robot_task() adds; the methods are described in vector_env.py.

    wanted_speed: v, m/s (default: see above); further options: see VectorEnv.
    """

    robot = root = start_height = wanted_speed = None
    dt = 0.02
    max_episode_steps = 1000

    def __init__(self, *args, wanted_speed=None, **options):
        if wanted_speed is not None:
            self.wanted_speed = positive_number("wanted_speed", wanted_speed)
        super().__init__(*args, **options)
        self.low, self.center, self.high = map(self.constant, self._controls())
        self.matrix = self.constant(self.robot.actuation.matrix)
        self.start = self.constant(self.robot.start).repeat(self.num_envs, 1)
        self.floats = self.root[0].joint == FREE
        self.num_root = (7, 6) if self.floats else (len(self.root), len(self.root))  # coordinates, velocities
        self.slide_axes, self.place_at_zero = map(self.constant, self._slides())
        self.root_turn = self.constant(self.root[0].rotation)
        self.root_axes = [self.constant(link.axis) for link in self.root]
        _, turn, _, _ = self.root_state(self.start[:1], self.zeros(self.articulation.num_dofs)[:1])
        unit = self.constant([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        self.forward, self.up = rotate(inverse(turn).repeat(2, 1), unit)  # as axes of the root

    def actuate(self, action):
        return self.controls(action) @ self.matrix

    def controls(self, action):
        """Those of the file's actuators (N, m)."""
        up, down = action.clamp(min=0.0), action.clamp(max=0.0)
        return self.center + up * (self.high - self.center) + down * (self.center - self.low)

    def observe(self, joint_q, joint_qd, last_action):
        place, turn, velocity, angular = self.root_state(joint_q, joint_qd)
        forward, up = (rotate(turn, axis.repeat(len(turn), 1)) for axis in (self.forward, self.up))
        joints, rates = joint_q[:, self.num_root[0] :], joint_qd[:, self.num_root[1] :]
        return torch.cat([place[:, 1:2], forward, up, velocity, angular, joints, 0.1 * rates, last_action], dim=1)

    def reward(self, obs, action):
        speed = ((obs[:, 7] - self.wanted_speed) ** 2 + obs[:, 9] ** 2) / self.wanted_speed**2
        return 2.0 - speed + (obs[:, 5] - 1.0) + (obs[:, 1] - 1.0) - 0.1 * (action**2).mean(dim=1)

    def is_terminal(self, obs):
        return (obs[:, 0] < 0.5 * self.start_height) | (obs[:, 5] < 0.5)

    def sample_state(self, noise):
        nq, (root, _) = self.articulation.num_coords, self.num_root
        rise = 0.05 * self.start_height * noise[:, :1].abs()
        joints = self.start[:, root:] + 0.05 * noise[:, root:nq]
        if self.floats:
            turn = normalize(pad(0.025 * noise[:, 3:6], (0, 1), value=1.0), dim=1)
            place = self.start[:, :3] + pad(rise, (1, 1))
            parts = [place, product(turn, self.start[:, 3:7]), joints]
        else:
            slides = len(self.slide_axes)
            hinges = self.start[:, slides:root] + 0.05 * noise[:, slides:root]
            parts = [self.start[:, :slides] + rise * self.slide_axes[:, 1], hinges, joints]
        return torch.cat(parts, dim=1), 0.25 * noise[:, nq:]

    def rest_state(self):
        return self.start.clone(), self.zeros(self.articulation.num_dofs)

    def _controls(self):
        """The controls at action -1, 0 and 1."""
        actuation = self.robot.actuation
        reach = np.where(actuation.servo, SERVO_REACH * np.abs(actuation.per_position), math.inf)
        middle = 0.5 * (actuation.low + actuation.high)
        center = np.clip(np.where(actuation.servo, self.robot.start_controls, middle), actuation.low, actuation.high)
        return np.maximum(actuation.low, center - reach), center, np.minimum(actuation.high, center + reach)

    def _slides(self):
        """Axes (k, 3) of the root's slides in the world, and where its origin is when they are at 0."""
        exact = {"dtype": torch.float64, "device": "cpu"}
        turn = torch.tensor([self.root[0].rotation], **exact)
        slides = [link.axis for link in self.root if link.joint == PRISMATIC]
        axes = [rotate(turn, torch.tensor([axis], **exact))[0].tolist() for axis in slides]
        axes = np.reshape(axes, (-1, 3))
        return axes, _root_place(self.robot) - self.robot.start[: len(axes)] @ axes

    def root_state(self, joint_q, joint_qd):
        """Place (N, 3), orientation (N, 4), velocity (N, 3) and angular velocity (N, 3) of the root, in the world."""
        if self.floats:
            place, angular, linear = joint_q[:, :3], joint_qd[:, :3], joint_qd[:, 3:6]
            return place, joint_q[:, 3:7], linear + torch.linalg.cross(angular, place), angular  # v + w x p
        slides, rows = len(self.slide_axes), len(joint_q)
        turn, angular = self.root_turn.repeat(rows, 1), torch.zeros_like(joint_q[:, :3])
        for k, axis in list(enumerate(self.root_axes))[slides:]:
            axis, half = axis.repeat(rows, 1), 0.5 * joint_q[:, k : k + 1]
            angular = angular + rotate(turn, axis) * joint_qd[:, k : k + 1]
            turn = product(turn, torch.cat([axis * half.sin(), half.cos()], dim=1))
        place = self.place_at_zero + joint_q[:, :slides] @ self.slide_axes
        return place, turn, joint_qd[:, :slides] @ self.slide_axes, angular
