"""What the image classifiers share: data, normalisation, losses against imbalance, metrics, prediction files."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from ml_collections import ConfigDict
from scipy.special import softmax

from common.config import choose
from common.data.audit import Audit
from common.data.augment import augment, mix, validate
from common.data.builders import IN_TRAINING, is_prepared_images, load_images, prepare_images
from common.data.dataset import Dataset, Split
from common.data.folders import OWN
from common.data.images import Decoding, decode_image
from common.data.raw import ImageSource, contents, some_image_names, tell_skipped
from common.errors import DataError, UsageError
from common.evaluation.metrics import headline_metrics
from common.evaluation.paired import paired_differences
from common.evaluation.views import VIEWS
from common.findings import Evidence, Report
from common.lazy import lazy
from common.losses import cross_entropy, training_loss
from common.runtime import compute_dtype
from common.task import Task
from common.types import Array, Batch, Keys, Logits, Predictions, Tree

reporting = lazy('common.evaluation.report.classification')

SAMPLED_FOR_STATISTICS = 2000  # training images whose pixels give mean and standard deviation


class ClassificationTask(Task):
    """Images into classes. A package adds its data sets and its models:

    class Lesion(ClassificationTask):
        sources = SOURCES      # by config.dataset.name
        models = MODELS        # by config.model.name; called with num_classes, dtype and config.model's values
    """

    better: ClassVar[Mapping[str, str]] = {'accuracy': 'max', 'balanced_accuracy': 'max', 'macro_f1': 'max'}
    sources: ClassVar[Mapping[str, ImageSource]]
    models: ClassVar[Mapping[str, Callable[..., Any]]]
    # lower-case names of classes that must not be missed, as cancers; the report says what finding them costs
    classes_of_concern: ClassVar[Sequence[str]] = ()

    def __init__(self, config: ConfigDict, info: Mapping[str, Any]):
        super().__init__(config, info)
        self.class_names: list[str] = list(info['class_names'])
        self._training_loss = training_loss(config.loss, info['class_counts'])
        validate(config.augment)

    @classmethod
    def prepare(cls, config: ConfigDict, raw_dir: pathlib.Path | None, data_dir: pathlib.Path, skip_bad: bool) -> Audit:
        source = choose(cls.sources, config.dataset.name, 'dataset.name')
        return prepare_images(source, config.dataset, raw_dir, _place(config, data_dir), skip_bad)

    @classmethod
    def is_prepared(cls, config: ConfigDict, data_dir: pathlib.Path) -> bool:
        return is_prepared_images(config.dataset, _place(config, data_dir))

    @classmethod
    def load(cls, config: ConfigDict, data_dir: pathlib.Path) -> Dataset:
        """Adds to the info what is fitted on the training split alone: pixel statistics and class counts.

        Pixels are standardised by `config.dataset.normalisation` (mean, deviation) instead where pretrained weights
        were.
        """
        dataset = load_images(config.dataset, _place(config, data_dir))
        train = dataset.splits['train']
        counts = np.bincount(train.columns['label'], minlength=len(dataset.info['class_names']))
        given = config.dataset.get('normalisation')
        if given:
            mean, deviation = (np.broadcast_to(value, config.dataset.channels).tolist() for value in given)
        else:
            mean, deviation = pixel_statistics(train.columns['image'])
        fitted = {'class_counts': counts.tolist(), 'pixel_mean': mean, 'pixel_deviation': deviation}
        return dataclasses.replace(dataset, info={**dataset.info, **fitted})

    def model(self) -> Any:
        settings = self.config.model.to_dict()
        make = choose(self.models, settings.pop('name'), 'model.name')
        try:
            return make(
                num_classes=len(self.class_names),
                dtype=compute_dtype(self.config.precision),
                convolution=self.config.convolution,
                **settings,
            )
        except TypeError as error:
            raise UsageError(f'config.model does not fit model {self.config.model.name!r}: {error}') from error

    def preprocess(self, batch: Batch, tables: Mapping[str, Array], keys: Keys | None) -> Batch:
        """`image` uint8 -> `inputs` float32, standardised; `label` -> `target` float32 [batch, classes]."""
        del tables
        pixels = (
            batch['image'].astype(jnp.float32) if keys is None else augment(batch['image'], keys, self.config.augment)
        )
        inputs = (pixels - jnp.array(self.info['pixel_mean'])) / jnp.array(self.info['pixel_deviation'])
        if 'label' not in batch:
            return {**batch, 'inputs': inputs}
        target = self.target(batch)
        if keys is not None:
            inputs, target = mix(inputs, target, keys, self.config.augment)
        return {**batch, 'inputs': inputs, 'target': target}

    def target(self, batch: Batch) -> Array:
        """float32 [batch, classes], rows that sum to one; a task with soft labels says otherwise."""
        return jax.nn.one_hot(batch['label'], len(self.class_names))

    def views(self, name: str, batch: Batch) -> list[Batch]:
        return [{**batch, 'image': image} for image in VIEWS[name](batch['image'])]

    def average(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Logits whose softmax is the mean of the probabilities."""
        log_probabilities = jax.nn.log_softmax(outputs['logits'])
        return {'logits': jax.nn.logsumexp(log_probabilities, axis=0) - jnp.log(len(log_probabilities))}

    def loss(self, outputs: Logits, batch: Batch, train: bool) -> Array:
        """Cross-entropy; while training, what `config.loss` makes of it."""
        logits, target = outputs.astype(jnp.float32), batch['target']
        return self._training_loss(logits, target) if train else cross_entropy(logits, target)

    def step_metrics(self, outputs: Logits, batch: Batch) -> dict[str, Array]:
        """Accuracy on the augmented batch, to hold beside that of the validation split.

        With balanced sampling it is over equally frequent classes, and that of validation is not.
        """
        return {'accuracy': (outputs.argmax(-1) == batch['target'].argmax(-1)).astype(jnp.float32)}

    def outputs(self, outputs: Tree, batch: Batch) -> dict[str, Array]:
        del batch
        return {'logits': outputs.astype(jnp.float32)}

    def probabilities(self, predictions: Predictions) -> np.ndarray:
        """float64 [examples, classes]."""
        return softmax(predictions['logits'].astype(np.float64), axis=-1)

    def metrics(self, predictions: Predictions, split: Split) -> dict[str, float]:
        metrics = headline_metrics(self.probabilities(predictions), np.asarray(split.columns['label']))
        del metrics['log_loss']  # the frame's `loss` is the same, or that of soft labels, or the mean over members
        return metrics

    def report(self, evidence: Evidence) -> Report:
        """See `common.evaluation.report.classification`."""
        self.write_predictions(evidence.predictions, evidence.split, evidence.directory / 'predictions.csv')
        concerns = [name for name in self.class_names if name.casefold() in self.classes_of_concern]
        records = evidence.split.records
        partitions = {**_copies(records), **self.subgroups(records)}
        return reporting.classification_report(evidence, self.class_names, concerns, partitions)

    def differences(
        self, here: tuple[Predictions, Split], there: tuple[Predictions, Split]
    ) -> Mapping[str, Sequence[float]]:
        """See `common.evaluation.paired`."""
        (said, split), (others, other) = here, there
        labels = np.asarray(split.columns['label'])
        same_labels = np.array_equal(labels, other.columns['label'])
        if not (same_labels and split.records['name'].equals(other.records['name'])):
            raise UsageError(f'--against: the two {split.name} splits differ in their images; compare on the same ones')
        groups = split.records['group'].to_numpy()
        return paired_differences(self.probabilities(said), self.probabilities(others), labels, groups)

    def subgroups(self, records: pd.DataFrame) -> Mapping[str, pd.Series]:
        """Partitions of the examples whose parts the report judges one by one: by title, the part of each example."""
        del records
        return {}

    def meaning(self) -> Any:
        return {'class_names': self.class_names}

    def read_inputs(self, paths: Sequence[pathlib.Path]) -> Split:
        """Image files, and all images of folders and zips, decoded exactly as `prepare` does; prints which cannot be.

        Raises:
          DataError: where not one can be, or a folder or zip holds none.
        """
        decoding = Decoding.of(self.config.dataset)
        files, images, skipped = [], [], []
        for file, encoded in (found for path in paths for found in contents(path, some_image_names)):
            try:
                images.append(decode_image(encoded, decoding, file))
                files.append(file)
            except DataError as error:
                skipped.append(str(error))
        tell_skipped(skipped, everything=not images)
        records = pd.DataFrame({'name': _names(files)})
        return Split(name='inputs', columns={'image': np.stack(images)}, records=records)

    def write_predictions(self, predictions: Predictions, split: Split, path: pathlib.Path) -> None:
        """`image,label,predicted` and one probability a class, to nine digits; `label` is empty where it is unknown.

        Of a class that is called like one of the first three, the column is `probability of label`.
        """
        probabilities = self.probabilities(predictions)
        names = np.array(self.class_names)
        label = names[split.columns['label']] if 'label' in split.columns else ''
        table = {'image': split.records['name'], 'label': label, 'predicted': names[probabilities.argmax(-1)]}
        columns = [f'probability of {name}' if name in table else name for name in self.class_names]
        table |= dict(zip(columns, probabilities.T, strict=True))
        pd.DataFrame(table).to_csv(path, index=False, float_format='%.9g')


def _place(config: ConfigDict, data_dir: pathlib.Path) -> pathlib.Path:
    """Where data sets go by their names: those of one's own, which all have one name, lie apart for each task."""
    return data_dir / config.task if config.dataset.name == OWN else data_dir


def _names(files: Sequence[str]) -> list[str]:
    """Each file's name without its ending or, where two would be alike, its path within the folder of all."""
    names = [pathlib.PurePath(file).stem for file in files]
    if len(set(names)) == len(names):
        return names
    paths = [pathlib.Path(file).absolute() for file in files]
    folder = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(folder).as_posix() for path in paths]


def _copies(records: pd.DataFrame) -> dict[str, pd.Series]:
    """The partition by whether an image was there to be learnt by heart, where some were."""
    if IN_TRAINING not in records or records[IN_TRAINING].isna().any():
        return {}
    return {'the very image in training': records[IN_TRAINING].map({True: 'yes', False: 'no'})}


def pixel_statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, 0..255, over an even sample of uint8 [n, h, w, channels]."""
    sample = images[:: max(len(images) // SAMPLED_FOR_STATISTICS, 1)]
    # An image at a time, for counting takes eight bytes a pixel.
    counts = [
        sum(np.bincount(image[..., c].ravel(), minlength=256) for image in sample) for c in range(images.shape[-1])
    ]
    levels = np.arange(256)
    mean = [float(np.average(levels, weights=count)) for count in counts]
    variance = [float(np.average((levels - m) ** 2, weights=count)) for m, count in zip(mean, counts, strict=True)]
    return mean, [max(v, 1.0) ** 0.5 for v in variance]


def image_dataset(name: str, image_size: tuple[int, int], **values: Any) -> ConfigDict:
    """The defaults of `config.dataset` for image sets; `image_size` is (height, width)."""
    dataset = {
        'name': name,
        'raw_dir': '',
        'split_fractions': {'train': 0.7, 'validation': 0.15, 'test': 0.15},
        'split_seed': 0,
        'image_size': image_size,
        'resize': 'stretch',
        'channels': 3,
        # (mean, deviation) of pixels 0..255, each of all channels or one a channel; else those of the training split
        'normalisation': (),
        # regular expression for what in an image's name says whose it is, as '^patient[0-9]+'; the name of an image in
        # the folder of a class is its path below that, as patient00/a.jpg
        'group_by': '',
        'drop_duplicates': False,
        'drop_contradictory': False,
    }
    return ConfigDict(dataset | values).lock()  # so that a misspelt key raises
