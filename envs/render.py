"""A picture of one robot, by one ray per pixel: capsules, spheres and boxes on a checkered ground, with a shadow.

Needs no display and no OpenGL, and is the same on the CPU and on CUDA.  It shows the shapes of the articulation; the
camera stands at the robot's right-hand side and moves along with the link of the first shape.  Pictures are y up: a
world with gravity along -z is turned.
"""

from dataclasses import replace

import numpy as np
import warp as wp

from envs.physics import WARP, Z_UP, Box
from envs.physics.kinematics import forward_kinematics
from envs.physics.model import build_model

wp.set_module_options({"enable_backward": False})  # nobody differentiates a picture

FAR = wp.constant(1.0e6)  # m, where a ray ends that meets nothing
NEAR = wp.constant(1.0e-3)  # m, so that a shadow ray does not meet the surface it starts from
TO_LIGHT = wp.constant(wp.vec3(*(np.array([-0.4, 1.0, 0.5]) / 1.41**0.5)))  # unit length
HAZE = wp.constant(14.0)  # m
SKY = wp.constant(wp.vec3(0.78, 0.87, 0.96))
TILES = ((0.58, 0.62, 0.68), (0.52, 0.56, 0.62))
PALETTE = ((0.92, 0.45, 0.18), (0.22, 0.47, 0.70), (0.95, 0.75, 0.30), (0.30, 0.62, 0.48))
VIEW = np.array([-0.3, 0.35, 1.0]) / np.linalg.norm([-0.3, 0.35, 1.0])  # from the robot to the camera
HALF_HEIGHT_OF_VIEW = 0.36  # half the picture's height at distance 1


@wp.struct
class Shape:
    link: int
    is_box: bool
    start: wp.vec3  # of a capsule; the centre of a box
    end: wp.vec3  # of a capsule; the half extents of a box
    radius: float
    middle: wp.vec3  # of a sphere around the whole shape
    reach: float
    color: wp.vec3


@wp.struct
class Camera:
    position: wp.vec3
    forward: wp.vec3
    right: wp.vec3  # as long as half the picture is wide at distance 1
    up: wp.vec3


@wp.func
def ray_sphere(o: wp.vec3, d: wp.vec3, center: wp.vec3, radius: float):
    """Distance along the ray o + t d, |d| = 1, to where it enters the sphere; FAR if it does not."""
    b = wp.dot(o - center, d)
    h = b * b - wp.length_sq(o - center) + radius * radius
    t = -b - wp.sqrt(wp.max(h, 0.0))
    return wp.where(h > 0.0 and t > NEAR, t, FAR)


@wp.func
def ray_capsule(o: wp.vec3, d: wp.vec3, start: wp.vec3, end: wp.vec3, radius: float):
    """Two balls and the tube between them: |(o + t d - start) x n| = radius, n the direction of the tube."""
    t = wp.min(ray_sphere(o, d, start, radius), ray_sphere(o, d, end, radius))
    length = wp.length(end - start)
    n = wp.normalize(end - start)
    across = wp.cross(d, n)
    offset = wp.cross(o - start, n)
    a = wp.length_sq(across)
    b = wp.dot(across, offset)
    h = b * b - a * (wp.length_sq(offset) - radius * radius)
    if length > 0.0 and a > 0.0 and h > 0.0:
        tube = (-b - wp.sqrt(h)) / a
        along = wp.dot(o + tube * d - start, n)
        if tube > NEAR and along > 0.0 and along < length:
            t = wp.min(t, tube)
    return t


@wp.func
def ray_box(o: wp.vec3, d: wp.vec3, half: wp.vec3):
    """The ray is inside three slabs at once from the last entry to the first exit."""
    enter = -FAR
    leave = FAR
    for k in range(3):
        a = (-half[k] - o[k]) / d[k]
        b = (half[k] - o[k]) / d[k]
        enter = wp.max(enter, wp.min(a, b))
        leave = wp.min(leave, wp.max(a, b))
    return wp.where(enter < leave and enter > NEAR, enter, FAR)


@wp.func
def nearest_shape(shapes: wp.array[Shape], link_pose: wp.array2d[wp.transform], o: wp.vec3, d: wp.vec3):
    """Distance to the first shape on the ray, and its index; -1 if there is none."""
    nearest = FAR
    index = wp.int32(-1)
    for i in range(shapes.shape[0]):
        X = link_pose[0, shapes[i].link]
        to_middle = wp.transform_point(X, shapes[i].middle) - o
        reach = shapes[i].reach
        if wp.length_sq(wp.cross(to_middle, d)) < reach * reach:
            inverse = wp.transform_inverse(X)
            local_o = wp.transform_point(inverse, o)
            local_d = wp.transform_vector(inverse, d)
            t = FAR
            if shapes[i].is_box:
                t = ray_box(local_o - shapes[i].start, local_d, shapes[i].end)
            else:
                t = ray_capsule(local_o, local_d, shapes[i].start, shapes[i].end, shapes[i].radius)
            if t < nearest:
                nearest = t
                index = i
    return nearest, index


@wp.func
def surface_normal(shape: Shape, X: wp.transform, point: wp.vec3):
    """Unit normal, in world axes, of the shape's surface at a point of the world."""
    p = wp.transform_point(wp.transform_inverse(X), point) - shape.start
    n = wp.vec3()
    if shape.is_box:
        # the face of the box that the point lies on
        q = wp.cw_div(p, shape.end)
        k = wp.argmax(wp.vec3(wp.abs(q[0]), wp.abs(q[1]), wp.abs(q[2])))
        n = wp.sign(q[k]) * wp.vec3(float(k == 0), float(k == 1), float(k == 2))
    else:
        # away from the nearest point of the capsule's axis
        axis = shape.end - shape.start
        along = wp.dot(p, axis) / wp.max(wp.length_sq(axis), 1.0e-12)
        n = p - wp.clamp(along, 0.0, 1.0) * axis
    return wp.normalize(wp.transform_vector(X, n))


@wp.func
def light_on(shapes: wp.array[Shape], link_pose: wp.array2d[wp.transform], point: wp.vec3, normal: wp.vec3):
    """Ambient light, and the sun's where nothing is in its way."""
    shadow, blocker = nearest_shape(shapes, link_pose, point, TO_LIGHT)
    return 0.45 + 0.65 * wp.where(blocker < 0, wp.max(wp.dot(normal, TO_LIGHT), 0.0), 0.0)


@wp.func
def fade(color: wp.vec3, distance: float):
    """Haze: far away everything has the sky's colour, or the tiles at the horizon would flicker."""
    d = distance / HAZE
    return wp.lerp(color, SKY, 1.0 - wp.exp(-d * d))


@wp.func
def ray_through(camera: Camera, row: int, column: int, height: int, width: int):
    """Direction, of unit length, in which the camera sees the middle of a pixel."""
    x = 2.0 * (float(column) + 0.5) / float(width) - 1.0
    y = 1.0 - 2.0 * (float(row) + 0.5) / float(height)
    return wp.normalize(camera.forward + x * camera.right + y * camera.up)


@wp.kernel
def draw_pixel(
    # Model:
    shapes: wp.array[Shape],
    tiles: wp.array[wp.vec3],
    # State in:
    link_pose: wp.array2d[wp.transform],
    # Camera:
    camera: Camera,
    # Picture out:
    picture: wp.array3d[wp.uint8],
):
    row, column = wp.tid()
    o = camera.position
    d = ray_through(camera, row, column, picture.shape[0], picture.shape[1])
    t, index = nearest_shape(shapes, link_pose, o, d)
    ground = wp.where(d[1] < 0.0, -o[1] / d[1], FAR)

    color = SKY
    if index >= 0 or ground < FAR:
        normal = wp.vec3(0.0, 1.0, 0.0)
        point = o + wp.min(t, ground) * d
        if t < ground:
            color = shapes[index].color
            normal = surface_normal(shapes[index], link_pose[0, shapes[index].link], point)
        else:
            color = tiles[(int(wp.floor(point[0])) + int(wp.floor(point[2]))) & 1]
        color = fade(color * light_on(shapes, link_pose, point, normal), wp.min(t, ground))
    for k in range(3):
        picture[row, column, k] = wp.uint8(255.0 * wp.clamp(color[k], 0.0, 1.0))


def link_poses(model, joint_q, device):
    """Where the links are: poses (n, links), a Warp array, at the coordinates joint_q (n, nq), a torch tensor."""
    n, joint_q = len(joint_q), joint_q.detach().cpu().numpy()
    with WARP, wp.ScopedDevice(device):
        pose = wp.zeros((n, model.num_links), dtype=wp.transform)
        twist, bias = (wp.zeros(pose.shape, dtype=wp.spatial_vector) for _ in range(2))
        motion_subspace = wp.zeros((n, model.num_dofs), dtype=wp.spatial_vector)
        inputs = [model, wp.array(joint_q, dtype=float), wp.zeros((n, model.num_dofs), dtype=float)]
        wp.launch(forward_kinematics, n, inputs, [pose, motion_subspace, twist, bias])
    return pose


class Renderer:
    """Draws one articulation, `width` x `height` pixels.

    look_at_height: height in m of the point that the camera looks at; distance: of the camera from it.
    """

    def __init__(self, articulation, device, look_at_height, distance, width=320, height=240):
        if not articulation.shapes:
            raise ValueError("articulation: expected at least one shape to draw, got none")
        self.device = wp.device_from_torch(device)
        self.look_at_height, self.distance = look_at_height, distance
        self.followed_link = articulation.shapes[0].link
        with WARP, wp.ScopedDevice(self.device):
            self.model = build_model(_y_up(articulation), self.device)
            self.shapes = wp.array([_shape(shape) for shape in articulation.shapes], dtype=Shape)
            self.tiles = wp.array(TILES, dtype=wp.vec3)
            self.picture = wp.zeros((height, width, 3), dtype=wp.uint8)

    def draw(self, joint_q):
        """The picture, uint8 (height, width, 3), of the state joint_q (nq,)."""
        with WARP:
            link_pose = link_poses(self.model, joint_q[None], self.device)
            inputs = [self.shapes, self.tiles, link_pose, self._camera(link_pose)]
            wp.launch(draw_pixel, self.picture.shape[:2], inputs, [self.picture], device=self.device)
            return self.picture.numpy().copy()

    def _camera(self, link_pose):
        x, _, z = link_pose.numpy()[0, self.followed_link, :3]
        camera, height = Camera(), HALF_HEIGHT_OF_VIEW
        right = np.cross((0.0, 1.0, 0.0), VIEW)
        right /= np.linalg.norm(right)
        camera.position = wp.vec3(*(self.distance * VIEW + (x, self.look_at_height, z)))
        camera.forward = wp.vec3(*-VIEW)
        camera.right = wp.vec3(*(right * height * self.picture.shape[1] / self.picture.shape[0]))
        camera.up = wp.vec3(*(np.cross(VIEW, right) * height))
        return camera


def _y_up(articulation):
    """The articulation with its roots turned, if its world is z up."""
    if not articulation.gravity[2] < 0.0:
        return articulation
    turn = wp.transform(wp.vec3(), wp.quat(*Z_UP))
    links = []
    for link in articulation.links:
        if link.parent < 0:
            frame = turn * wp.transform(wp.vec3(*link.offset), wp.quat(*link.rotation))
            link = replace(link, offset=tuple(frame.p), rotation=tuple(frame.q))
        links.append(link)
    return replace(articulation, links=links)


def color_of(shape):
    return PALETTE[shape.link % len(PALETTE) if shape.color is None else shape.color]


def _shape(shape):
    """A shape of the articulation as the kernel reads it."""
    result = Shape()
    result.link, result.is_box = shape.link, isinstance(shape, Box)
    result.color = wp.vec3(*color_of(shape))
    if isinstance(shape, Box):
        result.start, result.end = wp.vec3(*shape.center), wp.vec3(*shape.half_extents)
        result.middle, result.reach = result.start, float(np.linalg.norm(shape.half_extents))
    else:
        result.start, result.end, result.radius = wp.vec3(*shape.start), wp.vec3(*shape.end), shape.radius
        result.middle = 0.5 * (result.start + result.end)
        result.reach = shape.radius + 0.5 * float(wp.length(result.end - result.start))
    return result
