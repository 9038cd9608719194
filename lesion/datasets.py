"""Skin lesion image sets in the layouts of their publishers."""

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from common.data.audit import Audit
from common.data.folders import FOLDERS, read_folders
from common.data.raw import (
    ImageSource,
    RawFiles,
    RawImage,
    RawImages,
    base_name,
    images_by_stem,
    read_table,
    unpack_hint,
)
from common.errors import DataError
from lesion import synthetic

HAM10000_CLASSES = ('akiec', 'bcc', 'bkl', 'df', 'mel', 'nv', 'vasc')
ISIC2020_CLASSES = ('benign', 'malignant')
_HAM10000_TABLES = ('ham10000_metadata.csv', 'ham10000_metadata.tab', 'ham10000_metadata')  # as Dataverse has it
_ISIC9 = {
    'actinic keratosis',
    'basal cell carcinoma',
    'dermatofibroma',
    'melanoma',
    'nevus',
    'pigmented benign keratosis',
    'seborrheic keratosis',
    'squamous cell carcinoma',
    'vascular lesion',
}
_HAM10000_COLUMNS = ('lesion_id', 'image_id', 'dx', 'dx_type', 'age', 'sex', 'localization')

_TRUTH, _GROUPINGS, _METADATA = 'groundtruth.csv', 'lesiongroupings.csv', 'metadata.csv'
_SPLITS = {'training': 'train', 'validation': 'validation', 'test': 'test'}
_WEIGHTS = ('score_weight', 'validation_weight')  # of the test images of 2019, beside their classes
_PATIENTS_TABLES = ('isic_2020_training_groundtruth.csv', 'isic_2020_training_groundtruth_v2.csv', 'train.csv')
_PATIENTS_AS = {  # the columns of 2020, as HAM10000 calls them; a patient stands for all of their lesions
    'image_name': 'image',
    'benign_malignant': 'label',
    'patient_id': 'lesion_id',
    'age_approx': 'age',
    'anatom_site_general_challenge': 'localization',
    'sex': 'sex',
    'diagnosis': 'diagnosis',
}
_FACTS_AS = {'age_approx': 'age', 'anatom_site_general': 'localization'}  # as HAM10000 calls them

STILL_PACKED = 0.01  # share of rows without an image, over which an archive beside them is taken to hold the images


def read_ham10000(raw: RawFiles, audit: Audit) -> RawImages:
    """Reads `HAM10000_metadata.csv`, `.tab` or without ending, and the images it names, in whatever folders they lie.

    All images of one lesion are one group.

    Raises:
      DataError: where the table is missing, unreadable or lacks a column.
    """
    path = _table(raw, _HAM10000_TABLES, 'HAM10000_metadata.csv, nor one with .tab or no ending')
    rows = _with_lines(read_table(raw, path, _HAM10000_COLUMNS), path)
    rows = rows.rename(columns={'image_id': 'image', 'dx': 'label'}).assign(split='')
    return RawImages(HAM10000_CLASSES, _images(raw, audit, rows, HAM10000_CLASSES, ('dx_type',)))


def read_challenge(raw: RawFiles, audit: Audit) -> RawImages:
    """Reads the layout of the ISIC challenges: images in any folders, tables `*GroundTruth.csv` that label them.

    Such a table has a column `image` and one for every class, with a one in that of the image: `image,MEL,NV,...`.
    Where its name has the word Training, Validation or Test in it, that is the split of its images. Lesions and facts
    come from `*LesionGroupings.csv` and `*Metadata.csv`, where these are: columns `image` and any of `lesion_id`,
    `age_approx`, `sex`, `anatom_site_general`. Metadata of another set, without `image`, and images without a label,
    as a challenge's test images are, are left out.

    Raises:
      DataError: where no table labels images, or a table is unreadable, lacks a column or is at odds with another.
    """
    truth, classes = _read_truth(raw)
    facts = _read_facts(raw, audit)
    rows = truth.join(facts, on='image').astype(object).fillna('')
    images = _images(raw, audit, rows, classes)
    trained = {image.label for image in images if image.split in (None, 'train')}
    audit.add(
        'classes_without_training',
        'images of a class that has no training images, left out',
        [f'{image.name} ({image.label})' for image in images if image.label not in trained],
    )
    return RawImages([name for name in classes if name in trained], [i for i in images if i.label in trained])


def read_isic2020(raw: RawFiles, audit: Audit) -> RawImages:
    """Reads `ISIC_2020_Training_GroundTruth.csv`, or `train.csv` as Kaggle calls it, and the JPEGs it names.

    All images of one patient are one group. Images without a label, as the challenge's test images are, are left out.

    Raises:
      DataError: where the table is missing, unreadable or lacks a column.
    """
    path = _table(raw, _PATIENTS_TABLES, 'ISIC_2020_Training_GroundTruth.csv or train.csv')
    known = [*_PATIENTS_AS]  # and no other column, for the second version has a lesion_id of its own
    rows = _with_lines(read_table(raw, path, known)[known].rename(columns=_PATIENTS_AS), path)
    images = _images(raw, audit, rows.assign(split=''), ISIC2020_CLASSES, ('diagnosis',))
    return RawImages(ISIC2020_CLASSES, images)


def _table(raw: RawFiles, names: Collection[str], called: str) -> str:
    """The file with one of the names, given in small letters; raises DataError where none has, as `called`."""
    path = next((path for path in raw.names if base_name(path).lower() in names), None)
    if path is None:
        raise DataError(
            f'{raw.path} has no {called}. Put the table beside the folders of the images.{unpack_hint(raw)}'
        )
    return path


def _read_truth(raw: RawFiles) -> tuple[pd.DataFrame, list[str]]:
    """`image`, `label`, `split` and `line` of every labelled image, and the names of the classes."""
    tables, classes = [], None
    for path in (name for name in raw.names if name.lower().endswith(_TRUTH)):
        table = read_table(raw, path, ('image',))
        found = [name for name in table.columns if name not in ('image', *_WEIGHTS)]
        if classes is not None and found != classes:
            raise DataError(f'{path} in {raw.path} has other classes ({", ".join(found)}) than {", ".join(classes)}.')
        classes = found
        values = table[found].apply(pd.to_numeric, errors='coerce').to_numpy(float)
        labels = [_label(found, row) for row in values]
        split = next((split for word, split in _SPLITS.items() if word in base_name(path).lower()), '')
        tables.append(_with_lines(table[['image']].assign(label=labels, split=split), path))
    if classes is None:
        raise DataError(
            f'{raw.path} has no *GroundTruth.csv. Put the ground truth of the training images beside their folder.'
        )
    return pd.concat(tables, ignore_index=True), classes


def _label(class_names: Sequence[str], values: np.ndarray) -> str:
    """The class whose value is one, while all others are zero; otherwise a text that is no class."""
    marked = [(name, value) for name, value in zip(class_names, values, strict=True) if value != 0]
    return ' and '.join(name if value == 1 else f'{name}={value:g}' for name, value in marked) or 'no class'


def read_isic9(raw: RawFiles, audit: Audit) -> RawImages:
    """Folders of the nine diagnoses, or of some of them.

    Raises:
      DataError: for folders of anything else, which `folders` reads.
    """
    found = read_folders(raw, audit)
    if others := sorted(set(found.class_names) - _ISIC9):
        raise DataError(
            f'{raw.path} has folders that are none of the nine diagnoses: {", ".join(others[:5])}. For images of your '
            'own, set config.dataset.name to folders.'
        )
    return found


def _read_facts(raw: RawFiles, audit: Audit) -> pd.DataFrame:
    """`lesion_id`, `age`, `sex` and `localization` by image; empty where unknown."""
    groupings = [read_table(raw, name, ('image',)) for name in raw.names if name.lower().endswith(_GROUPINGS)]
    metadata = {name: read_table(raw, name, ()) for name in raw.names if name.lower().endswith(_METADATA)}
    foreign = [name for name, table in metadata.items() if 'image' not in table.columns]
    audit.add('other_metadata', 'metadata tables without a column image, left out', foreign)
    tables = [*groupings, *(table for name, table in metadata.items() if name not in foreign)]
    facts = pd.concat([pd.DataFrame({'image': []}, dtype=str), *tables]).rename(columns=_FACTS_AS)
    facts = facts.reindex(columns=['image', 'lesion_id', 'age', 'sex', 'localization'])
    return facts.replace('', None).groupby('image').first()


def _with_lines(table: pd.DataFrame, path: str) -> pd.DataFrame:
    """Adds where each row is; line 1 of the file is the header."""
    return table.assign(line=[f'{path} line {row + 2}' for row in table.index])


def _images(
    raw: RawFiles, audit: Audit, rows: pd.DataFrame, class_names: Collection[str], more_facts: Collection[str] = ()
) -> list[RawImage]:
    """The images that the rows name, and in the audit all that does not fit together.

    Args:
      rows: `image`, `label`, `lesion_id`, `split`, `line`, `age`, `sex`, `localization` and `more_facts`, strings,
        empty where unknown. All images of one lesion are one group.
    """
    paths = images_by_stem(raw, audit)

    def name_rows(chosen: pd.Series) -> list[str]:
        return [f'{row.line}: {row.image} ({row.label})' for row in rows[chosen].itertuples()]

    repeated, unknown = rows.image.duplicated(), ~rows.label.isin(class_names)
    without_image = ~rows.image.isin(paths)
    audit.add('repeated_rows', 'rows that repeat an image', name_rows(repeated), fatal=True)
    known = f'known are {", ".join(class_names)}'
    audit.add('unknown_labels', f'rows with an unknown diagnosis ({known})', name_rows(unknown), fatal=True)
    hint = unpack_hint(raw) if without_image.mean() > STILL_PACKED else ''
    audit.add(
        'rows_without_image',
        f'rows without an image.{hint}'.removesuffix('.') if hint else 'rows without an image, left out',
        name_rows(without_image),
        fatal=bool(hint),
    )
    named = set(rows.image)
    homeless = [path for stem, path in paths.items() if stem not in named]
    audit.add('images_without_row', 'images without a row, left out', homeless)
    audit.add(
        'rows_without_group',
        'rows that name no lesion or patient, each taken for one of its own',
        name_rows(rows.lesion_id == ''),
    )
    ages = pd.to_numeric(rows.age, errors='coerce')
    audit.add(
        'unreadable_ages', 'rows whose age is no number, taken for unknown', name_rows(ages.isna() & (rows.age != ''))
    )
    kept = rows.assign(age=ages)[~(repeated | unknown | without_image)].to_dict('records')
    return [_image(raw, row, paths[row['image']], ('sex', 'localization', *more_facts)) for row in kept]


def _image(raw: RawFiles, row: Mapping[str, Any], path: str, facts: Collection[str]) -> RawImage:
    return RawImage(
        name=row['image'],
        path=path,
        read=functools.partial(raw.read, path),
        label=row['label'],
        group=row['lesion_id'] or row['image'],
        split=row['split'] or None,
        facts={'age': None if pd.isna(row['age']) else float(row['age']), **{key: row[key] or None for key in facts}},
    )


SOURCES: Mapping[str, ImageSource] = {
    'ham10000': ImageSource(
        title='HAM10000 (Tschandl, Rosendahl and Kittler 2018, doi:10.1038/sdata.2018.161)',
        where='https://doi.org/10.7910/DVN/DBW86T',
        read=read_ham10000,
    ),
    'isic2018': ImageSource(
        title='ISIC 2018 Task 3 (Codella et al. 2019, arXiv:1902.03368)',
        where='https://challenge.isic-archive.com/data/#2018',
        read=read_challenge,
    ),
    'isic2019': ImageSource(
        title='ISIC 2019 (HAM10000; BCN_20000, arXiv:1908.02288; MSK, arXiv:1710.05006)',
        where='https://challenge.isic-archive.com/data/#2019',
        read=read_challenge,
    ),
    'isic2020': ImageSource(
        title='ISIC 2020, SIIM-ISIC Melanoma Classification (Rotemberg et al. 2021, doi:10.1038/s41597-021-00815-z)',
        where='https://challenge.isic-archive.com/data/#2020',
        read=read_isic2020,
    ),
    'isic9': ImageSource(
        title='Skin Cancer ISIC, nine diagnoses of the ISIC archive in one folder each',
        where='https://www.kaggle.com/datasets/nodoubttome/skin-cancer9-classesisic',
        read=read_isic9,
    ),
    'folders': FOLDERS,
    'demo': ImageSource(
        title='synthetic lesions, drawn by this program and of no medical meaning, in the layout of HAM10000',
        read=read_ham10000,
        synthesize=synthetic.draw_ham10000,
    ),
}
