"""Two classifiers on the same examples: by how much one is better, with intervals of the difference itself."""

import numpy as np

from common.evaluation.metrics import classification_metrics, percentile_intervals, resampled_metrics


def paired_differences(
    probabilities: np.ndarray, others: np.ndarray, labels: np.ndarray, groups: np.ndarray
) -> dict[str, list[float]]:
    """Returns {metric: [difference, low, high]}: what `probabilities` score less what `others` score, and its interval.

    Both are judged on the same resamples of whole groups, so that what makes examples hard for both drops out (the
    paired bootstrap: Efron & Tibshirani 1993; Koehn 2004). The intervals of the two alone may overlap although one is
    better. As those, they speak of other examples, not of training again.

    Args:
      probabilities, others: float [n, classes], rows sum to one.
      labels: int [n].
      groups: [n], equal for examples that belong together.

    Returns:
      The metrics of `bootstrap_intervals`, with 95% intervals.
    """
    here, there = (resampled_metrics(said, labels, groups) for said in (probabilities, others))
    intervals = percentile_intervals({name: here[name] - there[name] for name in here})
    names = [str(number) for number in range(probabilities.shape[1])]
    first, second = (classification_metrics(said, labels, names) for said in (probabilities, others))
    return {name: [first[name] - second[name], *ends] for name, ends in intervals.items()}
