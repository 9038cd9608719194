"""Skin lesion image sets in the layouts of their publishers."""

import functools
import io
from collections.abc import Mapping

import pandas as pd

from common.data.audit import Audit
from common.data.folders import FOLDERS
from common.data.raw import ImageSource, RawFiles, RawImage, RawImages, images_by_stem
from common.errors import DataError
from lesion import synthetic

HAM10000_CLASSES = ('akiec', 'bcc', 'bkl', 'df', 'mel', 'nv', 'vasc')
_COLUMNS = ('lesion_id', 'image_id', 'dx', 'dx_type', 'age', 'sex', 'localization')


def read_ham10000(raw: RawFiles, audit: Audit) -> RawImages:
    """Reads `HAM10000_metadata.csv` and the images it names, in whatever folders they lie.

    All images of one lesion are one group.

    Raises:
      DataError: where the table is missing, unreadable or lacks a column.
    """
    table_name, table = _read_table(raw, 'HAM10000_metadata.csv', _COLUMNS)
    paths = images_by_stem(raw, audit)

    def name_rows(rows: pd.DataFrame) -> list[str]:
        # Line 1 of the file is the header.
        return [f'{table_name} line {row.Index + 2}: {row.image_id} ({row.dx})' for row in rows.itertuples()]

    repeated = table.image_id.duplicated()
    unknown = ~table.dx.isin(HAM10000_CLASSES)
    without_image = ~table.image_id.isin(paths)
    audit.add('repeated_rows', 'rows that repeat an image_id', name_rows(table[repeated]), fatal=True)
    known = f'known are {", ".join(HAM10000_CLASSES)}'
    audit.add('unknown_labels', f'rows with an unknown diagnosis ({known})', name_rows(table[unknown]), fatal=True)
    audit.add('rows_without_image', 'rows without an image, left out', name_rows(table[without_image]))
    named = set(table.image_id)
    homeless = [path for stem, path in paths.items() if stem not in named]
    audit.add('images_without_row', 'images without a row, left out', homeless)

    table['group'] = table.lesion_id.where(table.lesion_id != '', table.image_id)
    audit.add(
        'rows_without_group',
        'rows without a lesion_id, each taken for a lesion of its own',
        name_rows(table[table.lesion_id == '']),
    )
    kept = table[~(repeated | unknown | without_image)]
    return RawImages(HAM10000_CLASSES, [_image(raw, row, paths) for row in kept.to_dict('records')])


def _image(raw: RawFiles, row: Mapping[str, str], paths: Mapping[str, str]) -> RawImage:
    path = paths[row['image_id']]
    age = pd.to_numeric(row['age'], errors='coerce')
    return RawImage(
        name=row['image_id'],
        path=path,
        read=functools.partial(raw.read, path),
        label=row['dx'],
        group=row['group'],
        facts={
            'age': None if pd.isna(age) else float(age),
            **{key: row[key] or None for key in ('sex', 'localization', 'dx_type')},
        },
    )


def _read_table(raw: RawFiles, name: str, columns: tuple[str, ...]) -> tuple[str, pd.DataFrame]:
    """A CSV file of the raw files by its base name, every value a string."""
    path = next((path for path in raw.names if path.rpartition('/')[2] == name), None)
    if path is None:
        raise DataError(f'{raw.path} has no {name}. Put the table beside the image folders.')
    try:
        table = pd.read_csv(io.BytesIO(raw.read(path)), dtype=str, keep_default_na=False)
    except ValueError as error:  # pandas' own errors and UnicodeDecodeError are ValueErrors
        raise DataError(f'{path} in {raw.path} is not a CSV table: {error}') from error
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise DataError(
            f'{path} in {raw.path} lacks the column(s) {", ".join(missing)}; '
            f'it has {", ".join(map(str, table.columns))}.'
        )
    return path, table


HAM10000 = ImageSource(
    title='HAM10000 (Tschandl, Rosendahl and Kittler 2018, doi:10.1038/sdata.2018.161)',
    where='https://doi.org/10.7910/DVN/DBW86T',
    licence='CC BY-NC 4.0',
    read=read_ham10000,
)
DEMO = ImageSource(
    title='synthetic lesions, drawn by this program and of no medical meaning, in the layout of HAM10000',
    where='this program',
    licence='Apache-2.0',
    read=read_ham10000,
    synthesize=synthetic.draw_ham10000,
)
SOURCES: Mapping[str, ImageSource] = {'ham10000': HAM10000, 'demo': DEMO, 'folders': FOLDERS}
