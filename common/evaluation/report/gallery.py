"""Pictures of a report: classified images, each beside what Grad-CAM says the model looked at."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from PIL import Image

from common.findings import Card

_COLOURS = colormaps['inferno']
_OPACITY = 0.65  # of the hottest place; the image stays visible below


def right_and_wrong(probabilities: np.ndarray, labels: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (int) to show: of every class in turn its most confident hits, and the most confident mistakes of all.

    Args:
      probabilities: float [n, classes].
      labels: int [n].
      most: rows of each kind at the most.
    """
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    by_confidence = np.argsort(-confidence, kind='stable')
    hits = by_confidence[(predicted == labels)[by_confidence]]
    turn = pd.Series(labels[hits]).groupby(labels[hits]).cumcount().to_numpy()
    chosen = hits[np.lexsort((labels[hits], turn))[:most]]  # the first of every class, then the second of every class
    wrong = by_confidence[(predicted != labels)[by_confidence]]
    return chosen[np.argsort(labels[chosen], kind='stable')], wrong[:most]


def cards(
    images: np.ndarray,
    rows: np.ndarray,
    probabilities: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    class_names: Sequence[str],
    explain: Callable[[np.ndarray, np.ndarray], list[np.ndarray]],
) -> list[Card]:
    """One card for each of `rows`; images are uint8 [n, height, width, channels], `names` those of their files."""
    predicted = probabilities.argmax(axis=1)
    height_and_width = images.shape[1:3]
    pictures = [np.broadcast_to(images[row], (*height_and_width, 3)) for row in rows]  # grey ones in three channels
    maps = explain(rows, predicted[rows]) if len(rows) else []
    heat = [np.mean([_enlarged(one[i], height_and_width) for one in maps], axis=0) for i in range(len(rows)) if maps]
    result = []
    for number, row in enumerate(rows):
        truth, guess = class_names[labels[row]], class_names[predicted[row]]
        shown = [pictures[number]] + ([overlay(pictures[number], heat[number])] if heat else [])
        lines = [f'predicted {guess}, {probabilities[row, predicted[row]]:.1%}']
        if predicted[row] != labels[row]:
            lines.append(f'probability of {truth}: {probabilities[row, labels[row]]:.1%}')
        result.append(Card(images=shown, title=f'true class: {truth}', lines=[*lines, str(names[row])]))
    return result


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The image uint8 [height, width, 3] under colours where `heat`, float [height, width] in 0..1, is high."""
    opacity = _OPACITY * heat[..., None]
    return np.round((1.0 - opacity) * image + opacity * 255.0 * _COLOURS(heat)[..., :3]).astype(np.uint8)


def _enlarged(heat: np.ndarray, height_and_width: tuple[int, ...]) -> np.ndarray:
    height, width = height_and_width
    enlarged = Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return np.clip(np.asarray(enlarged), 0.0, 1.0)
