"""The replay's scene: what it holds and where."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from envs import viewer
from envs.physics import FREE, Articulation, Box, Capsule, Link
from envs.render import VIEW


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
