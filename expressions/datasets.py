"""Sets of face images in the layouts in which people have them: FER2013 as a table or as folders, FER+, CK+."""

import csv
import dataclasses
import functools
import io
from collections.abc import Iterator, Mapping, Sequence

from PIL import Image

from common.data.audit import Audit
from common.data.folders import FOLDERS, read_folders
from common.data.raw import (
    ImageSource,
    RawFiles,
    RawImage,
    RawImages,
    base_name,
    image_names,
    read_table,
    unpack_hint,
)
from common.errors import DataError
from expressions import synthetic

FER2013_CLASSES = ('angry', 'disgust', 'fear', 'happy', 'sad', 'surprise', 'neutral')  # by the number in the table
USAGES = {'Training': 'train', 'PublicTest': 'validation', 'PrivateTest': 'test'}
SIDE = 48  # pixels of a FER2013 image

COLUMNS = ('emotion', 'pixels', 'usage')  # in any order, with capital letters and blanks
TABLES = ('fer2013.csv', 'icml_face_data.csv')  # the names under which Kaggle has them, the first one first
VOTES_TABLE = 'fer2013new.csv'
VOTED_AS = {  # FER+'s other columns, contempt, unknown and NF (not a face), have no class in FER2013
    'angry': 'anger',
    'disgust': 'disgust',
    'fear': 'fear',
    'happy': 'happiness',
    'sad': 'sadness',
    'surprise': 'surprise',
    'neutral': 'neutral',
}


def votes_key(class_name: str) -> str:
    """The fact of an image that holds how many of FER+'s ten annotators saw this expression."""
    return f'votes_{class_name}'


def read_fer2013(raw: RawFiles, audit: Audit) -> RawImages:
    """Reads FER2013 as a table `emotion,pixels,Usage`, or as folders `<split>/<class>/*`, whichever is there.

    Official splits stand: Training is train, PublicTest validation, PrivateTest test. In folders they are told
    by file names (`PublicTest_123.jpg`), and by the folder where a name does not tell. Beside the table,
    FER+'s `fer2013new.csv` is joined to it row by row, its votes become facts. Other tables, as the competition has
    them (`train.csv` without Usage), are passed over.

    Raises:
      DataError: where no table has the columns, the two tables do not belong together, or a folder is no class.
    """
    tables = [name for name in raw.names if name.lower().endswith('.csv') and base_name(name) != VOTES_TABLE]
    tables.sort(key=lambda name: TABLES.index(base_name(name)) if base_name(name) in TABLES else len(TABLES))
    missing: dict[str, list[str]] = {}
    for path in tables:
        columns = _columns(csv.reader(_text(raw, path)))
        missing[path] = [name for name in COLUMNS if name not in columns]
        if not missing[path]:
            return _read_table(raw, path, audit)
    if tables and not image_names(raw):
        lacking = '; '.join(f'{path} lacks the column(s) {", ".join(names)}' for path, names in missing.items())
        raise DataError(f'{raw.path} has no table of FER2013: {lacking}.{unpack_hint(raw)}')
    return _read_official_folders(raw, audit)


def _read_official_folders(raw: RawFiles, audit: Audit) -> RawImages:
    found = read_folders(raw, audit)
    unknown = sorted({name for name in found.class_names if name.lower() not in FER2013_CLASSES})
    if unknown:
        raise DataError(
            f'{raw.path} has folders that are no class of FER2013: {", ".join(unknown)}; its classes are '
            f'{", ".join(FER2013_CLASSES)}. For another set of faces use expressions/configs/folders.py.'
        )
    images = [
        dataclasses.replace(
            image,
            label=image.label.lower(),
            split=USAGES.get(base_name(image.name).partition('_')[0], image.split),
        )
        for image in found.images
    ]
    return RawImages(FER2013_CLASSES, images)


def _read_table(raw: RawFiles, path: str, audit: Audit) -> RawImages:
    votes = _read_votes(raw)
    images, faults = [], []
    for number, (where, fields) in enumerate(_rows(raw, path)):
        try:
            image = _image(number, where, fields)
        except ValueError as error:
            faults.append(f'{where}: {error}')
            continue
        images.append(image if votes is None else dataclasses.replace(image, facts=_votes(votes, number, where, image)))
    audit.add('bad_rows', 'rows of the table that cannot be read', faults, fatal=True)
    if votes is not None:
        unvoted = [image.path for image in images if not any(image.facts.values())]
        audit.add('rows_without_votes', "rows without a FER+ vote for any of FER2013's classes", unvoted)
    return RawImages(FER2013_CLASSES, images)


def _text(raw: RawFiles, path: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(raw.read(path)), encoding='utf-8-sig', errors='replace', newline='')


def _columns(lines: Iterator[list[str]]) -> list[str]:
    """The names in the first line, in small letters; none, where it cannot be read."""
    try:
        return [name.strip().lower() for name in next(lines, [])]
    except csv.Error:
        return []


def _rows(raw: RawFiles, path: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Where each row is, and its fields by column name; a short row lacks the last ones."""
    reader = csv.reader(_text(raw, path))
    columns = _columns(reader)
    try:
        for row in filter(None, reader):  # a blank line is none
            yield f'{path} line {reader.line_num}', dict(zip(columns, row, strict=False))
    except csv.Error as error:
        raise DataError(f'{path} in {raw.path}, line {reader.line_num}: {error}') from error


def _image(number: int, where: str, fields: Mapping[str, str]) -> RawImage:
    """Raises ValueError, saying what is wrong with the row."""
    if not fields.keys() >= {*COLUMNS}:
        written = len(fields.get('pixels', '').split())
        raise ValueError(f'the line is truncated, after {written} of {SIDE * SIDE} pixels')
    usage, emotion = fields['usage'].strip(), fields['emotion'].strip()
    if usage not in USAGES:
        raise ValueError(f'Usage is {usage!r}; it must be one of {", ".join(USAGES)}')
    if emotion not in map(str, range(len(FER2013_CLASSES))):
        raise ValueError(f'emotion is {emotion!r}; it must be 0 to {len(FER2013_CLASSES) - 1}')
    try:
        pixels = bytes(map(int, fields['pixels'].split()))
    except ValueError:
        raise ValueError('a pixel is not a whole number from 0 to 255') from None
    if len(pixels) != SIDE * SIDE:
        raise ValueError(f'{len(pixels)} pixels instead of {SIDE * SIDE}')
    name = f'fer{number:07d}'  # as FER+ calls it
    return RawImage(
        name=name,
        path=where,
        read=functools.partial(_png, pixels),
        label=FER2013_CLASSES[int(emotion)],
        group=name,
        split=USAGES[usage],
    )


def _png(pixels: bytes) -> bytes:
    """A table holds no encoded image; equal pixels give equal bytes, so that duplicates are found."""
    encoded = io.BytesIO()
    Image.frombytes('L', (SIDE, SIDE), pixels).save(encoded, 'PNG', compress_level=1)
    return encoded.getvalue()


def _read_votes(raw: RawFiles) -> Sequence[Mapping[str, object]] | None:
    """The rows of FER+'s table (Barsoum et al. 2016, arXiv:1608.01041), None where it is not there."""
    path = next((name for name in raw.names if base_name(name) == VOTES_TABLE), None)
    if path is None:
        return None
    return read_table(raw, path, ('Usage', *VOTED_AS.values())).to_dict('records')


def _votes(votes: Sequence[Mapping[str, object]], number: int, where: str, image: RawImage) -> Mapping[str, int]:
    usage = votes[number]['Usage'] if number < len(votes) else 'missing'
    if USAGES.get(str(usage)) != image.split:
        raise DataError(
            f'{VOTES_TABLE} line {number + 2}: Usage is {usage}, but {where} is for {image.split}. The votes of '
            f'FER+ belong to the complete fer2013.csv, row by row.'
        )
    try:
        return {votes_key(name): int(str(votes[number][column])) for name, column in VOTED_AS.items()}
    except ValueError as error:
        raise DataError(f'{VOTES_TABLE} line {number + 2}: votes must be whole numbers ({error}).') from error


SOURCES: Mapping[str, ImageSource] = {
    'fer2013': ImageSource(
        title='FER2013 (Goodfellow et al. 2013, arXiv:1307.0414)',
        where='https://www.kaggle.com/c/challenges-in-representation-learning-facial-expression-recognition-challenge',
        read=read_fer2013,
        beside=(VOTES_TABLE,),
    ),
    'ckplus': ImageSource(
        title='CK+48, cropped from the Extended Cohn-Kanade set (Lucey et al. 2010, doi:10.1109/CVPRW.2010.5543262)',
        where='https://www.jeffcohn.net/Resources',
        read=read_folders,
    ),
    'folders': FOLDERS,
    'synthetic_faces': ImageSource(
        title='synthetic faces, drawn by this program, in the layout of FER2013',
        read=read_fer2013,
        synthesize=synthetic.draw_fer2013,
    ),
}
