"""Calibration against brute force, closed forms and simulations whose truth is known."""

import numpy as np
import pytest
from scipy import special
from sklearn import metrics as sk

from common.errors import DataError
from common.evaluation.calibration import (
    apply_temperature,
    conformal_threshold,
    expected_calibration_error,
    fit_temperature,
    prediction_sets,
    reliability_curve,
    sensitivity_at_specificity,
    threshold_for_sensitivity,
)


def simulate(n, temperature=1.0, seed=0, num_classes=4):
    """Logits of which softmax(logits / temperature) is exactly the distribution of the labels."""
    rng = np.random.default_rng(seed)
    true_logits = 1.5 * rng.normal(size=(n, num_classes))
    labels = (true_logits + rng.gumbel(size=(n, num_classes))).argmax(axis=1)
    return temperature * true_logits, labels


def test_calibration_error_agrees_with_brute_force():
    logits, labels = simulate(500, temperature=2.0)
    probabilities = special.softmax(logits, axis=1)
    error = 0.0
    for k in range(15):
        rows = [i for i in range(500) if k / 15 < probabilities[i].max() <= (k + 1) / 15]
        if rows:
            accuracy = np.mean([probabilities[i].argmax() == labels[i] for i in rows])
            confidence = np.mean([probabilities[i].max() for i in rows])
            error += len(rows) / 500 * abs(accuracy - confidence)
    assert expected_calibration_error(probabilities, labels) == pytest.approx(error, rel=1e-12)


def test_reliability_curve_of_four_examples_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.5, 0.5]])
    curve = reliability_curve(probabilities, np.array([0, 1, 1, 0]), num_bins=2)
    # A confidence of exactly 0.5 belongs to the lower bin.
    assert curve.lower.tolist() == [0, 0.5]
    assert curve.upper.tolist() == [0.5, 1]
    assert curve.counts.tolist() == [1, 3]
    np.testing.assert_allclose(curve.confidence, [0.5, 0.8])
    np.testing.assert_allclose(curve.accuracy, [1, 2 / 3])


def test_empty_bins_are_left_out_and_certainty_is_in_the_last():
    curve = reliability_curve(np.eye(2)[[0, 1]], np.array([0, 0]), num_bins=10)
    assert (curve.lower.tolist(), curve.upper.tolist(), curve.accuracy.tolist()) == ([0.9], [1.0], [0.5])


@pytest.mark.parametrize('temperature', [0.3, 1.0, 2.5])
def test_a_known_temperature_is_recovered(temperature):
    logits, labels = simulate(20_000, temperature)
    fitted = fit_temperature(logits.astype(np.float32), labels)
    assert fitted == pytest.approx(temperature, rel=0.03)
    before, after = apply_temperature(logits, 1.0), apply_temperature(logits, fitted)
    assert expected_calibration_error(after, labels) < 0.015
    assert sk.log_loss(labels, after) <= sk.log_loss(labels, before)


def test_the_temperature_is_where_the_slope_of_the_log_loss_is_zero():
    # Two classes, logit margin 3, right 80% of the time: sigmoid(3 / T) = 0.8, so T = 3 / log(4).
    logits = np.tile([3.0, 0.0], (10, 1))
    labels = np.array([0] * 8 + [1] * 2)
    assert fit_temperature(logits, labels) == pytest.approx(3 / np.log(4), rel=1e-5)


def test_a_temperature_without_optimum_ends_at_the_lowest():
    assert fit_temperature(np.eye(3), np.arange(3)) < 0.05


def test_temperature_of_diverged_or_missing_logits_is_refused():
    for logits in (np.array([[np.nan, 1.0]]), np.zeros((0, 2))):
        with pytest.raises(DataError, match='must be finite'):
            fit_temperature(logits, np.zeros(len(logits), int))


def test_temperature_is_softmax_and_keeps_the_predictions():
    logits, _ = simulate(50)
    np.testing.assert_allclose(apply_temperature(logits, 2.0), special.softmax(logits / 2, axis=1))
    assert (apply_temperature(logits, 7.0).argmax(1) == logits.argmax(1)).all()


@pytest.mark.parametrize('coverage', [0.8, 0.95])
def test_prediction_sets_cover_the_truth_even_of_a_miscalibrated_model(coverage):
    hits = []
    for seed in range(200):
        logits, labels = simulate(300, temperature=3.0, seed=seed)
        probabilities = special.softmax(logits, axis=1)
        threshold = conformal_threshold(probabilities[:99], labels[:99], coverage)
        sets = prediction_sets(probabilities[99:], threshold)
        hits.append(sets[np.arange(201), labels[99:]].mean())
    # With 99 examples (n + 1) * coverage is whole: expected coverage is exact for scores without ties.
    assert np.mean(hits) == pytest.approx(coverage, abs=0.01)


def test_conformal_quantile_is_the_finite_sample_one():
    # 9 true-class probabilities .1 .. .9; rank ceil(10 * 0.8) = 8 from the top.
    chosen = np.arange(1, 10) / 10
    probabilities = np.stack([chosen, 1 - chosen], axis=1)
    labels = np.zeros(9, int)
    assert conformal_threshold(probabilities, labels, 0.8) == 0.2
    assert prediction_sets(np.array([[0.2, 0.8], [0.1, 0.9]]), 0.2).tolist() == [[True, True], [False, True]]
    # Nine examples cannot promise 95%: everything must be in the set.
    assert prediction_sets(probabilities, conformal_threshold(probabilities, labels, 0.95)).all()


def ranked(seed):
    """Scores with many ties, and the points of the ROC curve."""
    rng = np.random.default_rng(seed)
    positives = rng.random(80) < 0.3
    scores = np.round(rng.normal(size=80) + positives, 1)
    return scores, positives, sk.roc_curve(positives, scores, drop_intermediate=False)


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('wanted', [0.01, 0.5, 0.9, 1.0])
def test_thresholds_agree_with_the_roc_curve(seed, wanted):
    scores, positives, (false_positives, true_positives, thresholds) = ranked(seed)
    threshold = threshold_for_sensitivity(scores, positives, wanted)
    assert threshold == max(thresholds[true_positives >= wanted])
    expected = max(true_positives[1 - false_positives >= wanted - 1e-12])
    assert sensitivity_at_specificity(scores, positives, wanted) == pytest.approx(expected)


def test_whole_counts_are_not_missed_by_rounding():
    # 0.55 * 100 is 55.00000000000001 in floating point; the 55th positive is enough.
    scores, positives = np.arange(200) / 200, np.arange(200) >= 100
    assert threshold_for_sensitivity(scores, positives, 0.55) == scores[145]


def test_one_sided_problems_are_refused():
    for function in (threshold_for_sensitivity, sensitivity_at_specificity):
        for positives in (np.zeros(3, bool), np.ones(3, bool)):
            with pytest.raises(DataError, match='of 3 examples are positive'):
                function(np.arange(3.0), positives, 0.9)
