"""report.html: one self-contained file, readable on a phone and on paper, from the parts of a report."""

import base64
import decimal
import io
import pathlib
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from common.evaluation import plots
from common.findings import Cell, Gallery, Part, Plot, Report

PAGE = 'report.html'
_PIXELS_PER_INCH = 96  # of CSS
_CAPITALS = {name: name.upper() for name in ('auc', 'f1', 'mae', 'mape', 'mse', 'rmse', 'roc')}
_JPEG_QUALITY = 90
_THREE_DIGITS = decimal.Context(prec=3, rounding=decimal.ROUND_FLOOR)


def write_page(report: Report, directory: pathlib.Path, *, title: str, subtitle: str, notice: str) -> pathlib.Path:
    """Saves every plot as NAME.png and the page, with all of them inside, as report.html; returns its path.

    `title` is also that of the browser's tab, `subtitle` a line below, `notice` what the reader must know before all
    else. Names of classes and files stay text, whatever is in them: the template escapes everything.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, ''),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters['cell'] = cell_text
    intervals = report.metrics.get('intervals_95', {})
    tiles = [
        {'label': label(name), 'value': report.metrics[name], 'interval': intervals.get(name)}
        for name in headline_names(report)
    ]
    sections = [
        {'title': section.title, 'parts': [(type(part).__name__, _shown(part, directory)) for part in section.parts]}
        for section in report.sections
    ]
    text = environment.get_template('page.html.j2').render(
        title=title, subtitle=subtitle, notice=notice, tiles=tiles, sections=sections
    )
    path = directory / PAGE
    path.write_text(text + '\n', encoding='utf-8')
    return path


def headline_names(report: Report) -> list[str]:
    """Those that the report gives or, if it gives none, every float."""
    return list(report.headlines) or [name for name, value in report.metrics.items() if isinstance(value, float)]


def label(name: str) -> str:
    """A metric's name as people write it: 'macro_roc_auc' -> 'Macro ROC AUC'."""
    words = ' '.join(_CAPITALS.get(word, word) for word in name.split('_'))
    return words[:1].upper() + words[1:]


def cell_text(value: Cell) -> str:
    """A number as the page shows it: three decimals, thousands apart; a dash where it is undefined."""
    if value is None:
        return '–'
    if isinstance(value, int):
        return f'{value:,}'
    return f'{value:,.3f}' if isinstance(value, float) else value


def threshold_text(value: float) -> str:
    """Three significant digits, rounded down: whatever reaches the threshold reaches it as it is shown too."""
    return f'{float(_THREE_DIGITS.create_decimal_from_float(value)):#.3g}'


def _shown(part: Part, directory: pathlib.Path) -> Any:
    """The part as the template reads it: pictures as data URIs."""
    if isinstance(part, Plot):
        file = directory / f'{part.name}.png'
        plots.save(part.figure, file)
        width, height = (round(_PIXELS_PER_INCH * inches) for inches in part.figure.get_size_inches())
        return {
            'source': _data_uri('png', file.read_bytes()),
            'width': width,
            'height': height,
            'alt': label(part.name),
            'caption': part.caption,
        }
    if isinstance(part, Gallery):
        cards = [
            {'sources': [_picture(image) for image in card.images], 'title': card.title, 'lines': card.lines}
            for card in part.cards
        ]
        return {'cards': cards, 'caption': part.caption}
    return part


def _picture(image: np.ndarray) -> str:
    """A data URI of uint8 [height, width, 3]."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, 'JPEG', quality=_JPEG_QUALITY)
    return _data_uri('jpeg', file.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f'data:image/{kind};base64,{base64.b64encode(content).decode()}'
