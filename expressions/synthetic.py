"""Faces drawn by a program, of nobody, in FER2013's raw layout: a demo without a download."""

import csv
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

SIDE = 48  # pixels
SEED = 2013
FINER = 3  # how much larger than it ends a face is drawn, so that its lines are smooth
_USAGES = {'Training': 0.7, 'PublicTest': 0.15, 'PrivateTest': 0.15}


@dataclasses.dataclass(frozen=True)
class Look:
    """What an expression does to a face at full strength; a neutral face is zero everywhere."""

    faces: int  # how many are drawn
    # how far the ends of the eyebrows rise, in half image sides
    inner_brow: float = 0.0
    outer_brow: float = 0.0
    eyes: float = 0.0  # how much further open they are, relative to their height
    smile: float = 0.0  # how far the corners of the mouth rise, in half image sides
    open_mouth: float = 0.0  # half the distance of the lips, in half image sides
    wide_mouth: float = 0.0  # how much wider it is, relative to its width
    wrinkle: float = 0.0  # of the nose; darkness, 0 to 1


LOOKS: Sequence[Look] = (  # in the order of FER2013's numbers
    Look(140, inner_brow=-0.15, outer_brow=0.05, eyes=-0.25, smile=-0.05, wide_mouth=-0.1, wrinkle=0.3),  # angry
    Look(70, inner_brow=-0.08, outer_brow=-0.06, eyes=-0.5, smile=-0.1, open_mouth=0.05, wrinkle=1.0),  # disgust
    Look(140, inner_brow=0.14, outer_brow=0.03, eyes=0.5, smile=-0.08, open_mouth=0.09, wide_mouth=0.2),  # fear
    Look(240, eyes=-0.25, smile=0.16, open_mouth=0.05, wide_mouth=0.3),  # happy
    Look(160, inner_brow=0.1, outer_brow=-0.1, eyes=-0.35, smile=-0.15, wide_mouth=-0.1),  # sad
    Look(110, inner_brow=0.14, outer_brow=0.14, eyes=0.7, open_mouth=0.2, wide_mouth=-0.35),  # surprise
    Look(150),  # neutral
)


def draw_fer2013(directory: pathlib.Path) -> None:
    """Writes `fer2013.csv`, the same one in every call."""
    rng = np.random.default_rng(SEED)
    emotions = rng.permutation(np.repeat(np.arange(len(LOOKS)), [look.faces for look in LOOKS]))
    usages = rng.choice(list(_USAGES), size=len(emotions), p=list(_USAGES.values()))
    with open(directory / 'fer2013.csv', 'w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(('emotion', 'pixels', 'Usage'))
        for emotion, usage in zip(emotions, usages, strict=True):
            face = draw_face(LOOKS[emotion], rng)
            writer.writerow((emotion, ' '.join(map(str, face.ravel().tolist())), usage))


def draw_face(look: Look, rng: np.random.Generator) -> np.ndarray:
    """One face, uint8 [SIDE, SIDE]: another person, strength, pose, light and noise at every call."""
    strength = rng.uniform(0.35, 1.1)
    face = {name: strength * value for name, value in dataclasses.asdict(look).items() if name != 'faces'}
    for name in ('inner_brow', 'outer_brow', 'smile'):
        face[name] += rng.normal(0, 0.025)
    face['eyes'] += rng.normal(0, 0.12)
    canvas = _Canvas(rng)
    canvas.head(rng)
    canvas.eyes(face, rng)
    canvas.nose(face, rng)
    canvas.mouth(face, rng)
    pixels = np.asarray(canvas.image.resize((SIDE, SIDE), Image.Resampling.BOX), np.float64)
    ramp = np.linspace(-1, 1, SIDE)
    light = 1 + rng.normal(0, 0.1) + rng.normal(0, 0.12) * ramp[:, None] + rng.normal(0, 0.12) * ramp
    pixels = pixels * light + rng.normal(0, rng.uniform(3, 10), pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)


class _Canvas:
    """A picture on which a face is drawn upright in coordinates -1..1 (right, down) and appears in its pose."""

    def __init__(self, rng: np.random.Generator):
        self.skin = int(rng.integers(110, 220))
        self.dark = int(self.skin * rng.uniform(0.15, 0.4))
        angle, zoom = rng.normal(0, 0.12), rng.normal(1, 0.06)
        rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        self._matrix = zoom * rotation * SIDE * FINER / 2
        self._center = (1 + rng.normal(0, 0.06, 2)) * SIDE * FINER / 2
        side = SIDE * FINER
        self.image = Image.new('L', (side, side), int(rng.integers(20, 235)))
        self._draw = ImageDraw.Draw(self.image)

    def head(self, rng: np.random.Generator) -> None:
        wide, high, hair = rng.normal(0.72, 0.05), rng.normal(0.95, 0.05), int(rng.integers(10, 120))
        self._fill(_ellipse((0, -0.12), (wide + 0.08, high + 0.05)), hair)
        self._fill(_ellipse((0, rng.normal(0.1, 0.04)), (wide, high)), self.skin)

    def eyes(self, face: Mapping[str, float], rng: np.random.Generator) -> None:
        """With the eyebrows above them."""
        apart, level, brow = rng.normal(0.34, 0.03), rng.normal(-0.14, 0.03), rng.normal(-0.36, 0.03)
        height, thick = 0.085 * max(1 + face['eyes'], 0.15), rng.uniform(0.05, 0.1)
        for side in (-1, 1):
            self._fill(_ellipse((side * apart, level), (0.15, height)), 240)
            self._fill(_ellipse((side * apart, level), (0.065, min(height, 0.075))), self.dark // 2)
            self._line(_ellipse((side * apart, level), (0.15, height)), 0.03)
            inner, outer = brow - face['inner_brow'], brow - face['outer_brow']
            middle = (inner + outer) / 2 - 0.03
            arc = [(side * (apart - 0.17), inner), (side * apart, middle), (side * (apart + 0.18), outer)]
            self._line(arc, thick)

    def nose(self, face: Mapping[str, float], rng: np.random.Generator) -> None:
        tip = rng.normal(0.2, 0.03)
        self._line([(0.02, tip - 0.2), (0.09, tip), (-0.05, tip + 0.02)], 0.03, self.skin - 35)
        for row in range(3):  # wrinkles
            y, shade = tip - 0.24 + 0.07 * row, int(self.skin - 70 * np.clip(face['wrinkle'], 0, 1))
            self._line([(-0.11, y + 0.03), (0, y), (0.11, y + 0.03)], 0.03, shade)
        for side in (-1, 1):
            self._line([(side * 0.14, tip), (side * 0.3, tip + 0.2)], 0.03, int(self.skin - 60 * face['wrinkle']))

    def mouth(self, face: Mapping[str, float], rng: np.random.Generator) -> None:
        wide, level = rng.normal(0.3, 0.03) * (1 + face['wide_mouth']), rng.normal(0.53, 0.03)
        x = np.linspace(-1, 1, 13)
        corners = level - face['smile'] * (x**2 - 0.5)
        parted = max(face['open_mouth'] + rng.normal(0, 0.012), 0.0) * np.sqrt(1 - x**2)
        upper, lower = np.stack([wide * x, corners - parted], 1), np.stack([wide * x, corners + parted], 1)
        outline = np.concatenate([upper, lower[::-1]])
        self._fill(outline, self.dark // 2)
        self._line(np.concatenate([outline, outline[:1]]), 0.05)

    def _points(self, points: Sequence[tuple[float, float]] | np.ndarray) -> list[tuple[float, float]]:
        return [tuple(point) for point in np.asarray(points) @ self._matrix.T + self._center]

    def _fill(self, points: Sequence[tuple[float, float]] | np.ndarray, shade: int) -> None:
        self._draw.polygon(self._points(points), fill=shade)

    def _line(self, points: Sequence[tuple[float, float]] | np.ndarray, width: float, shade: int | None = None) -> None:
        pixels = max(round(width * SIDE * FINER / 2), 1)
        self._draw.line(self._points(points), fill=self.dark if shade is None else shade, width=pixels, joint='curve')


def _ellipse(center: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
    turn = np.linspace(0, 2 * np.pi, 25)
    return np.stack([center[0] + radii[0] * np.cos(turn), center[1] + radii[1] * np.sin(turn)], axis=1)
