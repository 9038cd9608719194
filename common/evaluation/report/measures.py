"""What a classifier's report measures beyond the plain metrics; all that is fitted is fitted on validation alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from common.evaluation.calibration import (
    apply_temperature,
    conformal_threshold,
    expected_calibration_error,
    fit_temperature,
    prediction_sets,
    sensitivity_at_specificity,
    threshold_for_sensitivity,
)
from common.evaluation.metrics import bootstrap_intervals, headline_metrics

COVERAGE = 0.9  # that prediction sets promise
SENSITIVITIES = (0.8, 0.9, 0.95)  # to which decision thresholds are fitted
SPECIFICITIES = (0.8, 0.9, 0.95)  # at which sensitivity is read off the ROC curve
_NORMAL_95 = 1.959964  # standard deviations of a normal distribution on either side that hold 95%
FEW = 30  # groups of examples below which a subgroup's figures say next to nothing


def temperature_scaling(
    logits: np.ndarray, labels: np.ndarray, fitted_on: tuple[np.ndarray, np.ndarray]
) -> dict[str, float]:
    """Calibration error and log loss before and after one temperature; `fitted_on` holds logits and labels."""
    temperature = fit_temperature(*fitted_on)
    result = {'temperature': temperature}
    for name, value in (('before', 1.0), ('after', temperature)):
        probabilities = apply_temperature(logits, value)
        result[f'expected_calibration_error_{name}'] = expected_calibration_error(probabilities, labels)
        result[f'log_loss_{name}'] = headline_metrics(probabilities, labels)['log_loss']
    return result


def recall_intervals(probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> list[list[float] | None]:
    """For each class a 95% interval of its recall, by Wilson's score (Wilson 1927); None where it does not occur.

    Unlike those of the bootstrap it is not empty where all or none of a class is found, which for a rare one says
    little. The images of one group may be as good as copies: they count as one, and groups of unequal sizes as
    (sum of sizes)^2 / (sum of squared sizes) (Kish 1965), since the share leans on the larger.
    """
    right = probabilities.argmax(-1) == labels
    intervals: list[list[float] | None] = []
    for index in range(probabilities.shape[1]):
        rows = labels == index
        if not rows.any():
            intervals.append(None)
            continue
        sizes = np.unique(groups[rows], return_counts=True)[1]
        share, uncertainty = right[rows].mean(), _NORMAL_95**2 * (sizes**2).sum() / sizes.sum() ** 2
        middle, width = share + uncertainty / 2, np.sqrt(share * (1 - share) * uncertainty + uncertainty**2 / 4)
        ends = np.clip(np.array([middle - width, middle + width]) / (1 + uncertainty), 0, 1)  # rounding may pass them
        intervals.append(ends.tolist())
    return intervals


def conformal_sets(
    probabilities: np.ndarray,
    labels: np.ndarray,
    fitted_on: tuple[np.ndarray, np.ndarray],
    class_names: Sequence[str],
) -> dict[str, Any]:
    """Measured coverage and mean size of prediction sets, overall and by true class, and how many have each size."""
    threshold = conformal_threshold(*fitted_on, COVERAGE)
    sets = prediction_sets(probabilities, threshold)
    covered, sizes = sets[np.arange(len(labels)), labels], sets.sum(axis=1)

    def measured(rows: np.ndarray) -> dict[str, Any]:
        return {
            'examples': int(rows.sum()),
            'coverage': float(covered[rows].mean()) if rows.any() else None,
            'mean_size': float(sizes[rows].mean()) if rows.any() else None,
        }

    return {
        'promised_coverage': COVERAGE,
        'threshold': threshold,
        **measured(np.full(len(labels), True)),
        'sets_by_size': np.bincount(sizes, minlength=len(class_names) + 1).tolist(),
        'per_class': {name: measured(labels == index) for index, name in enumerate(class_names)},
    }


def finding_one_class(
    scores: np.ndarray, positives: np.ndarray, fitted_on: tuple[np.ndarray, np.ndarray] | None
) -> dict[str, Any]:
    """How well one class is told from the rest.

    Args:
      scores: float [n], the probability of the class.
      positives: bool [n], whether the example is of the class; both kinds occur, here and in `fitted_on`.
      fitted_on: the same of the validation split, for decision thresholds; None: no thresholds.

    Returns:
      sensitivity_at_specificity, read off the ROC curve of these very examples; and thresholds: for each wanted
      sensitivity the highest threshold that reaches it on validation, and what it does here.
    """
    thresholds = []
    if fitted_on is not None:
        thresholds = [_decision(scores, positives, fitted_on, wanted) for wanted in SENSITIVITIES]
    read_off = {f'{value:g}': sensitivity_at_specificity(scores, positives, value) for value in SPECIFICITIES}
    return {'positives': int(positives.sum()), 'sensitivity_at_specificity': read_off, 'thresholds': thresholds}


def _decision(
    scores: np.ndarray, positives: np.ndarray, fitted_on: tuple[np.ndarray, np.ndarray], wanted: float
) -> dict[str, Any]:
    threshold = threshold_for_sensitivity(*fitted_on, wanted)
    called = scores >= threshold
    found, false_alarms = int(called[positives].sum()), int(called[~positives].sum())
    return {
        'wanted_sensitivity': wanted,
        'threshold': threshold,
        'sensitivity': found / int(positives.sum()),
        'specificity': 1.0 - false_alarms / int((~positives).sum()),
        'found': found,
        'missed': int(positives.sum()) - found,
        'false_alarms': false_alarms,
    }


def subgroups(
    probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray, partitions: Mapping[str, pd.Series]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Accuracy and balanced accuracy of every subgroup of every partition of the examples.

    Args:
      probabilities: float [n, classes].
      labels: int [n].
      groups: [n], equal for examples that belong together; intervals resample them whole.
      partitions: by title, the subgroup of each example [n]; NaN counts as 'unknown'.

    Returns:
      By title and subgroup: examples, accuracy, balanced_accuracy (over the classes that occur in it), its
      interval_95 (None: none), and `few`, true where there are fewer than 30 groups of examples; such a subgroup
      has no interval.
    """
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for title, partition in partitions.items():
        categories = pd.Categorical(partition).categories  # in the order of a categorical, else sorted
        rows_by_name = {str(name): (partition == name).to_numpy() for name in categories}
        rows_by_name['unknown'] = partition.isna().to_numpy()
        result[title] = {
            name: _subgroup(probabilities[rows], labels[rows], groups[rows])
            for name, rows in rows_by_name.items()
            if rows.any()
        }
    return result


def _subgroup(probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    values, few = headline_metrics(probabilities, labels), len(np.unique(groups)) < FEW
    return {
        'examples': len(labels),
        'accuracy': values['accuracy'],
        'balanced_accuracy': values['balanced_accuracy'],
        'interval_95': None if few else bootstrap_intervals(probabilities, labels, groups).get('balanced_accuracy'),
        'few': few,
    }
