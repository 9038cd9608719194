"""Whether probabilities mean what they say, how to mend them, and how to turn them into decisions."""

import math
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from common.errors import DataError

# Far outside what networks need (1 to 3); a fit that ends here has no finite optimum.
_TEMPERATURES = (0.01, 100.0)
# (n + 1) * coverage and the like should land on an integer when their decimal values do.
_ROUNDING = 1e-9


class ReliabilityCurve(NamedTuple):
    """The occupied bins of confidence, in rising order; every field is [occupied bins]."""

    lower: np.ndarray  # float64, bin edges: lower < confidence <= upper
    upper: np.ndarray  # float64
    counts: np.ndarray  # int64, examples in the bin
    confidence: np.ndarray  # float64, mean probability of the predicted class
    accuracy: np.ndarray  # float64, share of the bin predicted correctly

    @property
    def error(self) -> float:
        """The mean gap between confidence and accuracy over examples, in [0, 1]."""
        return float(np.average(np.abs(self.accuracy - self.confidence), weights=self.counts))


def reliability_curve(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = 15) -> ReliabilityCurve:
    """Compares the confidence of the predicted class with how often it is right (DeGroot & Fienberg 1983).

    Args:
      probabilities: float [n, classes], rows sum to one.
      labels: int [n].
      num_bins: equal-width bins of confidence over [0, 1].
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    occupied = np.flatnonzero(counts)
    counts = counts[occupied]
    return ReliabilityCurve(
        lower=occupied / num_bins,
        upper=(occupied + 1) / num_bins,
        counts=counts,
        confidence=np.bincount(bins, confidence, num_bins)[occupied] / counts,
        accuracy=np.bincount(bins, correct, num_bins)[occupied] / counts,
    )


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the error of the `reliability_curve` (Naeini et al. 2015).

    Biased upwards in small samples: a perfectly calibrated model has an error above zero, because the
    accuracy of a bin is itself noisy.
    """
    return reliability_curve(probabilities, labels).error


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Fits the one temperature that minimises the log loss of `logits / temperature` (Guo et al. 2017).

    Fit on validation data, never on test data. The loss is convex in 1 / temperature, so the minimum found
    is the only one; a model that is right about every example has none, and gets a temperature, 0.01 or
    more, at which the loss is as good as zero.

    Args:
      logits: float [n, classes].
      labels: int [n].

    Raises:
      DataError: there are no examples, or a logit is NaN or infinite.
    """
    if not len(labels) or not np.isfinite(logits).all():
        raise DataError('Cannot fit a temperature: logits must be finite, with at least one example.')
    logits = logits.astype(np.float64)
    true_logits = logits[np.arange(len(labels)), labels]

    def log_loss(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        return float(np.mean(special.logsumexp(scale * logits, axis=1) - scale * true_logits))

    found = optimize.minimize_scalar(log_loss, bounds=np.log(_TEMPERATURES), method='bounded', options={'xatol': 1e-7})
    return math.exp(found.x)


def apply_temperature(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Returns softmax(logits / temperature), float64 [n, classes]; the predicted classes do not change."""
    return special.softmax(logits.astype(np.float64) / temperature, axis=1)


def conformal_threshold(probabilities: np.ndarray, labels: np.ndarray, coverage: float) -> float:
    """Returns the probability from which a class belongs in the prediction set (split conformal, LAC).

    If later examples are exchangeable with these, `prediction_sets` holds the true class with probability
    at least `coverage`, whatever the model (Sadinle et al. 2019; Angelopoulos & Bates 2023, section 1). The
    quantile is the finite-sample one, ceil((n + 1) * coverage) of n; where that passes n there are too few
    examples to promise anything, and the threshold is 0: every class is in every set.

    Args:
      probabilities: float [n, classes] of validation examples the model was not trained on.
      labels: int [n].
      coverage: in (0, 1).
    """
    true_class = probabilities[np.arange(len(labels)), labels]
    rank = math.ceil((len(labels) + 1) * coverage - _ROUNDING)
    return float(np.sort(true_class)[::-1][rank - 1]) if rank <= len(labels) else 0.0


def prediction_sets(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """Returns bool [n, classes], true for the classes in the set; a set may be empty or hold every class."""
    return probabilities >= threshold


def threshold_for_sensitivity(scores: np.ndarray, positives: np.ndarray, sensitivity: float) -> float:
    """Returns the highest threshold at which `scores >= threshold` finds that share of positives, or more.

    Args:
      scores: float [n], higher for positives.
      positives: bool [n].
      sensitivity: wanted share, in (0, 1].

    Raises:
      DataError: there are no positives or no negatives.
    """
    found = np.sort(scores[_both_sides(positives)])[::-1]
    return float(found[math.ceil(sensitivity * len(found) - _ROUNDING) - 1])


def sensitivity_at_specificity(scores: np.ndarray, positives: np.ndarray, specificity: float) -> float:
    """Returns the largest share of positives that a threshold of at least that specificity can find.

    Args:
      scores: float [n], higher for positives.
      positives: bool [n].
      specificity: wanted share of negatives below the threshold, in (0, 1].

    Raises:
      DataError: there are no positives or no negatives.
    """
    positives = _both_sides(positives)
    spared = np.sort(scores[~positives])
    limit = spared[math.ceil(specificity * len(spared) - _ROUNDING) - 1]
    return float(np.mean(scores[positives] > limit))


def _both_sides(positives: np.ndarray) -> np.ndarray:
    positives = np.asarray(positives, dtype=bool)
    if positives.all() or not positives.any():
        raise DataError(
            f'{positives.sum()} of {len(positives)} examples are positive; both kinds are needed. '
            'Check the chosen class and split.'
        )
    return positives
