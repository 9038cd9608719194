"""What an evaluation finds: the evidence that a task judges, and the report that it makes of it, not yet a page."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data.dataset import Split
from common.types import Predictions

if TYPE_CHECKING:  # it takes long to import, and training needs none
    from matplotlib.figure import Figure

type Cell = str | int | float | None  # None: undefined
type Part = str | Plot | Table | Gallery  # a string is a paragraph


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a task's report is made from."""

    predictions: Predictions  # what the model said of `split`
    split: Split  # the examples that are reported on
    # what the same model said of the validation split, for whatever must be fitted on other examples than those
    # it is judged on; None where that is the split reported on
    calibration: tuple[Predictions, Split] | None
    directory: pathlib.Path  # exists; for the tables that the task writes itself
    # takes rows of the split (int [n]) and a class for each (int [n]); gives, for every model that took part,
    # Grad-CAM's heat maps float32 [n, height, width] in 0..1; none where the models have no feature map
    explain: Callable[[np.ndarray, np.ndarray], list[np.ndarray]] = lambda rows, classes: []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure, also saved as NAME.png; the caption says what to see in it."""

    name: str
    figure: 'Figure'
    caption: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under columns, of numbers or of words; the first column names the row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ''
    words: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """One example of a gallery: uint8 images [height, width, 3] side by side, a title and lines below."""

    images: Sequence[np.ndarray]
    title: str
    lines: Sequence[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gallery:
    """Examples to look at."""

    cards: Sequence[Card]
    caption: str


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page under a heading of its own."""

    title: str
    parts: Sequence[Part]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What a task says of its evidence."""

    # for metrics.json: floats, lists and dicts, never NaN; `intervals_95` holds [low, high] by metric
    metrics: Mapping[str, Any]
    headlines: Sequence[str] = ()  # the metrics that stand at the top of the page; none: every float
    sections: Sequence[Section] = ()  # of the page, in order
