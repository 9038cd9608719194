"""What a task package supplies to the frame; `task.py` of the package ends with `TASK = ItsTask`."""

import abc
import importlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from ml_collections import ConfigDict

from common.data.audit import Audit
from common.data.dataset import Dataset, Split
from common.errors import UsageError
from common.findings import Evidence, Report
from common.types import Array, Batch, Keys, Predictions, Tree


class Task(abc.ABC):
    """One kind of problem: its data, its model, its loss and how its predictions are judged.

    Everything that runs on the device (`preprocess`, `loss`, `outputs`) is pure, sees one device's part of the
    batch and returns one row per example; the frame applies the padding mask and the mean.
    """

    notice: ClassVar[str] = 'Research software.'  # the sentence at the top of every report
    # of those of `metrics` that `config.monitor.metric` may name, whether 'min' or 'max' is better
    better: ClassVar[Mapping[str, str]] = {}

    def __init__(self, config: ConfigDict, info: Mapping[str, Any]):
        """`info` is `Dataset.info`, fresh from the data or from a run's config.json."""
        self.config = config
        self.info = info

    # On the host, before training.

    @classmethod
    @abc.abstractmethod
    def prepare(cls, config: ConfigDict, raw_dir: pathlib.Path | None, data_dir: pathlib.Path, skip_bad: bool) -> Audit:
        """Reads the raw files, audits them, and writes the prepared data set below `data_dir`.

        Raises:
          DataError: where the raw files have faults and `skip_bad` is False; nothing is left behind then.
        """

    @classmethod
    @abc.abstractmethod
    def is_prepared(cls, config: ConfigDict, data_dir: pathlib.Path) -> bool:
        """Whether `data_dir` holds this data set complete, prepared as `config.dataset` says."""

    @classmethod
    @abc.abstractmethod
    def load(cls, config: ConfigDict, data_dir: pathlib.Path) -> Dataset:
        """The prepared data set, memory-mapped where it is large."""

    @classmethod
    def walk_forward(cls, config: ConfigDict, data_dir: pathlib.Path, folds: int) -> list[ConfigDict]:
        """One config for each of `folds` consecutive periods, to be trained and judged one by one."""
        del data_dir, folds
        raise UsageError(f'--walk_forward: the examples of the task {config.task!r} have no order in time')

    # On the device.

    @abc.abstractmethod
    def model(self) -> Any:
        """A Linen module called as `module(batch['inputs'], train=bool)`."""

    @abc.abstractmethod
    def preprocess(self, batch: Batch, tables: Mapping[str, Array], keys: Keys | None) -> Batch:
        """Adds `inputs` to the batch: normalised, and augmented where `keys` (one per example) are given."""

    @abc.abstractmethod
    def loss(self, outputs: Tree, batch: Batch, train: bool) -> Array:
        """float32 [batch], one value per example; `batch` is what `preprocess` returned."""

    def outputs(self, outputs: Tree, batch: Batch) -> dict[str, Array]:
        """What of the model's output is kept as predictions, each [batch, ...]."""
        del batch
        return {'logits': outputs}

    def views(self, name: str, batch: Batch) -> list[Batch]:
        """The batch as seen in each of several ways, for test-time augmentation; `preprocess` takes each."""
        del batch
        raise UsageError(f'--views={name}: the task {self.config.task!r} has no views')

    def average(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """What `outputs` gave for each view, seed or run, [views, batch, ...], as one [batch, ...]."""
        return {name: output.mean(0) for name, output in outputs.items()}

    def step_metrics(self, outputs: Tree, batch: Batch) -> dict[str, Array]:
        """Figures of a training batch beside its loss, each float32 [batch]; means are logged."""
        del outputs, batch
        return {}

    # On the host, after evaluation.

    @abc.abstractmethod
    def metrics(self, predictions: Predictions, split: Split) -> dict[str, float]:
        """Scalars cheap enough for every validation during training, `loss` is the frame's own."""

    @abc.abstractmethod
    def report(self, evidence: Evidence) -> Report:
        """Figures, tables and plots; writes predictions.csv, and tables of the task's own, into the directory."""

    def differences(
        self, here: tuple[Predictions, Split], there: tuple[Predictions, Split]
    ) -> Mapping[str, Sequence[float]]:
        """Metrics here less those there, on the same examples: by name, the difference and the ends of its interval."""
        del here, there
        raise UsageError(f'--against: the task {self.config.task!r} has no comparison of two runs')

    def meaning(self) -> Any:
        """What must be equal for predictions of two runs to be averaged, e.g. class names."""
        return self.info

    @abc.abstractmethod
    def read_inputs(self, paths: Sequence[pathlib.Path]) -> Split:
        """Files of the user's own, as examples without labels, treated exactly as `prepare` treats them."""

    @abc.abstractmethod
    def write_predictions(self, predictions: Predictions, split: Split, path: pathlib.Path) -> None:
        """The table that `experiments.predict` writes."""

    def members(self, split: Split) -> list[np.ndarray] | None:
        """Rows (int32) for each model of its own, where every group of examples gets one; None for one model."""
        del split
        return None

    def class_of(self, split: Split) -> np.ndarray | None:
        """int32 [examples], the class by which sampling is balanced; None where there are no classes."""
        return np.asarray(split.columns['label']) if 'label' in split.columns else None


def task_class(name: str) -> type[Task]:
    """The task of the package `name`, e.g. 'lesion'."""
    if not name:
        raise UsageError('config.task is empty; it must name the package of a task, e.g. lesion')
    try:
        module = importlib.import_module(f'{name}.task')
    except ModuleNotFoundError as error:
        if error.name not in (name, f'{name}.task'):
            raise
        raise UsageError(f'config.task is {name!r}, but there is no module {name}.task to import') from error
    return module.TASK
