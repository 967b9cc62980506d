"""An interactive replay of one episode in the browser: `python -m envs.viewer --env-id ant`.

    --checkpoint runs/<run>/checkpoint.pt   the policy of any training script; without it, random actions
    --record out.html                       write it to a file that any browser can play, without Python, and stop

Needs viser (`pip install viser`) and no display.  From another machine: `ssh -L 8080:localhost:8080 <host>`.

The episode is that of an evaluation (evaluate.py) in one environment with the same seed.
"""

import asyncio
import contextlib
import errno
import io
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import warp as wp

import envs
from envs.command_line import read_flags
from envs.evaluate import STEPS_PER_FRAME
from envs.physics import Box
from envs.physics.model import build_model
from envs.render import HALF_HEIGHT_OF_VIEW, TILES, VIEW, color_of, link_poses

TILES_PER_SIDE = 40  # of the ground, 1 m each


@dataclass
class Args:
    env_id: Literal[envs.ENV_IDS] | None = None
    """the task; default: that of --checkpoint"""
    checkpoint: str | None = None
    """replay the deterministic policy of this checkpoint.pt"""
    actions: Literal["random", "zero"] | None = None
    """what to do without --checkpoint; default: random"""
    record: str | None = None
    """write the replay to this HTML file and stop; without --checkpoint it shows random actions"""
    follow: bool = True
    """move along with the robot"""
    seed: int = 1
    """which episode"""
    host: str = "localhost"
    """address to serve at; 0.0.0.0 lets other machines in"""
    port: int = 8080
    """port to serve at"""


# One episode
def random_actions(env):
    """A policy: torch's random numbers, uniform in [-1, 1]."""
    return lambda obs: 2.0 * torch.rand(env.num_envs, env.num_actions) - 1.0


def zero_actions(env):
    return lambda obs: torch.zeros(env.num_envs, env.num_actions)


def poses_of_episode(env, policy, seed):
    """Poses (frames, nq) of the first environment during an evaluation, every STEPS_PER_FRAME steps."""
    poses = []

    def watch(running, infos):
        if running[0]:
            poses.append(env.drawn_joint_q(0))

    envs.evaluate(env, policy, seed, watch=watch)
    return torch.stack(poses)[::STEPS_PER_FRAME]


# The scene
class Scene:
    """The robot and the ground as nodes of a viser server. With `follow`, the world moves and the robot stays."""

    def __init__(self, server, env, poses):
        # position and quaternion xyzw of every link: (frames, links, 7)
        self.poses = link_poses(build_model(env.drawn_articulation, "cpu"), poses, "cpu").numpy()
        self.followed_link = env.drawn_articulation.shapes[0].link
        gravity = np.array(env.drawn_articulation.gravity)
        self.up = -gravity / np.linalg.norm(gravity)
        turn = wp.quat_between_vectors(wp.vec3(0.0, 1.0, 0.0), wp.vec3(*self.up))
        self.turn = np.array(wp.quat_to_matrix(turn)).reshape(3, 3)  # of a world that is y up
        self.nodes = server.scene
        self.nodes.set_up_direction(self.up)
        self._place_camera(server.initial_camera, env.camera_height, env.camera_distance)
        self.world = self.nodes.add_frame("/world", show_axes=False)
        self.ground = self.nodes.add_frame("/world/ground", show_axes=False)
        self._add_tiles()
        self.links = {}
        for number, shape in enumerate(env.drawn_articulation.shapes):
            link = f"/world/link_{shape.link}"
            self.links[shape.link] = self.links.get(shape.link) or self.nodes.add_frame(link, show_axes=False)
            self._add_shape(f"{link}/shape_{number}", shape)

    def show(self, frame, follow):
        """Put everything where it is in a frame."""
        position = self.poses[frame, self.followed_link, :3]
        along = position - (position @ self.up) * self.up
        self.world.position = -along if follow else 0.0 * along
        # two tiles on, it looks the same; at a multiple of two, rounding does not move it there and back
        self.ground.position = 2.0 * np.floor(0.5 * along + 1e-3)
        for link, node in self.links.items():
            node.position, node.wxyz = self.poses[frame, link, :3], np.roll(self.poses[frame, link, 3:], 1)

    def _place_camera(self, camera, height, distance):
        """Where the camera of render.py stands."""
        camera.look_at = self.turn @ (0.0, height, 0.0)
        camera.position = camera.look_at + self.turn @ (distance * VIEW)
        camera.fov = 2.0 * math.atan(HALF_HEIGHT_OF_VIEW)

    def _add_tiles(self):
        corners = np.array([(0, 0, 0), (0, 0, 1), (1, 0, 1), (1, 0, 0)])
        places = np.indices((TILES_PER_SIDE, 1, TILES_PER_SIDE)).reshape(3, -1).T - (TILES_PER_SIDE // 2) * corners[2]
        for parity, color in enumerate(TILES):
            tiles = places[places.sum(1) % 2 == parity][:, None] + corners
            vertices = (tiles.reshape(-1, 3) @ self.turn.T).astype(np.float32)
            faces = (4 * np.arange(len(tiles))[:, None, None] + [(0, 1, 2), (0, 2, 3)]).reshape(-1, 3)
            self.nodes.add_mesh_simple(f"/world/ground/tiles_{parity}", vertices, faces, color=color)

    def _add_shape(self, name, shape):
        color = color_of(shape)
        if isinstance(shape, Box):
            self.nodes.add_box(name, color, 2.0 * np.array(shape.half_extents), position=shape.center)
            return
        import trimesh  # viser brings it

        axis = np.array(shape.end) - shape.start
        mesh = trimesh.creation.capsule(np.linalg.norm(axis), shape.radius, count=[24, 24])
        turn = trimesh.geometry.align_vectors((0, 0, 1), axis)[:3, :3]
        # trimesh centres the capsule, contrary to its documentation; where it does not, this does
        vertices = (mesh.vertices - mesh.bounds.mean(0)) @ turn.T
        self.nodes.add_mesh_simple(name, vertices, mesh.faces, color=color, position=shape.start + 0.5 * axis)


def record(make_server, env, poses, follow):
    """The replay as an HTML document that loads nothing from elsewhere."""
    with contextlib.redirect_stdout(io.StringIO()):  # viser announces an address where nothing will be served
        server = make_server("localhost", 0)
        scene, serializer = Scene(server, env, poses), server.get_scene_serializer()
        for frame in range(len(poses)):
            scene.show(frame, follow)
            serializer.insert_sleep(STEPS_PER_FRAME * env.dt)
        html = serializer.as_html()
        server.stop()
    return html


def play(server, env, poses, follow):
    """Serve the replay, again and again, until Ctrl-C."""
    scene = Scene(server, env, poses)
    playing = server.gui.add_checkbox("play", True)
    speed = server.gui.add_slider("speed", min=0.1, max=2.0, step=0.1, initial_value=1.0)
    frame = server.gui.add_slider("frame", min=0, max=len(poses) - 1, step=1, initial_value=0)
    following = server.gui.add_checkbox("follow", follow)
    while True:
        with server.atomic():
            scene.show(frame.value, following.value)
        time.sleep(STEPS_PER_FRAME * env.dt / speed.value)
        if playing.value:
            frame.value = (frame.value + 1) % len(poses)


def parse_args():
    """The command line with the task filled in, and the policy of the checkpoint if there is one."""
    args, policy = read_flags(Args), None
    if args.checkpoint is not None:
        try:
            policy, run = envs.load_policy(args.checkpoint)
        except ValueError as error:
            envs.refuse("checkpoint", str(error).removeprefix("path: "))
        if args.env_id not in (None, run["env_id"]):
            envs.refuse("env_id", f"expected {run['env_id']}, the task of --checkpoint, got {args.env_id}")
        args.env_id = run["env_id"]
    elif args.env_id is None:
        envs.refuse("env_id", "expected a task, or --checkpoint in its place, got neither")
    if policy and args.actions is not None:
        envs.refuse("actions", f"expected none beside --checkpoint, whose policy acts, got {args.actions}")
    for name, largest in (("seed", 2**32 - 1), ("port", 65535)):
        if not 0 <= getattr(args, name) <= largest:
            envs.refuse(name, f"expected 0 to {largest}, got {getattr(args, name)}")
    if args.record is None:
        check_address(args.host, args.port)
    else:
        for name in ("host", "port"):
            if getattr(args, name) != getattr(Args, name):
                envs.refuse(name, f"expected none beside --record, where nothing is served, got {getattr(args, name)}")
        if Path(args.record).is_dir() or not Path(args.record).absolute().parent.is_dir():
            envs.refuse("record", f"expected a file in an existing folder, got {args.record!r}")
    return args, policy


def check_address(host, port):
    """Refuse one that cannot be served at: viser would try port after port, for ever if the host is wrong."""

    async def serve():  # as viser does
        (await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port)).close()

    try:
        asyncio.run(serve())
    except (OSError, UnicodeError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).partition("\n")[0]
        if getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES):
            envs.refuse("port", f"expected a free port, or 0 for any, got {port} ({reason})")
        envs.refuse("host", f"expected a name or an address of this machine, got {host!r} ({reason})")


def main():
    args, policy = parse_args()
    try:
        import viser
    except ImportError:
        sys.exit("error: viser is not installed: pip install viser")
    env = envs.make(args.env_id)
    acting = "the policy" if policy else f"{args.actions or 'random'} actions"
    policy = policy or {"random": random_actions, "zero": zero_actions}[args.actions or "random"](env)
    poses = poses_of_episode(env, policy, args.seed)
    if args.record is not None:
        html = record(viser.ViserServer, env, poses, args.follow)
        try:
            Path(args.record).write_text(html, encoding="utf-8")
        except OSError as error:
            envs.refuse("record", f"expected a file that can be written, got {args.record!r} ({error.strerror})")
        print(f"{len(poses)} frames of {acting}: {args.record}")
    else:
        play(viser.ViserServer(args.host, args.port, label=args.env_id), env, poses, args.follow)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
