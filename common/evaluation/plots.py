"""Figures of an evaluation, drawn without pyplot or global state and saved with the same bytes every time."""

import os
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from common.evaluation.calibration import ReliabilityCurve
from common.lazy import lazy

sk = lazy('sklearn.metrics')

# The colours of Okabe & Ito (2008), told apart with any colour vision; yellow is too faint on white.
PALETTE = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
INK, FAINT = '#333333', '#BBBBBB'
_DASHES = ('-', '--', ':')
_TITLE, _LABEL, _TEXT = 11, 9.5, 8.5  # sizes, in points
_LINE = 1.6  # width, likewise


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes the figure as PNG, whole or not at all, with bytes that depend on the figure alone."""
    path = Path(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix='.figure-') as folder:
        whole = Path(folder, path.name)
        figure.savefig(whole, dpi=150, metadata={'Software': None})  # no version of matplotlib
        whole.replace(path)


def confusion_matrix(counts: Sequence[Sequence[int]] | np.ndarray, class_names: Sequence[str]) -> Figure:
    """Draws counts [true, predicted], each cell with its count and its share (also the colour) of the row."""
    counts = np.asarray(counts)
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    names = [_wrapped(name, 16) for name in class_names]
    side = 0.72 * len(names)
    slanted = max(map(len, names)) > 10
    figure = new_figure(side + 2.6, side + (1.9 if slanted else 1.2))
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        share = f'\n{shares[row, column]:.0%}' if totals[row] else ''
        colour = 'white' if shares[row, column] > 0.55 else INK
        axes.text(column, row, f'{count:,}{share}', ha='center', va='center', color=colour, size=_TEXT)
    ticks = range(len(names))
    if slanted:
        axes.set_xticks(ticks, names, rotation=40, ha='right', rotation_mode='anchor')
    else:
        axes.set_xticks(ticks, names)
    axes.set_yticks(ticks, names)
    dress(axes, 'Confusion matrix', 'Predicted class', 'True class')
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 0.5, 1], format='{x:.0%}')
    bar.set_label('Share of true class', size=_LABEL, color=INK)
    bar.ax.tick_params(labelsize=_TEXT, labelcolor=INK, length=0)
    bar.outline.set_visible(False)
    return figure


def learning_curves(history: Sequence[Mapping[str, float]], metric: str, larger_is_better: bool = True) -> Figure:
    """Draws loss, accuracy and a metric over training, side by side, with the best epoch by validation marked.

    Args:
      history: rows in order, each with 'epoch' (else 'step') and any of 'train/loss', 'validation/loss' and
        the same with accuracy or `metric` for loss; a row may hold only some of them.
      metric: name of the metric that chooses the best row.
      larger_is_better: whether the best value of `metric` is the largest.
    """
    unit = 'epoch' if all('epoch' in row for row in history) else 'step'
    chosen = [row for row in history if np.isfinite(row.get(f'validation/{metric}', np.nan))]
    best = (max if larger_is_better else min)(chosen, key=lambda row: row[f'validation/{metric}'], default=None)
    shown = {name.partition('/')[2] for row in history for name in row}
    names = [name for name in dict.fromkeys(['loss', 'accuracy', metric]) if name in shown]
    figure = new_figure(4.6 * len(names), 3.5)
    for axes, name in zip(np.ravel(figure.subplots(1, len(names))), names, strict=True):
        for split, colour in zip(('train', 'validation'), PALETTE, strict=False):
            points = [(row[unit], row[f'{split}/{name}']) for row in history if f'{split}/{name}' in row]
            if points:
                line = {'color': colour, 'lw': _LINE, 'marker': '' if len(points) > 1 else 'o'}
                axes.plot(*zip(*points, strict=True), label=split.capitalize(), **line)
        if best is not None:
            axes.axvline(best[unit], color=FAINT, lw=1, ls='--', zorder=0)
        if best is not None and name == metric:
            value = best[f'validation/{name}']
            label = f'Best: {value:.4g} at {unit} {best[unit]:{".3g" if unit == "epoch" else ".9g"}}'
            axes.plot(best[unit], value, 'o', color=PALETTE[1], ms=6, label=label)
        dress(axes, _title(name), unit.capitalize(), _title(name))
        if axes.get_legend_handles_labels()[0]:
            legend(axes)
    return figure


def roc_curves(probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Draws the ROC curve of each class against the rest, where it is defined.

    Takes float [n, classes] and int [n]. A class without positives, or without negatives, has no curve.
    """
    figure, axes = _square(len(class_names))
    axes.plot([0, 1], [0, 1], color=FAINT, lw=1, ls='--', zorder=0)
    for index, name in enumerate(class_names):
        positives = labels == index
        if 0 < positives.sum() < len(labels):
            false_positives, true_positives, _ = sk.roc_curve(positives, probabilities[:, index])
            area = sk.auc(false_positives, true_positives)
            _curve(axes, index, false_positives, true_positives, f'{_wrapped(name, 28)}  {area:.3f}')
    dress(axes, 'ROC, one class against the rest', 'False positive rate', 'True positive rate')
    legend(figure, title='Class, area under curve', loc='outside lower center', ncols=2)
    return figure


def precision_recall_curves(probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Draws precision over recall of each class against the rest, where it is defined.

    Takes float [n, classes] and int [n]. The curve is a step, because precision does not interpolate
    (Davis & Goadrich 2006); the number beside a class is its average precision, then its prevalence,
    which is what guessing would reach.
    """
    figure, axes = _square(len(class_names))
    for index, name in enumerate(class_names):
        positives = labels == index
        if 0 < positives.sum() < len(labels):
            precision, recall, _ = sk.precision_recall_curve(positives, probabilities[:, index])
            average = sk.average_precision_score(positives, probabilities[:, index])
            label = f'{_wrapped(name, 28)}  {average:.3f} ({positives.mean():.3f})'
            _curve(axes, index, recall, precision, label, drawstyle='steps-post')
    dress(axes, 'Precision and recall, one class against the rest', 'Recall', 'Precision')
    legend(figure, title='Class, average precision (prevalence)', loc='outside lower center', ncols=2)
    return figure


def reliability_diagram(before: ReliabilityCurve, after: ReliabilityCurve | None = None) -> Figure:
    """Draws accuracy over confidence, and below it how the examples spread over confidence.

    Args:
      before: the model's own probabilities.
      after: the same after calibration, if any.
    """
    figure = new_figure(4.8, 6.2)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    top.plot([0, 1], [0, 1], color=FAINT, lw=1, ls='--', zorder=0)
    curves = {'Before calibration': before, 'After calibration': after} if after else {'Model': before}
    for (name, curve), colour, marker in zip(curves.items(), PALETTE, 'os', strict=False):
        label = f'{name}, calibration error {curve.error:.3f}'
        top.plot(curve.confidence, curve.accuracy, color=colour, marker=marker, ms=4, lw=_LINE, label=label)
        share = curve.counts / curve.counts.sum()
        bottom.bar(curve.lower, share, curve.upper - curve.lower, align='edge', color=colour, alpha=0.45)
    top.set(xlim=(0, 1), ylim=(0, 1.02))
    dress(top, 'Reliability', '', 'Accuracy')
    dress(bottom, '', 'Confidence', 'Share of examples')
    legend(top)
    return figure


def _title(name: str) -> str:
    return name.replace('_', ' ').capitalize()


def _wrapped(name: str, width: int) -> str:
    """The name over several lines, as it is: a dollar sign in it begins no formula."""
    return textwrap.fill(name, width, break_on_hyphens=False).replace('$', r'\$')


def new_figure(width: float, height: float) -> Figure:
    """An empty one, in inches, that makes room for whatever is written beside its axes."""
    engine = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    return Figure(figsize=(width, height), layout=engine)


def _square(entries: int) -> tuple[Figure, Axes]:
    """The unit square, with room below for a legend of so many entries in two columns."""
    figure = new_figure(5.2, 4.9 + 0.2 * -(-entries // 2))
    axes = figure.add_subplot()
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect='equal')
    return figure, axes


def _curve(axes: Axes, index: int, x: np.ndarray, y: np.ndarray, label: str, drawstyle: str = 'default') -> None:
    """Draws one class of many: its colour, and another dash for each time the palette is used up."""
    dashes, colour = divmod(index, len(PALETTE))
    dash = _DASHES[dashes % len(_DASHES)]
    axes.plot(x, y, color=PALETTE[colour], ls=dash, lw=_LINE, label=label, drawstyle=drawstyle)


def legend(owner: Axes | Figure, **options: Any) -> None:
    """Adds a legend of the common look; `options` are matplotlib's."""
    made = owner.legend(
        edgecolor='none', fontsize=_TEXT, title_fontsize=_TEXT, labelcolor=INK, alignment='left', **options
    )
    made.get_title().set_color(INK)


def dress(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Gives axes the common look: few lines, quiet ink."""
    axes.set_title(title, size=_TITLE, color=INK, loc='left')
    axes.set_xlabel(x_label, size=_LABEL, color=INK)
    axes.set_ylabel(y_label, size=_LABEL, color=INK)
    axes.tick_params(labelsize=_TEXT, labelcolor=INK, color=FAINT)
    axes.spines[['top', 'right']].set_visible(False)
    axes.spines[['left', 'bottom']].set_color(FAINT)
    axes.grid(color=FAINT, lw=0.5, alpha=0.5)
    axes.set_axisbelow(True)
