"""Points near planes: regression by least squares, one model for all groups or one each."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from common.data.audit import Audit
from common.data.dataset import Dataset, Split
from common.findings import Evidence, Report
from common.task import Task
from common.types import Array, Batch, Keys, Predictions, Tree

from . import datasets
from .models import MLP


class Toy(Task):
    """Inputs are the three coordinates, jittered by `config.augment.jitter` in training."""

    better: ClassVar[Mapping[str, str]] = {'mae': 'min'}

    @classmethod
    def prepare(cls, config: ConfigDict, raw_dir: pathlib.Path | None, data_dir: pathlib.Path, skip_bad: bool) -> Audit:
        return datasets.prepare(raw_dir, data_dir, skip_bad)

    @classmethod
    def is_prepared(cls, config: ConfigDict, data_dir: pathlib.Path) -> bool:
        return datasets.prepared_file(data_dir).exists()

    @classmethod
    def load(cls, config: ConfigDict, data_dir: pathlib.Path) -> Dataset:
        return datasets.load(config.dataset, data_dir)

    def model(self) -> MLP:
        return MLP(**self.config.model)

    def preprocess(self, batch: Batch, tables: Mapping[str, Array], keys: Keys | None) -> Batch:
        inputs = batch['x']
        if keys is not None:
            inputs = inputs + self.config.augment.jitter * jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
        return {**batch, 'inputs': inputs}

    def loss(self, outputs: Tree, batch: Batch, train: bool) -> Array:
        return (outputs - batch['target']) ** 2

    def outputs(self, outputs: Tree, batch: Batch) -> dict[str, Array]:
        return {'value': outputs}

    def metrics(self, predictions: Predictions, split: Split) -> dict[str, float]:
        return {'mae': float(np.abs(predictions['value'] - split.columns['target']).mean())}

    def report(self, evidence: Evidence) -> Report:
        self.write_predictions(evidence.predictions, evidence.split, evidence.directory / 'predictions.csv')
        return Report(metrics=self.metrics(evidence.predictions, evidence.split))

    def read_inputs(self, paths: Sequence[pathlib.Path]) -> Split:
        return datasets.split_of('inputs', pd.concat([pd.read_csv(path) for path in paths]))

    def write_predictions(self, predictions: Predictions, split: Split, path: pathlib.Path) -> None:
        split.records.assign(predicted=predictions['value']).to_csv(path, index=False, float_format='%.6f')

    def members(self, split: Split) -> list[np.ndarray] | None:
        if not self.config.dataset.by_group:
            return None
        group = split.columns['group']
        return [np.flatnonzero(group == number).astype(np.int32) for number in range(datasets.GROUPS)]


TASK = Toy
