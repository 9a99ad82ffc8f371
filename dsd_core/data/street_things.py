"""What stands and moves in a generated street: each function chooses one thing and returns how to paint it."""

from __future__ import annotations

from collections.abc import Callable

from dsd_core.data.street_camera import (
    BICYCLE,
    BUILDING,
    CAR,
    FENCE,
    NEAR_M,
    PERSON,
    POLE,
    SIGN,
    TREE,
    Colour,
    Scene,
    ordered,
    toned,
)

WINDOWS_M = 32.0
"""Farther windows are smaller than a pixel."""

CAR_PAINTS = (
    (190, 190, 195),
    (40, 42, 48),
    (110, 115, 122),
    (150, 30, 30),
    (35, 60, 130),
    (225, 222, 215),
    (60, 85, 70),
    (170, 140, 60),
)
WALLS = (
    (150, 95, 75),
    (170, 155, 130),
    (135, 130, 128),
    (190, 175, 150),
    (110, 85, 75),
    (160, 120, 100),
    (120, 125, 135),
    (200, 195, 185),
)
SIGNS = ((190, 35, 35), (30, 70, 170), (225, 190, 40), (40, 120, 70), (225, 225, 225))


Thing = tuple[float, Callable[[], None]]
"""Its distance in metres, and what paints it."""


def house(scene: Scene, side: int, front: float, z: tuple[float, float], sunny: bool) -> Thing:
    tall = scene.uniform(5, 16)
    colour = toned(scene.pick(WALLS), 1.08 if sunny else 0.78)
    glass = toned((60, 70, 85), scene.uniform(0.6, 1.8))
    storey, bay = scene.uniform(2.6, 3.4), scene.uniform(1.8, 3.4)
    shop = toned(scene.pick(SIGNS), 0.8) if scene.chance(0.3) else None
    roof = scene.pick(((110, 60, 50), (80, 80, 85), (95, 75, 65)))
    near = max(z[0], 1.2)

    def paint() -> None:
        end = ordered(front, front + side * 14)
        scene.board(end, (0, tall), near, toned(colour, 0.85), BUILDING)
        scene.wall(front, (0, tall), (near, z[1]), colour, BUILDING)
        scene.wall(front, (tall - 0.5, tall), (near, z[1]), roof, None)
        floors = range(int((tall - 0.8) / storey)) if z[0] < WINDOWS_M else ()
        for column in range(min(6, int((z[1] - z[0]) / bay))):
            start = z[0] + column * bay + bay * 0.25
            if start < 1.4:
                continue
            for floor in floors:
                foot = floor * storey + 0.9
                scene.wall(front, (foot, foot + storey * 0.5), (start, start + bay * 0.5), glass, None)
        if shop is not None:
            scene.wall(front, (2.5, 3.2), (near, z[1]), shop, None)

    return (z[0] + z[1]) / 2 + abs(front) * 0.01, paint


def fence(scene: Scene, front: float, z: tuple[float, float]) -> Thing:
    tall, near = scene.uniform(0.9, 2.0), max(z[0], 1.6)
    colour = scene.pick(((120, 95, 70), (70, 80, 75), (150, 150, 145), (95, 70, 55)))
    step = scene.uniform(0.25, 0.6)

    def paint() -> None:
        scene.wall(front, (0, tall), (near, z[1]), colour, FENCE)
        post = near
        while post < min(z[1], 30):
            scene.colour_pen.line(
                [scene.project(front, y, post) for y in (0, tall)], fill=scene.pen(toned(colour, 0.6), post)
            )
            post += step
        scene.wall(front, (tall * 0.85, tall), (near, z[1]), toned(colour, 0.75), None)

    return z[0], paint


def lamp_post(scene: Scene, x: float, z: float, side: int) -> Thing:
    tall, thick = scene.uniform(4.5, 8), scene.uniform(0.09, 0.15)
    colour = scene.pick(((70, 72, 75), (120, 122, 125), (60, 75, 65)))

    def paint() -> None:
        thickness = max(thick, 0.8 * z / scene.focal)
        scene.board((x - thickness, x + thickness), (0, tall), z, colour, POLE)
        reach = ordered(x, x - side * 1.3)
        scene.board(reach, (tall - 0.1, tall), z, colour, POLE)

    return z, paint


def sign_post(scene: Scene, x: float, z: float) -> Thing:
    tall, half = scene.uniform(2.3, 3.3), scene.uniform(0.35, 0.65)
    face, mark = scene.pick(SIGNS), scene.pick(((235, 235, 235), (30, 30, 30)))
    shape = int(scene.uniform(0, 3))

    def paint() -> None:
        thick = max(0.06, 1.2 * z / scene.focal)
        scene.board((x - thick, x + thick), (0, tall), z, (125, 127, 130), POLE)
        if shape == 0:
            scene.blob(x, tall, z, (half, half), face, SIGN)
        elif shape == 1:
            scene.board((x - half, x + half), (tall - half, tall + half), z, face, SIGN)
        else:
            corners = [(x - half, tall - half), (x + half, tall - half), (x, tall + half)]
            scene.fill([scene.project(px, py, z) for px, py in corners], face, z, SIGN)
        scene.board((x - half * 0.5, x + half * 0.5), (tall - half * 0.2, tall + half * 0.2), z, mark, None)

    return z, paint


def leaves(scene: Scene) -> Colour:
    return scene.pick(((58, 82, 40), (75, 95, 45), (45, 70, 45), (105, 100, 45), (85, 70, 45)))


def street_tree(scene: Scene, x: float, z: float) -> Thing:
    trunk, crown = scene.uniform(1.2, 2.6), scene.uniform(1.0, 2.4)
    colour = leaves(scene)
    puffs = [
        (scene.uniform(-0.8, 0.8), scene.uniform(0.0, 1.5), scene.uniform(0.45, 0.8), scene.uniform(0.7, 1.25))
        for _ in range(7)
    ]
    bark = (75, 60, 48)

    def paint() -> None:
        thick = max(0.13, 1.0 * z / scene.focal)
        cast_shadow(scene, x, z, crown, 0.35)
        scene.board((x - thick, x + thick), (0, trunk + crown), z, bark, TREE)
        for across, up, size, tone in puffs:
            radius = crown * size
            scene.blob(
                x + across * crown, trunk + crown * (0.5 + up), z, (radius, radius * 0.85), toned(colour, tone), TREE
            )

    return z, paint


def cast_shadow(scene: Scene, x: float, z: float, half: float, strength: float) -> None:
    """On the ground, away from the sun; faint under an overcast sky."""
    soft = strength * (0.45 if scene.overcast else 1.0)
    reach = x - scene.sun_side * half * (0.2 if scene.overcast else 1.6)
    corners = ((x - half, -0.4), (x + half, -0.4), (reach + half, 0.5), (reach - half, 0.5))
    scene.shade([scene.project(px, 0, max(NEAR_M, z + half * dz)) for px, dz in corners], soft)


def car(scene: Scene, x: float, z: float, side: int) -> Thing:
    """A box with a cabin, seen from behind or ahead; its flank shows on the side of the street's middle."""
    half, tall, length = scene.uniform(0.8, 0.95), scene.uniform(1.35, 1.9), scene.uniform(3.6, 4.6)
    paint_colour, lights = scene.pick(CAR_PAINTS), scene.pick(((190, 30, 25), (240, 235, 210)))
    glass = toned((45, 52, 60), scene.uniform(0.7, 1.6))
    belt = tall * scene.uniform(0.52, 0.62)
    dark = (22, 22, 24)

    def paint() -> None:
        far = z + length
        cast_shadow(scene, x, z + length / 2, half * 1.25, 0.6)
        scene.strip((x - half, x + half), (z - 0.15, far), dark, None)
        flank = x - half if x > 0 else x + half
        scene.wall(flank, (0.22, belt), (z, far), toned(paint_colour, 0.8), CAR)
        scene.wall(flank, (0.0, 0.5), (z + 0.5, z + 1.1), dark, CAR)
        scene.wall(flank, (0.0, 0.5), (far - 1.2, far - 0.6), dark, CAR)
        roof = [(x - half * 0.75, tall, z + 0.7), (x + half * 0.75, tall, z + 0.7)]
        back = [(x + half * 0.75, tall, far - 1.2), (x - half * 0.75, tall, far - 1.2)]
        cabin = [(flank * 0.98 + x * 0.02, belt, z + 0.1), (x + (flank - x) * 0.75, tall, z + 0.7)]
        cabin += [(x + (flank - x) * 0.75, tall, far - 1.2), (flank, belt, far - 0.5)]
        scene.fill([scene.project(*corner) for corner in cabin], toned(glass, 0.9), z, CAR)
        scene.fill([scene.project(*corner) for corner in roof + back], toned(paint_colour, 1.1), z, CAR)
        window = [
            (x - half, belt, z),
            (x + half, belt, z),
            (x + half * 0.75, tall, z + 0.7),
            (x - half * 0.75, tall, z + 0.7),
        ]
        scene.fill([scene.project(*corner) for corner in window], glass, z, CAR)
        scene.board((x - half, x + half), (0.25, belt), z, paint_colour, CAR)
        for wheel in (-1, 1):
            middle = x + wheel * half * 0.78
            scene.board((middle - 0.11, middle + 0.11), (0.0, 0.35), z, dark, CAR)
            scene.board((middle - 0.14, middle + 0.14), (belt - 0.28, belt - 0.1), z, lights, CAR)
        scene.board((x - 0.25, x + 0.25), (0.42, 0.54), z, (215, 210, 190), CAR)

    return z, paint


def person(scene: Scene, x: float, z: float) -> Thing:
    tall, stride = scene.uniform(1.5, 1.9), scene.uniform(0.02, 0.22)
    coat = scene.pick(
        ((60, 50, 70), (120, 40, 40), (40, 60, 90), (150, 140, 120), (50, 70, 50), (30, 30, 32), (200, 170, 60))
    )
    trousers = scene.pick(((40, 45, 65), (35, 35, 38), (110, 95, 75)))
    skin = scene.pick(((205, 160, 130), (130, 90, 65), (90, 60, 45)))

    def paint() -> None:
        cast_shadow(scene, x, z, 0.25, 0.45)
        hip, neck = tall * 0.48, tall * 0.85
        thick = max(0.08, 1.0 * z / scene.focal)
        for leg in (-stride, stride):
            foot, top = scene.project(x + leg, 0, z), scene.project(x + leg * 0.3, hip, z)
            across = scene.focal * thick / z
            outline = [
                (foot[0] - across, foot[1]),
                (foot[0] + across, foot[1]),
                (top[0] + across, top[1]),
                (top[0] - across, top[1]),
            ]
            scene.fill(outline, trousers, z, PERSON)
        scene.board((x - 0.23, x + 0.23), (hip * 0.9, neck), z, coat, PERSON)
        scene.blob(x, tall * 0.92, z, (0.11, 0.14), skin, PERSON)

    return z, paint


def bicycle(scene: Scene, x: float, z: float) -> Thing:
    """A bicycle with its rider, or leaning alone; both are the class bicycle, as in CamVid."""
    across = scene.chance(0.5)
    ridden = scene.chance(0.7)
    coat = scene.pick(((60, 50, 70), (120, 40, 40), (40, 60, 90), (200, 170, 60), (30, 30, 32), (170, 170, 165)))
    frame = scene.pick(((150, 30, 30), (30, 40, 110), (40, 40, 42), (70, 110, 70)))
    skin = scene.pick(((205, 160, 130), (130, 90, 65), (90, 60, 45)))
    dark = (28, 28, 30)

    def paint() -> None:
        cast_shadow(scene, x, z, 0.4 if across else 0.2, 0.4)
        if across:
            for wheel in (-0.5, 0.5):
                ring(scene, x + wheel, z, dark)
            scene.board((x - 0.5, x + 0.45), (0.5, 0.62), z, frame, BICYCLE)
            scene.board((x - 0.28, x - 0.2), (0.35, 0.95), z, frame, BICYCLE)
        else:
            thick = max(0.06, 1.0 * z / scene.focal)
            scene.board((x - thick, x + thick), (0, 0.75), z, dark, BICYCLE)
            scene.board((x - 0.28, x + 0.28), (0.95, 1.03), z, frame, BICYCLE)
        if ridden:
            wide = 0.2 if across else 0.24
            scene.board((x - wide, x - 0.03), (0.35, 0.95), z, toned(dark, 1.8), BICYCLE)
            scene.board((x - wide, x + wide), (0.85, 1.45), z, coat, BICYCLE)
            scene.blob(x + 0.05, 1.6, z, (0.12, 0.15), skin, BICYCLE)

    return z, paint


def ring(scene: Scene, x: float, z: float, colour: Colour) -> None:
    """A wheel seen from its side."""
    column, row = scene.project(x, 0.33, z)
    radius = scene.focal * 0.33 / z
    box = (column - radius, row - radius, column + radius, row + radius)
    width = max(2, int(radius * 0.3))
    scene.colour_pen.ellipse(box, outline=scene.pen(colour, z), width=width)
    scene.id_pen.ellipse(box, outline=BICYCLE, width=width)
