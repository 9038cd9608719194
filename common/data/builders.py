"""Raw image sets to prepared ones, audited and split; and prepared ones to the arrays that training reads."""

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from common.data.audit import Audit, audit_labelled
from common.data.dataset import Dataset, Split
from common.data.folders import OWN
from common.data.images import Decoding, decode_image, decoded_split, in_threads
from common.data.raw import ImageSource, RawFiles, RawImage, RawImages, open_raw
from common.data.records import VERSION, preparing, read_images, write_images
from common.data.splits import SPLITS, complete_splits, merge_groups
from common.errors import DataError, UsageError

IN_TRAINING = 'in_training'  # a fact of images outside training: whether their very bytes are in training too


def prepare_images(
    source: ImageSource,
    dataset: ConfigDict,
    raw_dir: pathlib.Path | None,
    data_dir: pathlib.Path,
    skip_bad: bool = False,
) -> Audit:
    """Reads, audits, splits and stores an image set; does nothing where it is prepared from the same files.

    The original encoded bytes are kept, so another image size needs no other preparation.

    Byte-identical images are always audited, and taken away from training alone, where the config says so. Of
    repeats (drop_duplicates) the copy that is first by name stays, and none where validation or test has one.
    Of an image that appears under several labels (drop_contradictory) no copy stays, since none of them is known
    to be right.

    Args:
      source: how to read the raw files.
      dataset: `config.dataset` with name, split_fractions, split_seed, group_by, drop_duplicates, drop_contradictory,
        image_size, resize and channels. Where the publisher has split the images, that split stands, and
        only the splits that are missing, and whose fraction is not 0, are taken from its training images.
      raw_dir: folder or zip; None for a set that is drawn.
      data_dir: holds the prepared data sets by name.
      skip_bad: leaves bad files and rows out instead of refusing them.

    Raises:
      DataError: the raw files have faults, or a class cannot be split; nothing is left behind then.
    """
    final = prepared_path(dataset, data_dir)
    home = final.parents[1]
    with preparing(final, home) as written:
        with open_raw(raw_dir or _synthesize(source, final), source.beside) as raw:
            audit = Audit.begin(source.title, final / 'audit.json', raw.path, raw.signature())
            if audit.kept:
                return audit
            found, table = _examine(source, dataset, raw, audit, skip_bad)
            rows = table.groupby('split').groups
            images = {name: [found.images[row] for row in rows[name]] for name in SPLITS if name in rows}
            write_images(written, dataset.name, found.class_names, dataset.channels, images)
        audit.save(written / 'audit.json')
    return audit


def is_prepared_images(dataset: ConfigDict, data_dir: pathlib.Path) -> bool:
    """Whether the set is there, complete, and split as `config.dataset` says."""
    return (prepared_path(dataset, data_dir) / 'audit.json').exists()


def load_images(dataset: ConfigDict, data_dir: pathlib.Path) -> Dataset:
    """The prepared set: columns `image` uint8 [examples, height, width, channels] and `label` int32 [examples].

    The first call for an image size decodes all images into a memory-mapped file. Rows are sorted by name;
    `records` holds `name`, `group`, the facts of the publisher's table, and IN_TRAINING.

    Raises:
      DataError: where the set is not prepared.
    """
    path = prepared_path(dataset, data_dir)
    if not is_prepared_images(dataset, data_dir):
        raise DataError(
            f'{dataset.name} is not prepared in {path}. Run experiments.prepare with this config, or set '
            f'config.dataset.raw_dir.'
        )
    decoding = Decoding.of(dataset)
    class_names, parts = read_images(path)
    splits = {}
    for name, (encoded, records) in parts.items():
        splits[name] = Split(
            name=name,
            columns={
                'image': decoded_split(encoded, path / 'decoded' / str(decoding) / f'{name}.npy', decoding),
                'label': records['label'].map(class_names.index).to_numpy(np.int32),
            },
            records=records.drop(columns='label'),
        )
    examples = {name: _fingerprint(records) for name, (_, records) in parts.items()}
    shape = list(decoding.shape)
    info = {'dataset': dataset.name, 'class_names': class_names, 'image_shape': shape, 'examples': examples}
    return Dataset(splits=splits, info=info)


def _fingerprint(records: pd.DataFrame) -> str:
    """Of the names and labels of a split's images, so that a run can tell whether they are still those it knows."""
    return _digest('\n'.join(records['name'] + '\t' + records['label']))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prepared_path(dataset: ConfigDict, data_dir: pathlib.Path) -> pathlib.Path:
    """The folder of a preparation, named after all that decides what is in it and in which split."""
    fractions = '-'.join(f'{name}{100 * share:g}' for name, share in _fractions(dataset).items())
    dropped = [key for key in ('drop_duplicates', 'drop_contradictory') if dataset[key]]
    grouped = [f'grouped{_digest(dataset.group_by)}'] if dataset.get('group_by') else []
    preparation = '-'.join([fractions, f'seed{dataset.split_seed}', *grouped, *dropped])
    return pathlib.Path(data_dir).expanduser() / dataset.name / preparation / VERSION


def _fractions(dataset: ConfigDict) -> dict[str, float]:
    """Of all splits in their order; 0 for one that the config does not name."""
    return {name: dataset.split_fractions.get(name, 0.0) for name in SPLITS}


def _synthesize(source: ImageSource, final: pathlib.Path) -> pathlib.Path:
    home = final.parents[1]
    raw_dir = home / 'raw'
    prepared = sorted(path.parents[1].name for path in home.glob(f'*/{VERSION}/audit.json'))
    if source.synthesize is None and final.parent.name in prepared:
        raise UsageError(
            f'{home} is prepared already as config.dataset asks for. To prepare it anew from raw files, name them with '
            '--raw_dir or config.dataset.raw_dir'
        )
    if source.synthesize is None and prepared:
        raise UsageError(
            f'{home} is prepared as {", ".join(prepared)}, and not as config.dataset asks for (split_*, group_by, '
            'drop_*): run experiments.prepare with the same values'
        )
    if source.synthesize is None:
        raise UsageError(
            f'there are no raw files to prepare from: set config.dataset.raw_dir (experiments.prepare also takes '
            f'--raw_dir) to a folder or a zip, or give the --data_dir in which they are prepared. {source.title}: '
            f'{source.where}'
        )
    if not raw_dir.exists():
        incomplete = raw_dir.with_name('incomplete')
        incomplete.mkdir()
        source.synthesize(incomplete)
        incomplete.rename(raw_dir)
    return raw_dir


def _examine(
    source: ImageSource, dataset: ConfigDict, raw: RawFiles, audit: Audit, skip_bad: bool
) -> tuple[RawImages, pd.DataFrame]:
    """The raw images, and a table with the rows to be written: position, name, label, group, split."""
    found = source.read(raw, audit)
    if dataset.get('group_by'):
        found = dataclasses.replace(found, images=_grouped(found.images, dataset.group_by, audit))
    elif folders := sorted({image.name.rpartition('/')[0] for image in found.images if '/' in image.in_class}):
        audit.add(
            'folders_in_classes',
            'folders inside those of the classes; where each is a person or a lesion, '
            "config.dataset.group_by='^[^/]+/' keeps it in one split",
            folders,
        )
    decoding = Decoding.of(dataset)

    def check(image: RawImage) -> tuple[str, str]:
        """SHA-256 of the bytes and '', or '' and what is wrong."""
        try:
            encoded = image.read()
            decode_image(encoded, decoding, image.path)
        except DataError as error:
            return '', str(error)
        return hashlib.sha256(encoded).hexdigest(), ''

    checks = in_threads(check, found.images, 'checking images')
    faults = [fault for _, fault in checks if fault]
    audit.add('unreadable_images', 'images that cannot be decoded', faults, fatal=True)
    if not skip_bad:
        audit.refuse_bad()
    columns = ('name', 'label', 'group', 'split')
    table = pd.DataFrame([[getattr(image, key) for key in columns] for image in found.images], columns=columns)
    table['digest'] = [digest for digest, _ in checks]
    table = table[table.digest != ''].sort_values('name')
    if table.empty:
        raise DataError(f'{raw.path} has no readable image with a label.\n{audit}')
    audit.count(images=len(table), skipped=sum(len(f.items) for f in audit.findings if f.fatal))
    audit.count(groups=table.group.nunique())
    fractions = {name: share for name, share in _fractions(dataset).items() if share}
    table['split'] = complete_splits(table, fractions, dataset.split_seed)
    audit_labelled(audit, table)
    straddling = audit['straddling_groups'].items
    if dataset.get('group_by') and straddling and not skip_bad:
        raise DataError(
            f'{raw.path}: by config.dataset.group_by, {len(straddling)} group(s) have images in several of the splits '
            f'that its folders or tables give, as {", ".join(straddling[:3])}. Move these images, or run '
            'experiments.prepare with --skip_bad, which leaves them where they are.'
        )
    table = _drop(table, dataset, audit)
    counts = pd.crosstab(table.split, table.label).reindex(
        index=list(SPLITS), columns=list(found.class_names), fill_value=0
    )
    audit.count(images_per_split=counts.assign(total=counts.sum(axis=1)).to_dict('index'))
    absent = [name for name in found.class_names if counts.loc['train', name] == 0]
    if absent:
        without = (
            'put the images of the other classes in one folder per class, there in one folder per lesion or person, '
            "and set config.dataset.name='folders' and config.dataset.group_by='^[^/]+/'."
        )
        if dataset.name == OWN:
            without = 'take its folder away.'
        raise DataError(
            f'{raw.path}: no training images are left of {", ".join(absent)}. Add some, or do without: {without}'
        )
    return _with_copies_noted(found, table), table


def _grouped(images: Sequence[RawImage], pattern: str, audit: Audit) -> list[RawImage]:
    """Joins the groups of images in whose names, below the folder of their class, the pattern finds the same text."""
    names = [image.in_class or image.name for image in images]
    try:
        found = [re.search(pattern, name) for name in names]
    except re.error as error:
        raise UsageError(f'config.dataset.group_by is {pattern!r}, no regular expression: {error}') from error
    without = [image.name for image, match in zip(images, found, strict=True) if not match]
    if len(without) == len(images):
        raise UsageError(f'config.dataset.group_by is {pattern!r}, which no name has in it, as {names[:3]}')
    audit.add(
        'names_without_group', 'images whose names say not whose they are; each stays in the group it has', without
    )
    keys = [f'found {match[0]}' if match else f'image {number}' for number, match in enumerate(found)]
    groups = merge_groups([image.group for image in images], keys)
    return [dataclasses.replace(image, group=group) for image, group in zip(images, groups, strict=True)]


def _with_copies_noted(found: RawImages, table: pd.DataFrame) -> RawImages:
    """Adds the fact IN_TRAINING to the images of validation and test, unless it is true of none."""
    training = table.split == 'train'
    copies = table.digest[~training].isin(table.digest[training])
    if not copies.any():
        return found
    images = list(found.images)
    for row, copy in copies.items():
        images[row] = dataclasses.replace(images[row], facts={**images[row].facts, IN_TRAINING: bool(copy)})
    return dataclasses.replace(found, images=images)


def _drop(table: pd.DataFrame, dataset: ConfigDict, audit: Audit) -> pd.DataFrame:
    """Takes training images away as the config says; validation and test stay what they are."""
    training = table.split == 'train'
    elsewhere = table.digest.isin(table.digest[~training])
    repeats = elsewhere | table.digest.where(training, table.name).duplicated()
    contradictory = table.groupby('digest').label.transform('nunique') > 1
    gone = pd.Series(False, index=table.index)
    for key, found in (('drop_duplicates', repeats), ('drop_contradictory', contradictory)):
        if dataset[key]:
            audit.add(key, f'training images dropped ({key})', table.name[training & found].to_list())
            gone |= training & found
    return table[~gone]
