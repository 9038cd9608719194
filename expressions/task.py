"""Facial expressions: the classification task, and the votes of FER+ as soft labels."""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from common.classification import ClassificationTask
from common.data.dataset import Dataset, Split
from common.errors import DataError
from common.types import Array, Batch
from expressions.datasets import SOURCES, VOTES_TABLE, votes_key
from expressions.models import MODELS


class Expressions(ClassificationTask):
    """Faces into expressions; with `config.loss.soft_targets`, trained on the shares of FER+'s votes."""

    sources = SOURCES
    models = MODELS
    notice = 'Research software. A guess from a picture of a face is no judgement of what a person feels or is.'

    @classmethod
    def load(cls, config: ConfigDict, data_dir: pathlib.Path) -> Dataset:
        """With soft targets there is a column `votes`, float32 [examples, classes]."""
        dataset = super().load(config, data_dir)
        if not config.loss.soft_targets:
            return dataset
        class_names = dataset.info['class_names']
        splits = {name: _with_votes(split, class_names) for name, split in dataset.splits.items()}
        return dataclasses.replace(dataset, splits=splits)

    def target(self, batch: Batch) -> Array:
        return jnp.asarray(batch['votes']) if self.config.loss.soft_targets else super().target(batch)


def _with_votes(split: Split, class_names: Sequence[str]) -> Split:
    """Adds the shares of the votes; an image without votes for these classes keeps its label."""
    missing = [name for name in class_names if votes_key(name) not in split.records]
    if missing:
        raise DataError(
            f'config.loss.soft_targets is on, but the data set has no votes for {", ".join(missing)}: put '
            f'{VOTES_TABLE} beside fer2013.csv and run experiments.prepare with that table as --raw_dir. Folders of '
            f'images have no votes, since these go by the rows of the table.'
        )
    counts = split.records[[votes_key(name) for name in class_names]].to_numpy(np.float32)
    counts = np.where(counts.any(axis=1, keepdims=True), counts, np.eye(len(class_names))[split.columns['label']])
    votes = (counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)
    return dataclasses.replace(split, columns={**split.columns, 'votes': votes})


TASK = Expressions
