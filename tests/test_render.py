"""Pictures: what is drawn where, in which light, and what a camera that moves along does not change."""

import numpy as np
import pytest
import torch

import envs
from envs.physics import FREE, Articulation, Box, Capsule, Link
from envs.render import HALF_HEIGHT_OF_VIEW, HAZE, PALETTE, SKY, TO_LIGHT, VIEW, Renderer

AT_REST = [0.0, 0.0, 0.0, 1.0]  # no rotation
DISTANCE, HEIGHT = 4.0, 0.5


def picture(shapes, position=(0.0, 0.0, 0.0), rotation=AT_REST, device="cpu"):
    """A robot of one free link, which the camera follows, as whole numbers from 0 to 255."""
    links = [Link("moving", -1, FREE, mass=1.0, inertia=(1, 1, 1))]
    robot = Articulation(links, shapes=shapes)
    state = torch.tensor([*position, *rotation], device=device)
    return Renderer(robot, torch.device(device), HEIGHT, DISTANCE).draw(state).astype(int)


def pixel_of(point, followed=(0.0, 0.0)):
    """Row and column that a pinhole camera as described in render.py sees the world's `point` at."""
    eye = DISTANCE * VIEW + (followed[0], HEIGHT, followed[1])
    right = np.cross((0.0, 1.0, 0.0), VIEW)
    right /= np.linalg.norm(right)
    up = np.cross(VIEW, right)
    ray = np.asarray(point) - eye
    depth = -ray @ VIEW
    scale = 120.0 / (HALF_HEIGHT_OF_VIEW * depth)
    return 120.0 - scale * (ray @ up), 160.0 + scale * (ray @ right)


def mask(image, link=0):
    """Pixels with the hue of a link: within 10 degrees of its colour times any brightness; haze turns it a little."""
    hue = np.array(PALETTE[link]) / np.linalg.norm(PALETTE[link])
    return image @ hue > 0.985 * np.linalg.norm(image, axis=2)


@pytest.mark.parametrize("center", ((0.0, 0.5, 0.0), (0.8, 0.3, -0.5), (-0.6, 1.0, 0.4)))
def test_a_ball_is_where_a_pinhole_camera_sees_it(center):
    rows, columns = mask(picture([Capsule(0, center, center, 0.1)])).nonzero()
    # perspective shifts the centre of a ball's outline by less than a pixel
    assert np.allclose((rows.mean() + 0.5, columns.mean() + 0.5), pixel_of(center), atol=1.0)
    depth = (DISTANCE * VIEW + (0.0, HEIGHT, 0.0) - center) @ VIEW
    # eight pixels of radius: whole pixels at the rim are off by some percent of the area
    assert len(rows) == pytest.approx(np.pi * (0.1 * 120.0 / (HALF_HEIGHT_OF_VIEW * depth)) ** 2, rel=0.05)


def test_a_capsule_reaches_from_one_end_to_the_other():
    start, end = (-0.7, 0.5, 0.0), (0.7, 0.9, 0.0)
    drawn = mask(picture([Capsule(0, start, end, 0.05)]))
    for k in np.linspace(0.0, 1.0, 9):
        row, column = pixel_of(np.array(start) * (1 - k) + np.array(end) * k)
        assert drawn[int(row), int(column)], k
    beyond = pixel_of((0.85, 0.943, 0.0))
    assert not drawn[int(beyond[0]), int(beyond[1])]


def test_a_box_turns_with_its_link():
    box = [Box(0, (0, 0, 0), (0.6, 0.05, 0.05))]
    quarter_turn = [0.0, 0.0, 0.5**0.5, 0.5**0.5]  # about z: the long side stands up
    for rotation, tip, nothing in ((AT_REST, (0.5, 0.7, 0), (0, 1.2, 0)), (quarter_turn, (0, 1.2, 0), (0.5, 0.7, 0))):
        drawn = mask(picture(box, position=(0.0, 0.7, 0.0), rotation=rotation))
        assert drawn[tuple(int(x) for x in pixel_of(tip))]
        assert not drawn[tuple(int(x) for x in pixel_of(nothing))]


def test_the_nearer_shape_hides_the_other():
    near, far = (0.0, 0.5, 0.5), (0.0, 0.5, 0.5) - VIEW
    shapes = [Capsule(0, near, near, 0.1), Box(0, tuple(far), (0.05, 0.05, 0.05))]
    row, column = (int(x) for x in pixel_of(near))
    ball, box = (picture([shape])[row, column] for shape in shapes)
    assert (ball != box).any()
    for both in (shapes, shapes[::-1]):
        assert (picture(both)[row, column] == ball).all()


def brightness(image, point):
    """The light on the surface at the world's point, from its pixel: what ambient light and sun leave of the colour."""
    row, column = (int(x) for x in pixel_of(point))
    distance = np.linalg.norm(DISTANCE * VIEW + (0.0, HEIGHT, 0.0) - point)
    haze = 1.0 - np.exp(-((distance / HAZE) ** 2))
    lit = (image[row, column] / 255.0 - haze * np.array([*SKY])) / (1.0 - haze)
    return (lit / PALETTE[0]).mean()


def test_a_surface_is_as_bright_as_it_faces_the_light():
    light = np.array([*TO_LIGHT])
    turned = np.array([0.0, np.sin(0.2), 0.0, np.cos(0.2)])  # 0.4 rad about y
    box, ball = [Box(0, (0, 0, 0), (0.3, 0.2, 0.3))], [Capsule(0, (0, 0, 0), (0, 0, 0), 0.3)]
    middle = np.array([0.0, 0.6, 0.0])
    cases = [(box, AT_REST, (0.0, 1.0, 0.0), 0.2), (box, AT_REST, (0.0, 0.0, 1.0), 0.3)]
    cases += [(box, turned, (np.sin(0.4), 0.0, np.cos(0.4)), 0.3), (ball, AT_REST, VIEW, 0.3)]
    cases += [(ball, AT_REST, (0.0, 0.6, 0.8), 0.3), (ball, AT_REST, (0.6, 0.0, 0.8), 0.3)]
    for shapes, rotation, normal, depth in cases:
        image = picture(shapes, position=middle, rotation=rotation)
        expected = 0.45 + 0.65 * max(np.dot(normal, light), 0.0)
        # a pixel is 1 cm wide, over which the ball's normal turns by 0.03 rad
        assert brightness(image, middle + depth * np.array(normal)) == pytest.approx(expected, abs=0.03), normal


def test_the_ground_is_dark_where_the_light_is_blocked():
    ball = np.array([0.0, 0.6, 0.0])
    image = picture([Capsule(0, tuple(ball), tuple(ball), 0.15)])
    light = np.array([*TO_LIGHT])
    shadow = ball - light * ball[1] / light[1]  # where the light through the ball's centre meets the ground
    row, column = (int(x) for x in pixel_of(shadow))
    # outside the shadow, on the same tile
    lit_row, lit_column = (int(x) for x in pixel_of(shadow + (0.4, 0.0, 0.0)))
    # ambient light alone is 0.45 of a light that is 0.45 + 0.65 * 0.84; haze brings the two nearer to each other
    assert image[row, column].sum() < 0.6 * image[lit_row, lit_column].sum()


def test_the_camera_moves_along_with_the_robot():
    shapes = [Capsule(0, (0, 0, 0), (0.3, 0, 0), 0.1)]
    near = picture(shapes, position=(0.25, 0.5, 0.0))
    far = picture(shapes, position=(200.25, 0.5, 100.0))  # the tiles repeat every 2 m
    # float32 at 200 m moves an edge by a hundredth of a pixel: a few of the 76,800 pixels fall on the other side
    assert (near != far).any(axis=2).mean() < 0.005


def test_a_picture_of_a_task_shows_the_environment_that_was_asked_for():
    env = envs.make("ant", num_envs=3, seed=1)
    env.reset()
    images = [env.render(k) for k in range(3)]
    assert all(image.shape == (240, 320, 3) and image.dtype == np.uint8 for image in images)
    assert (images[0] != images[2]).any()
    assert (env.render() == images[0]).all()
    env.step(torch.zeros(3, 8))
    assert (env.render() != images[0]).any()
    assert env.metadata["render_modes"] == ["rgb_array"]


@pytest.mark.parametrize("env_id", envs.ENV_IDS)
def test_every_robot_is_in_the_middle_of_its_picture(env_id):
    env = envs.make(env_id, stochastic_reset=False)
    env.reset()
    drawn = np.any([mask(env.render().astype(int), link) for link in (0, 2)], axis=0)  # orange and yellow links
    rows, columns = drawn.nonzero()
    assert len(rows) > 100  # of 76,800 pixels; the hopper, the thinnest of them, has several hundred
    assert 60 < np.median(rows) < 180
    assert 80 < np.median(columns) < 240


def test_a_picture_changes_neither_the_state_nor_the_gradient():
    results = []
    for looks in (False, True):
        env = envs.make("hopper", num_envs=2, seed=5)
        env.reset()
        actions, total = torch.full((4, 2, 3), 0.3, requires_grad=True), 0.0
        for t in range(4):
            _, reward, *_ = env.step(actions[t])
            total = total + reward.sum()
            if looks:
                env.render(1)
        results.append((env.joint_q.detach(), torch.autograd.grad(total, actions)[0]))
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_bad_requests_are_refused_by_name():
    env = envs.make("hopper", num_envs=2)
    with pytest.raises(RuntimeError, match="reset"):
        env.render()
    env.reset()
    for index in (2, -1, 0.5):
        with pytest.raises(ValueError, match=r"index: expected a whole number .*, got " + str(index)):
            env.render(index)
    env.close()
    with pytest.raises(RuntimeError, match="closed"):
        env.render()
    with pytest.raises(ValueError, match="articulation: expected at least one shape"):
        picture([])
    with pytest.raises(ValueError, match="shape 0: link must be 0 .. 0, got 1"):
        picture([Box(1, (0, 0, 0), (1, 1, 1))])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_draws_the_same_picture():
    shapes = [Capsule(0, (0, 0, 0), (0.3, 0.4, 0), 0.1), Box(0, (0, 0, 0), (0.6, 0.05, 0.05))]
    cpu, cuda = (picture(shapes, (0.0, 0.5, 0.0), device=device) for device in ("cpu", "cuda"))
    # the two compilers round differently: single steps of 1/255, and edges that fall on the other side of a pixel
    assert (np.abs(cpu - cuda) > 1).any(axis=2).mean() < 0.005
