"""Skin lesions: the classification task, and the table that the ISIC challenge's scorer reads."""

import pathlib

import pandas as pd

from common.classification import ClassificationTask
from common.data.dataset import Split
from common.types import Predictions
from lesion.datasets import SOURCES
from lesion.models import MODELS

CHALLENGE_CLASSES = ('MEL', 'NV', 'BCC', 'AKIEC', 'BKL', 'DF', 'VASC')  # ISIC 2018 Task 3, in its order


class Lesion(ClassificationTask):
    """Dermoscopy images into diagnoses."""

    sources = SOURCES
    models = MODELS

    def write_predictions(self, predictions: Predictions, split: Split, path: pathlib.Path) -> None:
        """Beside it goes submission.csv, where the classes are the challenge's: its scorer takes no other column."""
        super().write_predictions(predictions, split, path)
        columns = {name.upper(): column for column, name in enumerate(self.class_names)}
        if set(columns) != set(CHALLENGE_CLASSES):
            return
        probabilities = self.probabilities(predictions)
        table = {'image': split.records['name']} | {name: probabilities[:, columns[name]] for name in CHALLENGE_CLASSES}
        pd.DataFrame(table).to_csv(path.with_name('submission.csv'), index=False, float_format='%.6f')


TASK = Lesion
