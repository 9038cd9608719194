"""Labelled images as ArrayRecord files, written by a TFDS builder beside a table of their names and facts."""

import contextlib
import io
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import tensorflow_datasets as tfds
from absl import logging

from common.data.images import Records
from common.data.raw import RawImage

VERSION = '1.0.0'  # of what is written
TABLE = 'records.csv'


def write_records(
    path: pathlib.Path, class_names: Sequence[str], channels: int, images: Mapping[str, Sequence[RawImage]]
) -> None:
    """Writes the images of each split, in the order given: their encoded bytes as they are, labels, names and facts.

    TFDS decides on the folder: `path` must end in data set / preparation / VERSION.
    """
    with _quiet():
        builder = _Builder(
            path.parts[-3],
            class_names,
            channels,
            {name: map(_example, members) for name, members in images.items()},
            data_dir=str(path.parents[2]),
            config=tfds.core.BuilderConfig(name=path.parts[-2]),
        )
        builder.download_and_prepare()
    rows = [
        {'split': name, 'name': image.name, 'label': image.label, 'group': image.group, **image.facts}
        for name, members in images.items()
        for image in members
    ]
    pd.DataFrame(rows).to_csv(path / TABLE, index=False)


def read_records(path: pathlib.Path) -> tuple[list[str], dict[str, tuple[Records, pd.DataFrame]]]:
    """The class names, and of each split the encoded images and, row by row, `name`, `label`, `group` and facts."""
    builder = tfds.builder_from_directory(str(path))
    text = {'split': str, 'name': str, 'label': str, 'group': str}
    table = pd.read_csv(path / TABLE, dtype=text, keep_default_na=False, na_values=[''])
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
    """Writes encoded images with their labels and facts, in the order given."""

    VERSION = tfds.core.Version(VERSION)
    # Where TFDS would look for checksums of downloads, of which there are none.
    code_path = None

    def __init__(
        self,
        name: str,
        class_names: Sequence[str],
        channels: int,
        examples: Mapping[str, Iterable[Mapping[str, Any]]],
        **kwargs: Any,
    ):
        self.name = name
        self._class_names, self._channels, self._examples = class_names, channels, examples
        super().__init__(file_format='array_record', **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            'image': tfds.features.Image(shape=(None, None, self._channels)),
            'label': tfds.features.ClassLabel(names=list(self._class_names)),
            'name': tfds.features.Text(),
            'group': tfds.features.Text(),
            'facts': tfds.features.Text(doc='JSON'),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: Any) -> Mapping[str, Iterator[tuple[int, Mapping[str, Any]]]]:
        del dl_manager
        return {split: self._generate_examples(split) for split in self._examples}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
        yield from zip(itertools.count(), self._examples[split])


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
