"""Skin lesions: the classification task, metadata beside the image, and the table that the challenge's scorer reads."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from common.classification import ClassificationTask
from common.data.dataset import Dataset, Split
from common.errors import UsageError
from common.types import Array, Batch, Keys, Predictions
from lesion.datasets import SOURCES
from lesion.metadata import encode, fit_vocabulary, one_hot
from lesion.models import MODELS

AGE_BANDS = ('under 20', '20 to 39', '40 to 59', '60 to 79', '80 and older')
CHALLENGES = (  # the ISIC challenges' classes in their order; nothing is trained to be UNK
    ('MEL', 'NV', 'BCC', 'AKIEC', 'BKL', 'DF', 'VASC'),
    ('MEL', 'NV', 'BCC', 'AK', 'BKL', 'DF', 'VASC', 'SCC', 'UNK'),
)


class Lesion(ClassificationTask):
    """Dermoscopy images into diagnoses; with `config.model.metadata`, by age, sex and site too."""

    sources = SOURCES
    models = MODELS
    notice = 'Research software. It makes no diagnosis: whoever worries about a mole should show it to a doctor.'
    classes_of_concern = ('mel', 'melanoma', 'malignant')

    def __init__(self, config: ConfigDict, info: Mapping[str, Any]):
        super().__init__(config, info)
        if _has_metadata(config) and (config.augment.get('mixup') or config.augment.get('cutmix')):
            raise UsageError(
                'config.augment.mixup and cutmix mix images but no metadata: turn config.model.metadata off'
            )

    @classmethod
    def load(cls, config: ConfigDict, data_dir: pathlib.Path) -> Dataset:
        """With metadata there is a column `metadata`, int32 [examples, fields], and its vocabulary in the info."""
        dataset = super().load(config, data_dir)
        if not _has_metadata(config):
            return dataset
        vocabulary = fit_vocabulary(dataset.splits['train'].records)
        splits = {name: _with_metadata(split, vocabulary) for name, split in dataset.splits.items()}
        return dataclasses.replace(dataset, splits=splits, info={**dataset.info, 'metadata': vocabulary})

    def read_inputs(self, paths: Sequence[pathlib.Path]) -> Split:
        """Images, of which no metadata are known."""
        split = super().read_inputs(paths)
        return _with_metadata(split, self.info['metadata']) if _has_metadata(self.config) else split

    def preprocess(self, batch: Batch, tables: Mapping[str, Array], keys: Keys | None) -> Batch:
        """With metadata, `inputs` are `image` and `metadata`, float32 [batch, categories]."""
        batch = super().preprocess(batch, tables, keys)
        if not _has_metadata(self.config):
            return batch
        metadata = one_hot(batch['metadata'], self.info['metadata'])
        return {**batch, 'inputs': {'image': batch['inputs'], 'metadata': metadata}}

    def subgroups(self, records: pd.DataFrame) -> Mapping[str, pd.Series]:
        """Age bands, sex and site, as far as the publisher's table has them."""
        found = {
            title: records[column].mask(records[column] == 'unknown')
            for title, column in (('sex', 'sex'), ('site', 'localization'))
            if column in records
        }
        if 'age' in records:
            bands = pd.cut(records['age'], [0, 20, 40, 60, 80, np.inf], right=False, labels=AGE_BANDS)
            found = {'age': bands} | found
        return found

    def write_predictions(self, predictions: Predictions, split: Split, path: pathlib.Path) -> None:
        """Beside it goes submission.csv, where the classes are a challenge's: its scorer takes no other column.

        Where that is the name of `path` itself, it is challenge.csv.
        """
        super().write_predictions(predictions, split, path)
        probabilities = dict(zip(map(str.upper, self.class_names), self.probabilities(predictions).T, strict=True))
        for classes in CHALLENGES:
            if set(probabilities) | {'UNK'} == {*classes, 'UNK'}:
                table = {name: probabilities.get(name, np.zeros(len(split))) for name in classes}
                submission = pd.DataFrame({'image': split.records['name'], **table})
                beside = path.with_name('challenge.csv' if path.name.lower() == 'submission.csv' else 'submission.csv')
                submission.to_csv(beside, index=False, float_format='%.6f')


def _has_metadata(config: ConfigDict) -> bool:
    return config.model.get('metadata', False)


def _with_metadata(split: Split, vocabulary: Mapping[str, Sequence[str]]) -> Split:
    return dataclasses.replace(split, columns={**split.columns, 'metadata': encode(split.records, vocabulary)})


TASK = Lesion
