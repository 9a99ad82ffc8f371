"""The camera, light and canvases of one generated street scene.

World axes in metres: X to the right, Y up from the ground, Z ahead of a pinhole camera. Colours are 0..255 until the
light falls on them. Everything is painted twice, as colour and as class id.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "person", "bicycle")
SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PERSON, BICYCLE = range(len(CLASSES))

NEAR_M = 2.2
HAZE_M = 110.0

Colour = tuple[float, float, float]
Point = tuple[float, float]


class Scene:
    """The camera, the light and the street of one image, and the two canvases that are painted on."""

    def __init__(self, rng: np.random.Generator, width: int, height: int) -> None:
        self.rng = rng
        self.width, self.height = width, height
        self.horizon = self.height * self.uniform(0.36, 0.5)
        self.vanishing = self.width * self.uniform(0.35, 0.65)
        self.focal = self.width * self.uniform(0.65, 0.95)
        self.eye_m = self.uniform(1.3, 1.9)
        self.road_m = (-self.uniform(2.2, 6.0), self.uniform(2.2, 6.0))
        self.pavement_m = (self.uniform(1.8, 5.0), self.uniform(1.8, 5.0))
        self.overcast = self.chance(0.4)
        self.sun_side = -1 if self.chance(0.5) else 1
        dusk = self.chance(0.2)
        brightness = self.uniform(0.45, 0.7) if dusk else self.uniform(0.75, 1.15)
        self.light = toned((1.06, 0.97, 0.86) if dusk else (1.0, 1.0, 1.0), brightness)
        self.sky = self.pick(
            ((225, 165, 130),) if dusk else ((190, 194, 200),) if self.overcast else ((120, 165, 220),)
        )
        self.haze = mixed((180.0, 182.0, 185.0), self.sky, 0.6)
        self.picture = Image.new("RGB", (self.width, self.height))
        self.ids = Image.new("L", (self.width, self.height), SKY)
        self.colour_pen = ImageDraw.Draw(self.picture)
        self.id_pen = ImageDraw.Draw(self.ids)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.rng.random())

    def chance(self, probability: float) -> bool:
        return float(self.rng.random()) < probability

    def pick(self, options: Sequence[tuple[int, int, int]]) -> Colour:
        """One of the colours, a little varied."""
        chosen = options[int(self.rng.random() * len(options))]
        return toned(chosen, self.uniform(0.85, 1.15), self.uniform(-8, 8))

    def project(self, x: float, y: float, z: float) -> Point:
        """Pixel (column, row) of a point in metres."""
        return self.vanishing + self.focal * x / z, self.horizon + self.focal * (self.eye_m - y) / z

    def pen(self, colour: Colour, z: float) -> tuple[int, int, int]:
        """The colour under this light, faded by the haze of `z` metres."""
        red, green, blue = mixed(self.haze, colour, math.exp(-z / HAZE_M))
        light = self.light
        return _byte(red * light[0]), _byte(green * light[1]), _byte(blue * light[2])

    def fill(self, points: Sequence[Point], colour: Colour, z: float, class_id: int | None) -> None:
        """A polygon of pixels; None leaves the class under it as it is."""
        self.colour_pen.polygon(points, fill=self.pen(colour, z))
        if class_id is not None:
            self.id_pen.polygon(points, fill=class_id)

    def board(
        self, x: tuple[float, float], y: tuple[float, float], z: float, colour: Colour, class_id: int | None
    ) -> None:
        """An upright rectangle that faces the camera."""
        left, bottom = self.project(x[0], y[0], z)
        right, top = self.project(x[1], y[1], z)
        box = (left, top, max(right, left), max(bottom, top))
        self.colour_pen.rectangle(box, fill=self.pen(colour, z))
        if class_id is not None:
            self.id_pen.rectangle(box, fill=class_id)

    def blob(self, x: float, y: float, z: float, radius: Point, colour: Colour, class_id: int | None) -> None:
        """An upright ellipse with radii (across, up) in metres."""
        column, row = self.project(x, y, z)
        across, up = self.focal * radius[0] / z, self.focal * radius[1] / z
        box = (column - across, row - up, column + across, row + up)
        self.colour_pen.ellipse(box, fill=self.pen(colour, z))
        if class_id is not None:
            self.id_pen.ellipse(box, fill=class_id)

    def strip(self, x: tuple[float, float], z: tuple[float, float], colour: Colour, class_id: int | None) -> None:
        """A rectangle on the ground."""
        self.fill([self.project(x[i], 0, z[j]) for i, j in ((0, 0), (0, 1), (1, 1), (1, 0))], colour, z[0], class_id)

    def wall(
        self, x: float, y: tuple[float, float], z: tuple[float, float], colour: Colour, class_id: int | None
    ) -> None:
        """An upright rectangle along the street."""
        points = [self.project(x, y[i], z[j]) for i, j in ((0, 0), (0, 1), (1, 1), (1, 0))]
        self.fill(points, colour, z[0], class_id)

    def shade(self, points: Sequence[Point], strength: float) -> None:
        """Darken a polygon: 0 leaves it, 1 makes it black."""
        left, top = (max(0, math.floor(min(p[axis] for p in points))) for axis in (0, 1))
        right = min(self.width, math.ceil(max(p[0] for p in points)) + 1)
        bottom = min(self.height, math.ceil(max(p[1] for p in points)) + 1)
        if right <= left or bottom <= top:
            return
        mask = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(mask).polygon([(x - left, y - top) for x, y in points], fill=int(255 * strength))
        self.picture.paste((8, 10, 16), (left, top, right, bottom), mask)


def toned(colour: Colour, factor: float, more: float = 0.0) -> Colour:
    return colour[0] * factor + more, colour[1] * factor + more, colour[2] * factor + more


def mixed(first: Colour, second: Colour, share: float) -> Colour:
    """`share` of the second colour, the rest of the first."""
    rest = 1 - share
    return (
        first[0] * rest + second[0] * share,
        first[1] * rest + second[1] * share,
        first[2] * rest + second[2] * share,
    )


def _byte(value: float) -> int:
    return 0 if value < 0 else 255 if value > 255 else int(value)


def ordered(a: float, b: float) -> tuple[float, float]:
    return (a, b) if a < b else (b, a)
