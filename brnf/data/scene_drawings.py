"""What the built-in sample is drawn from: six kinds of objects, a ground for each, and neutral grounds.

Plain numpy in float64, neither BLAS nor a drawing library, so that the same random numbers give the same pixels
on any machine. FROZEN with the sample: results are compared across versions, so a change here needs a
reason in CHANGELOG.md and a new `scenes.GENERATOR_VERSION`.

Objects are drawn on a brush, in coordinates (u, v) of about -1 to 1 with v pointing down, from shapes given as
signed distances: negative inside, in units of the object's radius.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Shape = tuple[int, ...]
"""Height and width in pixels, as numpy gives them."""
Colour = np.ndarray
"""RGB in [0, 1], float64 (3,), or (H, W, 3) where it differs by pixel."""


# --- noise and colour


def smooth_noise(rng: np.random.Generator, shape: Shape, cell: tuple[float, float], octaves: int = 3) -> np.ndarray:
    """Fractal value noise, float64 (H, W), zero mean, unit variance; `cell` is the size of the coarsest blobs."""
    total = np.zeros(shape)
    for octave in range(octaves):
        (top, down), (left, right) = (
            _between_knots(size, max(1.0, length / 2**octave)) for size, length in zip(shape, cell, strict=True)
        )
        knots = rng.random((top[-1] + 2, left[-1] + 2))
        rows = knots[top] + (knots[top + 1] - knots[top]) * down[:, None]
        total += (rows[:, left] + (rows[:, left + 1] - rows[:, left]) * right) / 2**octave
    return (total - total.mean()) / (total.std() + 1e-9)


def _between_knots(size: int, length: float) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel the knot before it, with knots `length` pixels apart, and the smooth weight of the one behind."""
    position = np.arange(size) / length
    knot = position.astype(int)
    part = position - knot
    return knot, part * part * (3 - 2 * part)


def hsv(rng: np.random.Generator, hue: float, saturation: float, value: float, spread: float = 0.03) -> Colour:
    """A colour near the one given: hue moves by `spread`, saturation and value by twice that."""
    dh, ds, dv = rng.uniform(-spread, spread, 3) * (1, 2, 2)
    return np.array(colorsys.hsv_to_rgb((hue + dh) % 1, min(1, max(0, saturation + ds)), min(1, max(0, value + dv))))


def blend(low: Colour, high: Colour, share: np.ndarray) -> Colour:
    """(H, W, 3) between two colours, by `share` (H, W), clipped to [0, 1]."""
    return low + (high - low) * np.clip(share, 0, 1)[..., None]


def _grid(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each pixel, (H, 1) and (1, W)."""
    return np.arange(shape[0], dtype=float)[:, None], np.arange(shape[1], dtype=float)[None]


# --- grounds: each gives (H, W, 3)


def water(rng: np.random.Generator, shape: Shape) -> Colour:
    """Waves: ripples that lie across, bent by noise, with glints on their crests."""
    y, _ = _grid(shape)
    bend = smooth_noise(rng, shape, (20, 40))
    crest = np.sin(2 * np.pi * y / rng.uniform(7, 11) + 2.2 * bend) * 0.5 + 0.5
    ripple = smooth_noise(rng, shape, (4, 18), 2)
    sea = blend(hsv(rng, 0.55, 0.85, 0.38), hsv(rng, 0.52, 0.65, 0.62), 0.6 * crest + 0.15 * ripple)
    return blend(sea, np.array([0.85, 0.95, 0.97]), (crest > 0.93) * (ripple > 0.6) * 0.7)


def rails(rng: np.random.Generator, shape: Shape) -> Colour:
    """Gravel with two or more tracks: sleepers under shining rails, slightly slanted."""
    y, x = _grid(shape)
    pebbles = smooth_noise(rng, shape, (3, 3), 2)
    gravel = blend(hsv(rng, 0.07, 0.22, 0.33), hsv(rng, 0.08, 0.15, 0.62), 0.5 + 0.3 * pebbles)
    across = y + x * rng.uniform(-0.15, 0.15) + rng.uniform(0, 40)
    gauge = rng.uniform(30, 40)
    phase = across % gauge / gauge
    sleepers = (phase > 0.12) & (phase < 0.78) & ((x + rng.uniform(0, 9)) % 11 < 4.5)
    wood = hsv(rng, 0.06, 0.5, 0.24) * (0.9 + 0.1 * smooth_noise(rng, shape, (2, 12)))[..., None]
    ground = np.where(sleepers[..., None], wood, gravel)
    to_rail = np.minimum(np.abs(phase - 0.25), np.abs(phase - 0.65)) * gauge
    shaded = blend(ground, np.array([0.16, 0.15, 0.16]), (to_rail < 2.2) * 0.9)
    return blend(shaded, np.array([0.78, 0.8, 0.84]), to_rail < 1)


def sky(rng: np.random.Generator, shape: Shape) -> Colour:
    """Blue that pales downwards, with soft clouds."""
    y, x = _grid(shape)
    blue = blend(hsv(rng, 0.59, 0.62, 0.86), hsv(rng, 0.56, 0.3, 0.97), y / shape[0] + 0 * x)
    clouds = smooth_noise(rng, shape, (28, 55), 4)
    return blend(blue, np.array([0.97, 0.97, 0.98]), (clouds - rng.uniform(0, 0.6)) * 0.8)


def grass(rng: np.random.Generator, shape: Shape) -> Colour:
    """A meadow: fine upright blades on broad patches, a few flowers."""
    blades = smooth_noise(rng, shape, (9, 2), 2)
    patches = smooth_noise(rng, shape, (40, 40), 2)
    green = blend(hsv(rng, 0.3, 0.75, 0.3), hsv(rng, 0.25, 0.7, 0.66), 0.45 + 0.22 * blades + 0.12 * patches)
    flowers = smooth_noise(rng, shape, (3, 3), 1) > 2.5
    return np.where(flowers[..., None], hsv(rng, 0.15, 0.6, 0.95), green)


def road(rng: np.random.Generator, shape: Shape) -> Colour:
    """Asphalt with a dashed white and a solid yellow line."""
    y, x = _grid(shape)
    grain = smooth_noise(rng, shape, (2, 2), 2)
    worn = smooth_noise(rng, shape, (12, 70), 2)
    asphalt = hsv(rng, 0.6, 0.08, 0.3) * (1 + 0.1 * grain + 0.08 * worn)[..., None]
    across = y + x * rng.uniform(-0.12, 0.12)
    dashed = np.abs(across - shape[0] * rng.uniform(0.15, 0.4)) < 1.8
    solid = np.abs(across - shape[0] * rng.uniform(0.65, 0.92)) < 1.5
    dashed = dashed & ((x + rng.uniform(0, 30)) % 30 < 18)
    lined = blend(asphalt, np.array([0.92, 0.92, 0.9]), dashed * 0.9)
    return blend(lined, np.array([0.93, 0.72, 0.15]), solid * 0.85)


def heath(rng: np.random.Generator, shape: Shape) -> Colour:
    """A hill of heather: purple tufts on ochre, in slanted terraces."""
    y, x = _grid(shape)
    tufts = smooth_noise(rng, shape, (6, 8), 2)
    terrace = np.sin((y + x * rng.uniform(0.3, 0.6)) / rng.uniform(6, 9) + 1.5 * smooth_noise(rng, shape, (30, 30), 2))
    soil = blend(hsv(rng, 0.11, 0.55, 0.42), hsv(rng, 0.13, 0.5, 0.68), 0.5 + 0.35 * terrace)
    return blend(soil, hsv(rng, 0.83, 0.42, 0.5), (tufts - 0.3) * 1.5)


def sand(rng: np.random.Generator, shape: Shape) -> Colour:
    """Beach: pale, with faint dunes."""
    dunes = smooth_noise(rng, shape, (8, 40), 2)
    grain = smooth_noise(rng, shape, (2, 2), 1)
    return hsv(rng, 0.11, 0.3, 0.82) * (1 + 0.05 * dunes + 0.04 * grain)[..., None]


def bricks(rng: np.random.Generator, shape: Shape) -> Colour:
    """Courses of brick in mortar."""
    y, x = _grid(shape)
    height, length = rng.uniform(8, 12), rng.uniform(18, 26)
    course = np.floor(y / height)
    along = (x + course % 2 * length / 2) / length
    mortar = (y % height < 1.5) | (along % 1 * length < 1.5)
    tint = np.sin(course * 12.9898 + np.floor(along) * 78.233)  # a fixed scatter of tints, brick by brick
    brick = hsv(rng, 0.03, 0.5, 0.52) * (1 + 0.13 * tint + 0.05 * smooth_noise(rng, shape, (3, 3), 2))[..., None]
    return np.where(mortar[..., None], np.array([0.7, 0.68, 0.65]), brick)


def planks(rng: np.random.Generator, shape: Shape) -> Colour:
    """Upright boards with a grain."""
    _, x = _grid(shape)
    width = rng.uniform(14, 22)
    tint = np.sin(np.floor(x / width) * 12.9898 + rng.uniform(0, 9))
    grain = smooth_noise(rng, shape, (60, 3), 2)
    board = hsv(rng, 0.09, 0.42, 0.6) * (1 + 0.1 * tint + 0.07 * grain)[..., None]
    return blend(board, np.array([0.16, 0.1, 0.06]), np.broadcast_to((x % width < 1.5) * 0.8, shape))


def leaves(rng: np.random.Generator, shape: Shape) -> Colour:
    """A forest floor: dark earth under fallen leaves."""
    litter = smooth_noise(rng, shape, (5, 6), 2)
    earth = blend(hsv(rng, 0.07, 0.5, 0.18), hsv(rng, 0.09, 0.55, 0.36), 0.5 + 0.3 * smooth_noise(rng, shape, (9, 9)))
    return blend(earth, hsv(rng, 0.06, 0.75, 0.58), (litter - 0.9) * 2)


# --- shapes: signed distance to their edge


@dataclass
class Brush:
    """Paints one object: shapes in the object's own coordinates onto a layer with coverage."""

    u: np.ndarray
    v: np.ndarray
    radius: float
    """Pixels of one unit."""
    paint: np.ndarray
    """float64 (H, W, 3)."""
    cover: np.ndarray
    """float64 (H, W), 0 where the object is not, 1 where it is."""

    @classmethod
    def at(cls, shape: Shape, centre: tuple[float, float], radius: float, tilt: float, mirrored: bool) -> Brush:
        """An empty layer of `shape`, with the object's origin at `centre` (row, column)."""
        y, x = _grid(shape)
        y, x = (y - centre[0]) / radius, (x - centre[1]) / radius
        u, v = x * np.cos(tilt) + y * np.sin(tilt), y * np.cos(tilt) - x * np.sin(tilt)
        return cls(-u if mirrored else u, v, radius, np.zeros((*shape, 3)), np.zeros(shape))

    def fill(self, distance: np.ndarray, colour: Colour) -> None:
        """Lay colour where the distance is negative, with smooth edges, over what is there."""
        alpha = np.clip(0.5 - distance * self.radius, 0, 1)
        self.paint += (colour - self.paint) * alpha[..., None]
        self.cover = np.maximum(self.cover, alpha)

    def ellipse(self, u: float, v: float, ru: float, rv: float) -> np.ndarray:
        """Ellipse around (u, v); the distance is right near its edge."""
        return (np.hypot((self.u - u) / ru, (self.v - v) / rv) - 1) * min(ru, rv)

    def box(self, u: float, v: float, hu: float, hv: float, rounding: float = 0.0) -> np.ndarray:
        """Box around (u, v) with half sides hu and hv, corners rounded."""
        du, dv = np.abs(self.u - u) - hu + rounding, np.abs(self.v - v) - hv + rounding
        return np.hypot(np.maximum(du, 0), np.maximum(dv, 0)) + np.minimum(np.maximum(du, dv), 0) - rounding

    def line(self, start: tuple[float, float], end: tuple[float, float], half_width: float) -> np.ndarray:
        """Stroke with round ends."""
        du, dv = end[0] - start[0], end[1] - start[1]
        along = np.clip(((self.u - start[0]) * du + (self.v - start[1]) * dv) / (du * du + dv * dv), 0, 1)
        return np.hypot(self.u - start[0] - along * du, self.v - start[1] - along * dv) - half_width

    def polygon(self, *corners: tuple[float, float]) -> np.ndarray:
        """Convex polygon, corners clockwise as seen on the screen."""
        edges = zip(corners, corners[1:] + corners[:1], strict=True)
        return np.max(
            [
                ((self.u - u0) * (v1 - v0) - (self.v - v0) * (u1 - u0)) / np.hypot(u1 - u0, v1 - v0)
                for (u0, v0), (u1, v1) in edges
            ],
            axis=0,
        )

    def texture(self, rng: np.random.Generator, colour: Colour, cell: float, strength: float) -> Colour:
        """The colour, mottled by noise and lit from above."""
        noise = smooth_noise(rng, self.cover.shape, (cell, cell), 2)
        return np.clip(colour * (1 + strength * noise - 0.14 * self.v)[..., None], 0, 1)


# --- objects: each about 2 units long and 1 to 1.6 high


def draw_boat(rng: np.random.Generator, brush: Brush) -> None:
    """Sailing boat: a hull with a stripe, a mast, one or two sails."""
    hull = brush.polygon((-1, 0.25), (1.05, 0.2), (rng.uniform(0.6, 0.8), 0.72), (-0.75, 0.72))
    mast = rng.uniform(-0.2, 0.1)
    top = rng.uniform(-1.1, -0.85)
    brush.fill(brush.line((mast, top), (mast, 0.3), 0.035), hsv(rng, 0.08, 0.5, 0.35))
    cloth = hsv(rng, 0.12, 0.12, 0.96) if rng.random() < 0.5 else hsv(rng, 0.02, 0.75, 0.85)
    canvas = brush.texture(rng, cloth, 7, 0.03)
    brush.fill(brush.polygon((mast + 0.06, top + 0.05), (rng.uniform(0.65, 0.9), 0.1), (mast + 0.06, 0.1)), canvas)
    if rng.random() < 0.6:
        brush.fill(brush.polygon((mast - 0.06, top + 0.2), (mast - 0.06, 0.1), (rng.uniform(-0.8, -0.6), 0.1)), canvas)
    wood = brush.texture(rng, hsv(rng, rng.choice([0.99, 0.07]), 0.75, 0.6), 5, 0.08)
    brush.fill(hull, wood)
    brush.fill(np.maximum(hull, np.abs(brush.v - 0.36) - 0.06), np.array([0.96, 0.95, 0.9]))


def draw_train(rng: np.random.Generator, brush: Brush) -> None:
    """Railcar: a long box with a row of windows, a stripe, a light and wheels."""
    nose = rng.uniform(0.1, 0.3)
    for wheel in np.linspace(-0.95, 0.95, 6):
        brush.fill(brush.ellipse(wheel, 0.42, 0.13, 0.13), np.array([0.1, 0.1, 0.12]))
    body = brush.box(0, 0, 1.25, 0.42, nose)
    coat = brush.texture(rng, hsv(rng, rng.choice([0.42, 0.47]), 0.8, 0.42), 9, 0.04)
    brush.fill(body, coat)
    brush.fill(np.maximum(body, np.abs(brush.v - 0.2) - 0.06), hsv(rng, 0.14, 0.85, 0.95))
    brush.fill(np.maximum(body, brush.v + 0.33), hsv(rng, 0.45, 0.1, 0.75))
    windows = int(rng.integers(5, 8))
    for place in np.linspace(-0.95, 0.75, windows):
        brush.fill(brush.box(place, -0.1, 0.62 / windows, 0.13, 0.03), hsv(rng, 0.55, 0.35, 0.85))
    brush.fill(brush.box(1.08, -0.1, 0.1, 0.16, 0.04), np.array([0.12, 0.15, 0.22]))
    brush.fill(brush.ellipse(1.16, 0.28, 0.06, 0.06), np.array([1.0, 0.97, 0.75]))


def draw_bird(rng: np.random.Generator, brush: Brush) -> None:
    """Bird: dark plump body, fanned tail, raised or folded wing, orange beak."""
    plumage = brush.texture(rng, hsv(rng, rng.choice([0.68, 0.75]), 0.5, 0.3), 4, 0.14)
    brush.fill(brush.polygon((-0.45, -0.1), (-0.4, 0.25), (-1.15, rng.uniform(0.25, 0.5)), (-1.2, 0.1)), plumage * 0.8)
    brush.fill(brush.ellipse(0, 0.08, 0.65, 0.42), plumage)
    brush.fill(brush.ellipse(0.55, -0.3, 0.29, 0.27), plumage)
    brush.fill(brush.ellipse(0.25, 0.2, 0.32, 0.24), brush.texture(rng, hsv(rng, 0.04, 0.7, 0.8), 4, 0.1))
    brush.fill(brush.polygon((0.78, -0.4), (1.15, -0.24), (0.78, -0.17)), hsv(rng, 0.1, 0.95, 0.98))
    lift = rng.uniform(-1.0, 0.2)
    wing = brush.polygon((-0.4, -0.05), (-0.75, lift), (0.35, -0.08), (0.0, 0.2))
    brush.fill(wing, np.clip(plumage * 1.5, 0, 1))
    brush.fill(brush.ellipse(0.62, -0.35, 0.075, 0.075), np.array([0.98, 0.98, 0.95]))
    brush.fill(brush.ellipse(0.63, -0.35, 0.038, 0.038), np.array([0.05, 0.05, 0.05]))


def draw_cow(rng: np.random.Generator, brush: Brush) -> None:
    """Cow: white with large black or brown patches, four legs, pink muzzle, horns."""
    coat = hsv(rng, 0.08, 0.05, 0.94)
    dark = hsv(rng, 0.05, 0.6, rng.choice([0.1, 0.3]))
    patch = 0.45 * brush.radius
    spots = smooth_noise(rng, brush.cover.shape, (patch, patch), 1)
    hide = blend(brush.texture(rng, coat, 4, 0.03), dark, (spots - 0.15) * 6)
    for leg in (-0.68, -0.42, 0.35, 0.6):
        brush.fill(brush.line((leg, 0.3), (leg + rng.uniform(-0.06, 0.06), 0.85), 0.095), hide * 0.85)
    brush.fill(brush.line((-0.88, -0.15), (-1.02, 0.45), 0.04), dark)
    brush.fill(brush.box(-0.05, 0.05, 0.88, 0.42, 0.28), hide)
    head = rng.uniform(-0.35, 0.0)
    brush.fill(brush.line((0.7, -0.1), (0.95, head), 0.24), hide)
    brush.fill(brush.line((0.82, head - 0.18), (0.72, head - 0.4), 0.045), np.array([0.9, 0.85, 0.7]))
    brush.fill(brush.line((1.02, head - 0.18), (1.12, head - 0.4), 0.045), np.array([0.9, 0.85, 0.7]))
    brush.fill(brush.ellipse(0.98, head, 0.27, 0.23), hide)
    brush.fill(brush.ellipse(1.17, head + 0.09, 0.15, 0.14), hsv(rng, 0.97, 0.35, 0.9))
    brush.fill(brush.ellipse(0.99, head - 0.07, 0.045, 0.045), np.array([0.05, 0.04, 0.04]))


def draw_car(rng: np.random.Generator, brush: Brush) -> None:
    """Car: bright body, cabin with glass, two wheels, lights."""
    lacquer = brush.texture(rng, hsv(rng, rng.choice([0.0, 0.13, 0.92]), 0.85, 0.88), 14, 0.03)
    roof = rng.uniform(-0.58, -0.42)
    back, front = rng.uniform(-0.75, -0.5), rng.uniform(0.25, 0.45)
    brush.fill(brush.polygon((back, roof), (front, roof), (front + 0.38, -0.02), (back - 0.22, -0.02)), lacquer)
    glass = hsv(rng, 0.55, 0.3, 0.3)
    top, foot, post = roof + 0.09, -0.06, rng.uniform(-0.15, -0.05)
    brush.fill(brush.polygon((back + 0.06, top), (post - 0.05, top), (post - 0.05, foot), (back - 0.1, foot)), glass)
    brush.fill(brush.polygon((post + 0.05, top), (front - 0.04, top), (front + 0.22, foot), (post + 0.05, foot)), glass)
    brush.fill(brush.box(0, 0.18, 1.1, 0.26, 0.16), lacquer)
    brush.fill(brush.box(0, 0.36, 1.08, 0.07, 0.05), np.array([0.2, 0.2, 0.22]))
    for wheel in (-0.62, 0.62):
        brush.fill(brush.ellipse(wheel, 0.4, 0.25, 0.25), np.array([0.07, 0.07, 0.08]))
        brush.fill(brush.ellipse(wheel, 0.4, 0.12, 0.12), np.array([0.72, 0.73, 0.76]))
    brush.fill(brush.ellipse(1.03, 0.12, 0.07, 0.09), np.array([1.0, 0.98, 0.8]))
    brush.fill(brush.box(-1.04, 0.12, 0.05, 0.09, 0.03), np.array([0.75, 0.05, 0.05]))


def draw_sheep(rng: np.random.Generator, brush: Brush) -> None:
    """Sheep: a cloud of cream wool with curls, dark face and legs."""
    skin = hsv(rng, 0.07, 0.35, 0.2)
    for leg in (-0.5, -0.28, 0.25, 0.46):
        brush.fill(brush.line((leg, 0.3), (leg + rng.uniform(-0.05, 0.05), 0.78), 0.08), skin)
    curls = smooth_noise(rng, brush.cover.shape, (4, 4), 1)
    wool = brush.texture(rng, hsv(rng, 0.11, 0.2, 0.86), 9, 0.02) * (1 + 0.1 * np.sin(3 * curls))[..., None]
    angles = np.arange(11) * 2 * np.pi / 11 + rng.uniform(0, 1)
    sizes = rng.uniform(0.2, 0.3, 11)
    tufts = [brush.ellipse(0.6 * np.cos(a), 0.3 * np.sin(a), r, r) for a, r in zip(angles, sizes, strict=True)]
    brush.fill(np.minimum(np.min(tufts, axis=0), brush.ellipse(0, 0, 0.7, 0.42)), np.clip(wool, 0, 1))
    head = rng.uniform(-0.3, 0.05)
    brush.fill(brush.ellipse(0.82, head, 0.25, 0.19), skin)
    brush.fill(brush.ellipse(0.66, head - 0.17, 0.2, 0.13), np.clip(wool, 0, 1))
    brush.fill(brush.line((0.68, head + 0.02), (0.55, head + 0.14), 0.06), skin * 0.8)
    brush.fill(brush.ellipse(0.87, head - 0.05, 0.04, 0.04), np.array([0.95, 0.9, 0.7]))


@dataclass(frozen=True)
class Kind:
    """A class of objects and the ground that goes with it."""

    name: str
    draw: Callable[[np.random.Generator, Brush], None]
    context: Callable[[np.random.Generator, Shape], Colour]


KINDS = (
    Kind("boat", draw_boat, water),
    Kind("train", draw_train, rails),
    Kind("bird", draw_bird, sky),
    Kind("cow", draw_cow, grass),
    Kind("car", draw_car, road),
    Kind("sheep", draw_sheep, heath),
)
"""Class i + 1 is KINDS[i]."""

GROUNDS = (*(kind.context for kind in KINDS), sand, bricks, planks, leaves)
"""The context of class i + 1 is GROUNDS[i]; those behind go with no class."""
