"""Prepared data as ArrayRecord files, written by a TFDS builder; those of images beside a table of names and facts."""

import contextlib
import io
import json
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import tensorflow_datasets as tfds
from absl import logging

from common.data.images import Records, exclusive
from common.data.raw import RawImage

VERSION = '1.0.0'  # of what is written
TABLE = 'records.csv'


@contextlib.contextmanager
def preparing(path: pathlib.Path, home: pathlib.Path) -> Iterator[pathlib.Path]:
    """Where to write what is to be in `path`, below `home`; when complete, it takes that place.

    Other processes are kept out meanwhile, and what an interrupted one left is removed. Where nothing is written,
    `path` stays as it is.
    """
    incomplete = home / 'incomplete'
    home.mkdir(parents=True, exist_ok=True)
    with exclusive(home):
        shutil.rmtree(incomplete, ignore_errors=True)
        try:
            written = incomplete / path.relative_to(home.parent)
            yield written
            if written.exists():
                shutil.rmtree(path, ignore_errors=True)
                path.parent.mkdir(exist_ok=True)
                written.rename(path)
        finally:
            shutil.rmtree(incomplete, ignore_errors=True)


def write_records(
    path: pathlib.Path, name: str, features: Mapping[str, Any], splits: Mapping[str, Iterable[Mapping[str, Any]]]
) -> None:
    """Writes the examples of each split, in the order given, with TFDS's `features`.

    TFDS decides on the folder: `path` must end in NAME / VERSION or NAME / preparation / VERSION.
    """
    prepared = path.parent.name != name
    with _quiet():
        builder = _Builder(
            name,
            features,
            splits,
            data_dir=str(path.parents[2 if prepared else 1]),
            config=tfds.core.BuilderConfig(name=path.parent.name) if prepared else None,
        )
        builder.download_and_prepare()


def write_images(
    path: pathlib.Path, name: str, class_names: Sequence[str], channels: int, images: Mapping[str, Sequence[RawImage]]
) -> None:
    """Writes the images of each split: their encoded bytes as they are, labels, names and facts."""
    features = {
        'image': tfds.features.Image(shape=(None, None, channels)),
        'label': tfds.features.ClassLabel(names=list(class_names)),
        'name': tfds.features.Text(),
        'group': tfds.features.Text(),
        'facts': tfds.features.Text(doc='JSON'),
    }
    write_records(path, name, features, {split: map(_example, members) for split, members in images.items()})
    rows = [
        {'split': split, 'name': image.name, 'label': image.label, 'group': image.group, **image.facts}
        for split, members in images.items()
        for image in members
    ]
    pd.DataFrame(rows).to_csv(path / TABLE, index=False)


def read_images(path: pathlib.Path) -> tuple[list[str], dict[str, tuple[Records, pd.DataFrame]]]:
    """The class names, and of each split the encoded images and, row by row, `name`, `label`, `group` and facts."""
    builder = tfds.builder_from_directory(str(path))
    text = {'split': str, 'name': str, 'label': str, 'group': str}
    table = pd.read_csv(path / TABLE, dtype=text, keep_default_na=False, na_values=[''])
    table['label'] = table['label'].str.strip()  # as TFDS does with the names of classes
    splits = {}
    for name, records in table.groupby('split', sort=False):
        encoded = builder.as_data_source(name, decoders={'image': tfds.decode.SkipDecoding()})
        splits[str(name)] = encoded, records.drop(columns='split').reset_index(drop=True)
    return builder.info.features['label'].names, splits


def _example(image: RawImage) -> Mapping[str, Any]:
    return {
        'image': image.read(),
        'label': image.label,
        'name': image.name,
        'group': image.group,
        'facts': json.dumps(dict(image.facts)),
    }


class _Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version(VERSION)
    # Where TFDS would look for checksums of downloads, of which there are none.
    code_path = None

    def __init__(
        self, name: str, features: Mapping[str, Any], splits: Mapping[str, Iterable[Mapping[str, Any]]], **kwargs: Any
    ):
        self.name, self._features, self._splits = name, features, splits
        super().__init__(file_format='array_record', **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(self._features)
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> Mapping[str, Iterator[tuple[int, Mapping[str, Any]]]]:
        del dl_manager
        return {split: self._generate_examples(split) for split in self._splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
        yield from enumerate(self._splits[split])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS's progress bars, prints and warnings about configs from the terminal."""
    verbosity = logging.get_verbosity()
    tfds.disable_progress_bar()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
