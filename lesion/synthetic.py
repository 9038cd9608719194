"""Lesions drawn by a program, with no medical meaning, in HAM10000's raw layout: a demo without a download."""

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

SIDE = 96  # pixels
SEED = 2018
_DIRECTIONS = np.linspace(-np.pi, np.pi, 361)
_SITES = ('back', 'abdomen', 'face', 'lower extremity', 'upper extremity', 'trunk')


@dataclasses.dataclass(frozen=True)
class Look:
    """How the lesions of a class look on average; every lesion deviates from it."""

    images: int  # how many there are, at 1 to 3 a lesion
    radius: float  # in half image sides
    asymmetry: float  # elongation and lobes, relative to the radius
    irregularity: float  # fine notches of the border, relative to the radius
    softness: float  # width of the border's fade, in half image sides
    # colours (RGB) inside, towards the border, and of the patches
    center: tuple[int, int, int]
    rim: tuple[int, int, int]
    patches: tuple[int, int, int]
    patchiness: float  # how much of the lesion its patches cover, 0 to 1


LOOKS: Mapping[str, Look] = {
    'akiec': Look(70, 0.50, 0.20, 0.10, 0.14, (190, 110, 95), (205, 135, 115), (228, 190, 168), 0.35),
    'bcc': Look(90, 0.48, 0.16, 0.05, 0.07, (205, 140, 135), (190, 120, 115), (125, 108, 122), 0.25),
    'bkl': Look(130, 0.55, 0.14, 0.08, 0.03, (150, 105, 70), (135, 90, 60), (185, 150, 105), 0.35),
    'df': Look(50, 0.36, 0.08, 0.03, 0.12, (215, 180, 165), (150, 100, 80), (200, 160, 145), 0.15),
    'mel': Look(140, 0.60, 0.28, 0.12, 0.05, (85, 55, 45), (70, 50, 50), (100, 95, 112), 0.35),
    'nv': Look(360, 0.45, 0.08, 0.03, 0.06, (110, 70, 50), (145, 100, 75), (90, 58, 42), 0.25),
    'vasc': Look(60, 0.38, 0.12, 0.04, 0.05, (150, 35, 50), (175, 60, 70), (95, 25, 55), 0.30),
}


def draw_ham10000(directory: pathlib.Path) -> None:
    """Writes `HAM10000_metadata.csv` and two folders of JPEGs, the same ones in every call."""
    rng = np.random.default_rng(SEED)
    rows: list[dict[str, object]] = []
    for lesion_number, (label, views) in enumerate(_draw_lesions(rng)):
        lesion = _Lesion(LOOKS[label], rng)
        person = {'age': rng.integers(4, 18) * 5, 'sex': rng.choice(('male', 'female'))}
        site = rng.choice(_SITES)
        for _ in range(views):
            name = f'SYNTHETIC_{len(rows):05d}'
            folder = directory / f'HAM10000_images_part_{1 + len(rows) % 2}'
            folder.mkdir(exist_ok=True)
            lesion.photograph(rng).save(folder / f'{name}.jpg', quality=92)
            rows.append(
                {
                    'lesion_id': f'SYNTHETIC_LESION_{lesion_number:04d}',
                    'image_id': name,
                    'dx': label,
                    'dx_type': 'synthetic',
                    **person,
                    'localization': site,
                }
            )
    pd.DataFrame(rows).to_csv(directory / 'HAM10000_metadata.csv', index=False)


def _draw_lesions(rng: np.random.Generator) -> list[tuple[str, int]]:
    """Class and number of images of every lesion, in random order."""
    lesions = []
    for label, look in LOOKS.items():
        remaining = look.images
        while remaining:
            views = min(int(rng.choice((1, 2, 3), p=(0.55, 0.3, 0.15))), remaining)
            lesions.append((label, views))
            remaining -= views
    rng.shuffle(lesions)
    return lesions


class _Lesion:
    """One lesion: its shape and colours stay, while light, angle, zoom, hair and noise change from view to view."""

    def __init__(self, look: Look, rng: np.random.Generator):
        radius = look.radius * rng.lognormal(0, 0.18)
        self.stretch = 1 + look.asymmetry * rng.uniform(0.3, 1.6)
        self.softness = look.softness * rng.lognormal(0, 0.3)
        harmonics = np.arange(2, 25)
        coarse = look.asymmetry * rng.lognormal(0, 0.4) * (harmonics <= 4) / harmonics
        fine = look.irregularity * rng.lognormal(0, 0.4) * (harmonics > 4) / harmonics * 1.2
        amplitudes = (coarse + fine) * rng.normal(0, 1, len(harmonics))
        waves = np.cos(np.outer(_DIRECTIONS, harmonics) + rng.uniform(0, 2 * np.pi, len(harmonics)))
        self.border = radius * np.clip(1 + waves @ amplitudes, 0.35, 1.8)
        shade = rng.normal(0, 14) + rng.normal(0, 4, 3)
        self.center, self.rim, self.patches = (
            np.asarray(colour) + shade + rng.normal(0, 5, 3) for colour in (look.center, look.rim, look.patches)
        )
        self.patchiness = np.clip(look.patchiness * rng.lognormal(0, 0.35), 0, 0.8)
        self.waves = rng.normal(0, 6, (2, 10))
        self.wave_phases = rng.uniform(0, 2 * np.pi, 10)
        self.skin = np.array([222, 180, 160]) + rng.normal(0, 10) + rng.normal(0, 4, 3)

    def photograph(self, rng: np.random.Generator) -> Image.Image:
        """One view, RGB [SIDE, SIDE]."""
        grid = np.linspace(-1, 1, SIDE)
        angle, zoom = rng.uniform(0, 2 * np.pi), rng.lognormal(0, 0.08)
        view = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
        across, down = grid - rng.normal(0, 0.08), grid - rng.normal(0, 0.08)
        x, y = np.einsum('ij,jhw->ihw', view, np.meshgrid(across, down))
        inside, depth = self._inside(x, y)

        texture = self._texture(view, across, down)
        patches = _sigmoid((texture - np.quantile(texture, 1 - self.patchiness)) * 6)
        colour = self.rim + depth[..., None] * (self.center - self.rim)
        colour += patches[..., None] * (self.patches - colour)
        pixels = self.skin + inside[..., None] * (colour - self.skin)

        light = 1 + rng.normal(0, 0.08) + rng.normal(0, 0.07) * grid[:, None] + rng.normal(0, 0.07) * grid
        pixels = pixels * light[..., None] + rng.normal(0, 4, (SIDE, SIDE, 1))
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        _draw_hair(image, rng)
        return image

    def _inside(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How much each pixel belongs to the lesion, and how deep inside it lies; both 0 to 1."""
        x, y = x * self.stretch**0.5, y / self.stretch**0.5
        distance, direction = np.hypot(x, y), np.arctan2(y, x)
        border = np.interp(direction, _DIRECTIONS, self.border)
        return _sigmoid((border - distance) / self.softness * 4), np.clip(1 - distance / border, 0, 1)

    def _texture(self, view: np.ndarray, across: np.ndarray, down: np.ndarray) -> np.ndarray:
        """A sum of plane waves, each the product of a part along either axis; about -2 to 2."""
        wave_x, wave_y = view.T @ self.waves
        part_x = np.exp(1j * (np.outer(across, wave_x) + self.wave_phases))
        part_y = np.exp(1j * np.outer(down, wave_y))
        return np.einsum('hk,wk->hw', part_y, part_x).real * 3 / len(wave_x)


def _draw_hair(image: Image.Image, rng: np.random.Generator) -> None:
    draw = ImageDraw.Draw(image)
    for _ in range(rng.poisson(1.5)):
        start, end, bend = rng.uniform(0, SIDE, 2), rng.uniform(0, SIDE, 2), rng.normal(0, SIDE / 6, 2)
        t = np.linspace(0, 1, 12)[:, None]
        curve = start + t * (end - start) + 4 * t * (1 - t) * bend
        draw.line([tuple(point) for point in curve], fill=tuple(rng.integers(30, 70, 3).tolist()), width=1)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(x / 2)
