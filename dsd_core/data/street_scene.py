"""One generated street scene, painted from far to near, then photographed.

It is painted at twice its size; the image is then averaged down (soft edges), the class ids are sampled.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from dsd_core.data.dataset import IGNORE, Item
from dsd_core.data.street_camera import (
    BICYCLE,
    BUILDING,
    NEAR_M,
    PAVEMENT,
    PERSON,
    POLE,
    ROAD,
    SIGN,
    TREE,
    Colour,
    Scene,
    mixed,
    ordered,
    toned,
)
from dsd_core.data.street_things import (
    WALLS,
    Thing,
    bicycle,
    car,
    fence,
    house,
    lamp_post,
    leaves,
    person,
    sign_post,
    street_tree,
)

VERSION = 1
HEIGHT, WIDTH = 96, 160
OVERSAMPLING = 2
FAR_M = 140.0
GRAIN = np.array([1.5, 8, 5, 6, 7, 17, 4, 9, 4, 9, 9], dtype=np.float32)
"""Amplitude of each class's own texture, in per cent of its brightness."""
VOID_SHARE = 0.3
THIN = (POLE, SIGN, PERSON, BICYCLE)


def draw_scene(stream: int, index: int) -> Item:
    """The image (uint8 HW3) and label (uint8 HW) numbered `index` of a stream; always the same bytes."""
    key = np.array([VERSION, stream], dtype=np.uint64)
    rng = np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, index, 0], dtype=np.uint64)))
    scene = Scene(rng, WIDTH * OVERSAMPLING, HEIGHT * OVERSAMPLING)
    paint_sky(scene)
    paint_ground(scene)
    things = [*side_of_street(scene, -1), *side_of_street(scene, 1), *traffic(scene)]
    for _, paint in sorted(things, key=lambda thing: -thing[0]):
        paint()
    return develop(scene)


def paint_sky(scene: Scene) -> None:
    """A gradient, clouds, and what stands on the horizon."""
    top = toned(scene.sky, 0.95 if scene.overcast else 0.75)
    for row in range(0, int(scene.horizon) + 1, 4):
        mix = (row / scene.horizon) ** 1.5
        scene.colour_pen.rectangle((0, row, scene.width, row + 4), fill=scene.pen(mixed(top, scene.haze, mix), 0))
    for _ in range(int(scene.uniform(0, 7))):
        column, middle_row = scene.uniform(0, scene.width), scene.uniform(0, scene.horizon * 0.8)
        cloud = toned(scene.sky, 0.6, scene.uniform(75, 105))
        for _ in range(3):
            across, up = scene.uniform(10, 40), scene.uniform(2, 7)
            middle = column + scene.uniform(-25, 25)
            scene.colour_pen.ellipse(
                (middle - across, middle_row - up, middle + across, middle_row + up), fill=scene.pen(cloud, 0)
            )
    paint_skyline(scene)


def paint_skyline(scene: Scene) -> None:
    left = 0.0
    while left < scene.width:
        width = scene.uniform(8, 40)
        right = left + width
        top = scene.horizon - scene.uniform(2, 16)
        if scene.chance(0.5):
            box = (left, top, right, scene.horizon + 3)
            scene.colour_pen.rectangle(box, fill=scene.pen(scene.pick(WALLS), 90))
            scene.id_pen.rectangle(box, fill=BUILDING)
        else:
            box = (left - 5, top, right + 5, 2 * scene.horizon - top)
            scene.colour_pen.ellipse(box, fill=scene.pen(leaves(scene), 90))
            scene.id_pen.ellipse(box, fill=TREE)
        left = right


def paint_ground(scene: Scene) -> None:
    """Pavement everywhere, the road with its markings on it, stains and shadows on both."""
    slabs = scene.pick(((125, 123, 120), (137, 122, 108), (115, 114, 114)))
    asphalt = toned((96, 97, 101), scene.uniform(0.75, 1.2))
    left, right = scene.road_m
    for near, far in ((40, FAR_M), (15, 40), (6, 15), (1.0, 6)):
        scene.strip((-300, 300), (near, far), slabs, PAVEMENT)
        scene.strip((left, right), (near, far), asphalt, ROAD)
    for side, edge in ((-1, left), (1, right)):
        scene.strip(ordered(edge, edge + side * 0.22), (NEAR_M, FAR_M), toned(slabs, scene.uniform(1.1, 1.3)), PAVEMENT)
    paint_joints(scene, slabs)
    paint_markings(scene)
    for _ in range(int(scene.uniform(1, 7))):
        x, z = scene.uniform(left - 2, right + 2), scene.uniform(3, 30)
        paint_stain(scene, x, z)


def paint_joints(scene: Scene, slabs: Colour) -> None:
    """The lines between the pavement's slabs."""
    step = scene.uniform(0.8, 1.6)
    for side in (0, 1):
        edge, outward = scene.road_m[side], (-1, 1)[side]
        for row in range(12):
            z = NEAR_M + 0.6 + row * step
            ends = [scene.project(edge + outward * x, 0, z) for x in (0.22, scene.pavement_m[side])]
            scene.colour_pen.line(ends, fill=scene.pen(toned(slabs, 0.82), z))


def paint_markings(scene: Scene) -> None:
    left, right = scene.road_m
    white = toned((215, 213, 205), scene.uniform(0.7, 1.05))
    middle = (left + right) / 2 + scene.uniform(-0.4, 0.4)
    if scene.chance(0.75):
        dash, gap, z = scene.uniform(1.5, 4), scene.uniform(2, 5), scene.uniform(1.5, 5)
        while z < 70:
            scene.strip((middle - 0.08, middle + 0.08), (z, z + dash), white, None)
            z += dash + gap
    if scene.chance(0.4):
        for edge in (left + 0.3, right - 0.3):
            scene.strip((edge - 0.06, edge + 0.06), (NEAR_M, 90), white, None)
    if scene.chance(0.3):
        z = scene.uniform(5, 20)
        x = left + 0.4
        while x < right - 0.5:
            scene.strip((x, x + 0.45), (z, z + 3), white, None)
            x += 0.95


def paint_stain(scene: Scene, x: float, z: float) -> None:
    across, along, strength = scene.uniform(0.2, 1.4), scene.uniform(0.2, 2.0), scene.uniform(0.08, 0.3)
    turns = [2 * math.pi * corner / 8 for corner in range(8)]
    outline = [scene.project(x + across * math.cos(t), 0, max(NEAR_M, z + along * math.sin(t))) for t in turns]
    scene.shade(outline, strength)


def side_of_street(scene: Scene, side: int) -> list[Thing]:
    """Buildings, gardens and everything that stands on the pavement, on the left (-1) or the right (1)."""
    kerb = scene.road_m[0 if side < 0 else 1]
    front = kerb + side * scene.pavement_m[0 if side < 0 else 1]
    things: list[Thing] = []
    z, sunny = scene.uniform(1.6, 4), side != scene.sun_side
    while z < 90:
        length = scene.uniform(5, 18) * (1 + z / 60)
        things += plot(scene, side, front, (z, z + length), sunny)
        z += length + (scene.uniform(1, 7) if scene.chance(0.25) else 0.0)
    lamp = scene.uniform(5, 16)
    while lamp < 50:
        things.append(lamp_post(scene, kerb + side * 0.5, lamp, side))
        lamp += scene.uniform(14, 30)
    places = [kerb + side * 0.55, (kerb + front) / 2, front - side * 0.4]
    makers = ((street_tree, 1.3, 1.0), (sign_post, 1.5, 0.5), (person, 2.2, 1.2), (bicycle, 0.9, 0.6))
    for make, most, spread in makers:
        for _ in range(int(scene.uniform(0, most + 1))):
            x = places[int(scene.uniform(0, 3))] + side * scene.uniform(-0.3, 0.3) * spread
            things.append(make(scene, x, distance(scene, 4.5, 35.0)))
    if scene.chance(0.65):
        parked = scene.uniform(5, 25)
        for _ in range(int(scene.uniform(1, 5))):
            things.append(car(scene, kerb - side * 1.05, parked, side))
            parked += scene.uniform(5.2, 11)
    return things


def plot(scene: Scene, side: int, front: float, z: tuple[float, float], sunny: bool) -> list[Thing]:
    """What fills one piece of the street's side: a house, or a garden behind a fence."""
    if scene.chance(0.72):
        return [house(scene, side, front, z, sunny)]
    depth = side * scene.uniform(3, 7)
    things = [house(scene, side, front + depth, z, sunny)] if scene.chance(0.5) else []
    for _ in range(int(scene.uniform(1, 4))):
        x = front + side * scene.uniform(1.0, 3.5)
        things.append(street_tree(scene, x, scene.uniform(max(z[0], 4.0), max(z[1], 5.0))))
    return [*things, fence(scene, front, z)] if scene.chance(0.85) else things


def traffic(scene: Scene) -> list[Thing]:
    """Cars on the road, cyclists at its edge, people who cross it."""
    left, right = scene.road_m
    things: list[Thing] = []
    z = scene.uniform(6, 30)
    for _ in range(int(scene.uniform(0, 4))):
        things.append(car(scene, scene.uniform(left + 1.4, right - 1.4), z, 0))
        z += scene.uniform(7, 25)
    for _ in range(int(scene.uniform(0, 2))):
        things.append(bicycle(scene, scene.uniform(left + 0.5, right - 0.5), distance(scene, 5, 30)))
    for _ in range(int(scene.uniform(0, 2.4))):
        things.append(person(scene, scene.uniform(left, right), distance(scene, 6, 40)))
    return things


def distance(scene: Scene, near: float, far: float) -> float:
    """Metres, near ones likelier."""
    return near * (far / near) ** scene.uniform(0, 1)


def develop(scene: Scene) -> Item:
    """Average down, add texture, light and sensor noise; the labels get void pixels where classes meet."""
    pixels = np.asarray(scene.picture.reduce(OVERSAMPLING), dtype=np.float32)
    ids = np.asarray(scene.ids)[::OVERSAMPLING, ::OVERSAMPLING]
    texture = _noise(scene.rng, 1) * 0.6 + _noise(scene.rng, 3) * 0.9
    pixels *= (1 + texture * GRAIN[ids] / 100)[:, :, None]
    pixels *= _uneven_light(scene)[:, :, None]
    grey = pixels.mean(axis=2, keepdims=True)
    pixels += (grey - pixels) * scene.uniform(-0.1, 0.45)
    pixels += scene.rng.standard_normal(pixels.shape, dtype=np.float32) * scene.uniform(1.5, 5)
    image_HW3 = pixels.clip(0, 255).astype(np.uint8)
    return image_HW3, _with_void(ids, scene.rng)


def _noise(rng: np.random.Generator, cell: int) -> np.ndarray:
    """Smooth noise of about unit deviation, float32 HW; a blob is about `cell` pixels wide."""
    coarse = rng.standard_normal((-(-HEIGHT // cell), -(-WIDTH // cell)), dtype=np.float32)
    if cell == 1:
        return coarse
    return np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)) * 1.5


def _uneven_light(scene: Scene) -> np.ndarray:
    """A slope of light across the image and darker corners, float32 HW."""
    rows = np.linspace(-1, 1, HEIGHT, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, WIDTH, dtype=np.float32)[None, :]
    slope = scene.uniform(-0.12, 0.12) * columns + scene.uniform(-0.08, 0.08) * rows
    return 1 + slope - scene.uniform(0, 0.1) * (rows**2 + columns**2)


def _with_void(ids_HW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Some pixels at the borders of classes become 255, but not those of thin things, which would vanish."""
    label = ids_HW.copy()
    border = np.zeros(label.shape, dtype=bool)
    border[:, 1:] |= ids_HW[:, 1:] != ids_HW[:, :-1]
    border[1:] |= ids_HW[1:] != ids_HW[:-1]
    border &= ~np.isin(ids_HW, THIN)
    label[border & (rng.random(label.shape, dtype=np.float32) < VOID_SHARE)] = IGNORE
    return label
