"""Skin lesions: the classification task, and the table that the ISIC challenge's scorer reads."""

import pathlib
from collections.abc import Mapping

import numpy as np
import pandas as pd

from common.classification import ClassificationTask
from common.data.dataset import Split
from common.types import Predictions
from lesion.datasets import SOURCES
from lesion.models import MODELS

AGE_BANDS = ('under 20', '20 to 39', '40 to 59', '60 to 79', '80 and older')
CHALLENGE_CLASSES = ('MEL', 'NV', 'BCC', 'AKIEC', 'BKL', 'DF', 'VASC')  # ISIC 2018 Task 3, in its order


class Lesion(ClassificationTask):
    """Dermoscopy images into diagnoses."""

    sources = SOURCES
    models = MODELS
    notice = 'Research software. It makes no diagnosis: whoever worries about a mole should show it to a doctor.'
    classes_of_concern = ('mel', 'melanoma')

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
        """Beside it goes submission.csv, where the classes are the challenge's: its scorer takes no other column."""
        super().write_predictions(predictions, split, path)
        columns = {name.upper(): column for column, name in enumerate(self.class_names)}
        if set(columns) != set(CHALLENGE_CLASSES):
            return
        probabilities = self.probabilities(predictions)
        table = {'image': split.records['name']} | {name: probabilities[:, columns[name]] for name in CHALLENGE_CLASSES}
        pd.DataFrame(table).to_csv(path.with_name('submission.csv'), index=False, float_format='%.6f')


TASK = Lesion
