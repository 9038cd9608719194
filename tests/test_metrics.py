"""Metrics against scikit-learn, and bootstrap intervals against resampling by hand and known truth."""

import json

import numpy as np
import pytest
from scipy import special
from sklearn import metrics as sk

from common.errors import DataError
from common.evaluation.metrics import bootstrap_intervals, classification_metrics, headline_metrics
from common.evaluation.paired import paired_differences

NAMES = ['akiec', 'bcc', 'bkl', 'df', 'mel']
INTERVALS = ['accuracy', 'balanced_accuracy', 'macro_f1', 'macro_roc_auc', 'log_loss']  # not of the calibration error


def simulate(n, seed=0, num_classes=5, signal=1.5):
    rng = np.random.default_rng(seed)
    labels = rng.choice(num_classes, size=n, p=special.softmax(-0.7 * np.arange(num_classes)))
    logits = rng.normal(size=(n, num_classes)) + signal * np.eye(num_classes)[labels]
    return special.softmax(logits, axis=1), labels


def simulate_ties(n):
    """Ties, in the argmax and between scores, are where definitions come apart."""
    probabilities, labels = simulate(n)
    probabilities = np.round(probabilities, 1) + 0.01
    return probabilities / probabilities.sum(axis=1, keepdims=True), labels


def test_every_metric_agrees_with_scikit_learn():
    probabilities, labels = simulate_ties(400)
    predicted = probabilities.argmax(axis=1)
    report = classification_metrics(probabilities, labels, NAMES)

    expected = {
        'accuracy': sk.accuracy_score(labels, predicted),
        'balanced_accuracy': sk.balanced_accuracy_score(labels, predicted),
        'macro_precision': sk.precision_score(labels, predicted, average='macro'),
        'macro_recall': sk.recall_score(labels, predicted, average='macro'),
        'macro_f1': sk.f1_score(labels, predicted, average='macro'),
        'macro_roc_auc': sk.roc_auc_score(labels, probabilities, multi_class='ovr'),
        'log_loss': sk.log_loss(labels, probabilities),
        'brier': sk.brier_score_loss(labels, probabilities, scale_by_half=False),
    }
    assert {name: report[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    assert report['confusion_matrix'] == sk.confusion_matrix(labels, predicted).tolist()
    normalized = sk.confusion_matrix(labels, predicted, normalize='true')
    np.testing.assert_allclose(report['confusion_matrix_normalized'], normalized)
    by_name = sk.classification_report(labels, predicted, target_names=NAMES, output_dict=True)
    for index, name in enumerate(NAMES):
        row = report['per_class'][name]
        assert (row['precision'], row['recall'], row['f1'], row['support']) == pytest.approx(
            tuple(by_name[name][key] for key in ('precision', 'recall', 'f1-score', 'support'))
        )
        assert row['roc_auc'] == pytest.approx(sk.roc_auc_score(labels == index, probabilities[:, index]))


def test_headline_metrics_are_those_of_the_full_report():
    probabilities, labels = simulate(300)
    report = classification_metrics(probabilities, labels, NAMES)
    headline = headline_metrics(probabilities, labels)
    assert list(headline) == ['accuracy', 'balanced_accuracy', 'macro_f1', 'log_loss']
    assert headline == {name: report[name] for name in headline}


def test_absent_and_never_predicted_classes_are_none_and_the_report_is_json():
    # Class 1 is present but never predicted, class 2 predicted but absent, class 3 neither.
    probabilities = np.eye(5)[[0, 0, 2, 4, 4]] * 0.8 + 0.04
    report = classification_metrics(probabilities, np.array([0, 1, 0, 4, 4]), NAMES)
    assert report['balanced_accuracy'] == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert report['macro_f1'] == pytest.approx((1 / 2 + 0 + 0 + 1) / 4)
    rows = [report['per_class'][name] for name in NAMES]
    assert [row['precision'] for row in rows] == [0.5, None, 0.0, None, 1.0]
    assert [row['recall'] for row in rows] == [0.5, 0.0, None, None, 1.0]
    assert [row['f1'] for row in rows] == [0.5, 0.0, 0.0, None, 1.0]
    assert [row['roc_auc'] is None for row in rows] == [False, False, True, True, False]
    json.dumps(report, allow_nan=False)


def test_a_single_class_has_no_roc_auc():
    probabilities, labels = simulate(20)
    assert classification_metrics(probabilities, np.zeros(20, int), NAMES)['macro_roc_auc'] is None
    assert set(bootstrap_intervals(probabilities, np.zeros(20, int))) == set(INTERVALS) - {'macro_roc_auc'}
    assert set(bootstrap_intervals(probabilities, labels)) == set(INTERVALS)


@pytest.mark.parametrize('right', [True, False])
def test_what_no_resample_changes_has_no_interval(right):
    labels = np.arange(40) % 2
    probabilities = np.where(np.eye(2)[labels if right else 1 - labels] == 1, 0.7, 0.3)
    probabilities[0] = [0.6, 0.4] if probabilities[0, 0] > 0.5 else [0.4, 0.6]
    assert set(bootstrap_intervals(probabilities, labels)) == {'log_loss'}
    probabilities, labels = simulate(40)
    assert bootstrap_intervals(probabilities, labels, groups=np.zeros(40, int)) == {}


def test_certain_mistakes_cost_a_finite_log_loss():
    probabilities, labels = np.eye(2)[[0, 0]], np.array([0, 1])
    assert headline_metrics(probabilities, labels)['log_loss'] == pytest.approx(sk.log_loss(labels, probabilities))


def test_float32_softmax_is_accepted_and_equal_input_gives_equal_bytes():
    probabilities, labels = simulate(500)
    probabilities = probabilities.astype(np.float32)
    first, second = (
        json.dumps(
            [
                classification_metrics(probabilities.copy(), labels.astype(np.int32), NAMES),
                bootstrap_intervals(probabilities.copy(), labels, num_resamples=50),
            ]
        )
        for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize(
    ('probabilities', 'labels', 'message'),
    [
        (np.full((3, 2), 0.5), [0, 1, 2], 'Label 2 of example 2'),
        (np.full((3, 2), 0.5), [0, -1, 1], 'Label -1 of example 1'),
        (np.array([[0.5, 0.5], [np.nan, 1.0]]), [0, 1], 'Row 1 is not'),
        (np.array([[1.5, -0.5]]), [0], 'Row 0 is not'),
        (np.array([[2.0, 3.0]]), [0], 'Row 0 is not'),
        (np.full((3, 2), 0.5), [0, 1], r'\(3, 2\) and \(2,\)'),
        (np.zeros((0, 2)), [], 'n > 0'),
    ],
)
def test_bad_input_is_named(probabilities, labels, message):
    for function in (headline_metrics, bootstrap_intervals):
        with pytest.raises(DataError, match=message):
            function(probabilities, np.array(labels))


def test_wrong_numbers_of_names_and_groups_are_named():
    probabilities, labels = simulate(10)
    with pytest.raises(DataError, match='2 class names for 5 classes'):
        classification_metrics(probabilities, labels, ['a', 'b'])
    with pytest.raises(DataError, match='9 groups for 10 examples'):
        bootstrap_intervals(probabilities, labels, groups=np.arange(9))


@pytest.mark.parametrize('grouped', [False, True])
def test_bootstrap_agrees_with_resampling_by_hand(grouped):
    probabilities, labels = simulate_ties(60)
    groups = np.random.default_rng(1).integers(25, size=60) if grouped else np.arange(60)
    intervals = bootstrap_intervals(probabilities, labels, groups if grouped else None, num_resamples=200)

    # The same draws, but every resample is built row by row and judged by the functions for point metrics.
    rng = np.random.default_rng(0)
    values = np.unique(groups)
    samples = []
    for _ in range(200):
        drawn = values[rng.integers(len(values), size=len(values))]
        rows = np.concatenate([np.flatnonzero(groups == group) for group in drawn])
        report = classification_metrics(probabilities[rows], labels[rows], NAMES)
        samples.append([report[name] for name in INTERVALS])
    expected = np.quantile(samples, [0.025, 0.975], axis=0).T
    np.testing.assert_allclose([intervals[name] for name in INTERVALS], expected, rtol=1e-10)


def test_a_difference_that_overlapping_intervals_hide_is_found_on_the_same_examples():
    random = np.random.default_rng(0)
    labels, groups = np.tile([0, 1], 150), np.repeat(np.arange(100), 3)
    right = random.random(300) < 0.8
    worse = right & (random.random(300) < 0.93)
    here, there = (np.eye(2)[np.where(hits, labels, 1 - labels)] * 0.6 + 0.2 for hits in (right, worse))
    alone = [bootstrap_intervals(said, labels, groups)['accuracy'] for said in (here, there)]
    assert alone[1][1] > alone[0][0]
    difference, low, high = paired_differences(here, there, labels, groups)['accuracy']
    assert difference == pytest.approx(right.mean() - worse.mean())

    # The same draws by hand: only images that the two judge differently count.
    drawn = np.random.default_rng(0).integers(100, size=(1000, 100))
    lost = (right & ~worse).reshape(100, 3).mean(1)[drawn].mean(1)
    np.testing.assert_allclose([low, high], np.quantile(lost, [0.025, 0.975]), rtol=1e-9)
    assert low > 0
    same = paired_differences(here, here, labels, groups)
    assert set(same) == set(INTERVALS)
    assert not np.any(list(same.values()))


def test_bootstrap_intervals_hold_the_truth_as_often_as_they_say():
    # Two classes; predictions right with probability 0.8 and 0.6: accuracy 0.74, balanced accuracy 0.7.
    truth = {'accuracy': 0.74, 'balanced_accuracy': 0.7}
    rng = np.random.default_rng(3)
    covered = dict.fromkeys(truth, 0)
    for seed in range(300):
        labels = (rng.random(200) < 0.3).astype(int)
        right = rng.random(200) < np.where(labels == 0, 0.8, 0.6)
        probabilities = np.eye(2)[np.where(right, labels, 1 - labels)] * 0.6 + 0.2
        intervals = bootstrap_intervals(probabilities, labels, num_resamples=300, confidence=0.9, seed=seed)
        for name, value in truth.items():
            low, high = intervals[name]
            covered[name] += low <= value <= high
    # Binomial(300, 0.9) has a standard deviation of 1.7%.
    assert {name: count / 300 for name, count in covered.items()} == pytest.approx(
        {'accuracy': 0.9, 'balanced_accuracy': 0.9}, abs=0.05
    )


def test_repeated_images_of_a_lesion_widen_the_intervals():
    probabilities, labels = simulate(150)
    alone = bootstrap_intervals(probabilities, labels)
    repeated = [np.repeat(rows, 4, axis=0) for rows in (probabilities, labels)]
    naive = bootstrap_intervals(*repeated)
    grouped = bootstrap_intervals(*repeated, groups=np.repeat(np.arange(150), 4))
    for name in INTERVALS:
        # Four copies of each image say nothing new: the naive interval is half as wide as it should be.
        assert np.ptp(grouped[name]) == pytest.approx(np.ptp(alone[name]), rel=1e-6)
        assert np.ptp(grouped[name]) > 1.5 * np.ptp(naive[name])
