"""The losses of classifiers against their closed forms, class weights, and normalisation on training data only."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss

from common.classification import pixel_statistics
from common.data.dataset import Dataset, Split
from common.errors import DataError, UsageError
from common.losses import class_weights, classification_loss, logit_adjustment, training_loss
from lesion.configs import demo
from lesion.task import Lesion

COUNTS = [60, 25, 10, 5]
RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(0, 3, (9, 4)).astype(np.float32)
LABELS = (np.arange(9) % 4).astype(np.int32)
INFO = {'class_names': list('abcd'), 'class_counts': COUNTS, 'pixel_mean': [10.0], 'pixel_deviation': [4.0]}


def task(**loss) -> Lesion:
    config = demo.get_config()
    config.loss.update(loss)
    config.augment = {}
    return Lesion(config, INFO)


def losses(train: bool = True, **loss) -> np.ndarray:
    one_hot = jax.nn.one_hot(LABELS, 4)
    return np.asarray(task(**loss).loss(jnp.asarray(LOGITS), {'target': one_hot, 'label': LABELS}, train))


def of_label(values: np.ndarray) -> np.ndarray:
    return values[np.arange(9), LABELS]


def test_cross_entropy_is_one_value_an_example():
    assert losses().shape == (9,)
    assert losses().dtype == np.float32
    expected = log_loss(LABELS, softmax(LOGITS.astype(np.float64), -1), labels=range(4))
    assert losses().mean() == pytest.approx(expected, rel=1e-6)


def test_focal_loss_is_that_of_its_paper():
    p = of_label(softmax(LOGITS.astype(np.float64), -1))
    for gamma in (0.5, 2.0):
        np.testing.assert_allclose(losses(focal_gamma=gamma), -((1 - p) ** gamma) * np.log(p), rtol=1e-5)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('gamma', [0.1, 0.5, 1.0, 1.5, 2.0])
def test_focal_loss_has_a_gradient_where_the_network_is_certain(gamma, smoothing):
    loss = classification_loss()
    loss.focal_gamma, loss.label_smoothing = gamma, smoothing
    losses = training_loss(loss, [1, 1, 1])
    logits = jnp.array([[18.0, 0, 0], [30.0, 0, 0], [200.0, 0, 0], [0, 30.0, 0]])
    target = jax.nn.one_hot(jnp.zeros(4, int), 3)
    gradient = np.asarray(jax.jit(jax.grad(lambda x: losses(x, target).sum()))(logits))
    assert np.isfinite(gradient).all()
    if not smoothing:
        np.testing.assert_allclose(gradient, [[0, 0, 0]] * 3 + [[-1, 1, 0]], atol=1e-6)


def test_label_smoothing_mixes_in_the_uniform_distribution():
    log_p = log_softmax(LOGITS.astype(np.float64), -1)
    expected = -(0.9 * of_label(log_p) + 0.1 * log_p.mean(-1))
    np.testing.assert_allclose(losses(label_smoothing=0.1), expected, rtol=1e-5)


def test_class_weights_scale_examples_of_their_class():
    weights = np.array([25 / 60, 1.0, 2.5, 5.0])
    np.testing.assert_allclose(losses(class_weights='inverse'), weights[LABELS] * losses(), rtol=1e-6)
    smoothed = weights[LABELS] * losses(label_smoothing=0.1)
    np.testing.assert_allclose(losses(class_weights='inverse', label_smoothing=0.1), smoothed, rtol=1e-6)


def test_logit_adjustment_takes_the_frequency_of_classes_out_of_the_logits():
    adjusted = LOGITS.astype(np.float64) + 0.5 * np.log(np.array(COUNTS) / 100)
    np.testing.assert_allclose(losses(logit_adjustment=0.5), -of_label(log_softmax(adjusted, -1)), rtol=1e-5)
    loss = classification_loss()
    np.testing.assert_array_equal(logit_adjustment(loss, [3, 0]), [0, 0])
    loss.logit_adjustment = 1.0
    with pytest.raises(DataError, match=r'class number 1 has no training images: set config\.loss\.logit_adjustment'):
        logit_adjustment(loss, [3, 0])
    loss.label_smoothing = 0.1
    with pytest.raises(UsageError, match='contradict each other'):
        logit_adjustment(loss, [3, 1])


def test_evaluation_is_plain_cross_entropy_whatever_training_minimises():
    everything = {'class_weights': 'inverse', 'focal_gamma': 2.0, 'label_smoothing': 0.2}
    np.testing.assert_allclose(losses(train=False, **everything), losses(), rtol=1e-6)
    np.testing.assert_allclose(losses(train=False, logit_adjustment=1.0), losses(), rtol=1e-6)


@pytest.mark.parametrize('kind', ['none', 'inverse', 'effective'])
def test_class_weights_have_mean_one_over_the_training_examples(kind):
    loss = classification_loss()
    loss.class_weights = kind
    weights = class_weights(loss, COUNTS)
    assert weights.dtype == np.float32
    assert np.average(weights, weights=COUNTS) == pytest.approx(1, rel=1e-6)


def test_training_accuracy_is_the_share_of_right_answers():
    found = task().step_metrics(jnp.asarray(LOGITS), {'target': jax.nn.one_hot(LABELS, 4)})
    np.testing.assert_array_equal(found['accuracy'], LOGITS.argmax(-1) == LABELS)


def test_pixels_are_normalised_as_pretrained_weights_want_it(monkeypatch):
    images = RANDOM.integers(0, 256, (4, 2, 2, 3), dtype=np.uint8)
    columns = {'image': images, 'label': np.arange(4, dtype=np.int32)}
    split = Split(name='train', columns=columns, records=pd.DataFrame(index=range(4)))
    prepared = Dataset(splits={'train': split}, info={'class_names': list('abcd')})
    monkeypatch.setattr('common.classification.load_images', lambda dataset, data_dir: prepared)
    config = demo.get_config('efficientnet_lite0')
    task = Lesion(config, Lesion.load(config, None).info)
    inputs = task.preprocess({'image': images}, {}, None)['inputs']
    np.testing.assert_allclose(inputs, (images.astype(np.float32) - 127) / 128, rtol=1e-6)
    config.dataset.normalisation = ((1, 2, 3), (4, 5, 6))
    info = Lesion.load(config, None).info
    assert (info['pixel_mean'], info['pixel_deviation']) == ([1, 2, 3], [4, 5, 6])
    config.dataset.normalisation = ()
    assert Lesion.load(config, None).info['pixel_mean'] == pytest.approx(images.mean((0, 1, 2)))


def test_class_weights_follow_frequency_and_effective_number():
    loss = classification_loss()
    loss.class_weights = 'inverse'
    np.testing.assert_allclose(class_weights(loss, COUNTS) * COUNTS, 25, rtol=1e-6)
    loss.class_weights, loss.beta = 'effective', 0.9
    # An example counts for beta times the one before it: 1 + beta + beta^2 + ... (Cui et al. 2019).
    effective = np.array([sum(0.9**i for i in range(n)) for n in COUNTS])
    weights = class_weights(loss, COUNTS)
    np.testing.assert_allclose(weights * effective, (weights * effective)[0], rtol=1e-6)


def test_a_class_without_examples_cannot_be_weighed():
    loss = classification_loss()
    np.testing.assert_array_equal(class_weights(loss, [3, 0]), [1, 1])
    loss.class_weights = 'inverse'
    with pytest.raises(DataError, match=r'class number 1 has no training images: set config\.loss\.class_weights'):
        class_weights(loss, [3, 0])
    loss.class_weights = 'sqrt'
    with pytest.raises(UsageError, match=r"class_weights is 'sqrt'; it may be none, inverse, effective"):
        class_weights(loss, [3, 1])


def test_pixels_are_standardised_by_channel():
    images = RANDOM.integers(0, 256, (50, 6, 5, 3), dtype=np.uint8)
    mean, deviation = pixel_statistics(images)
    np.testing.assert_allclose(mean, images.astype(np.float64).mean((0, 1, 2)))
    np.testing.assert_allclose(deviation, images.astype(np.float64).std((0, 1, 2)))
    assert pixel_statistics(np.zeros((2, 3, 3, 1), np.uint8)) == ([0.0], [1.0])


def test_pixels_of_many_images_are_those_of_an_even_sample(monkeypatch):
    monkeypatch.setattr('common.classification.SAMPLED_FOR_STATISTICS', 20)
    images = np.arange(200, dtype=np.uint8).reshape(-1, 1, 1, 1)  # sorted, as images in folders of classes are
    (mean,), (deviation,) = pixel_statistics(images)
    assert mean == pytest.approx(images.mean(), rel=0.06)
    assert deviation == pytest.approx(images.std(), rel=0.06)


def test_statistics_and_counts_are_of_training_alone(monkeypatch):
    splits = {}
    for name, level, labels in (('train', 10, [0, 0, 1]), ('validation', 90, [0, 1, 1]), ('test', 200, [1, 1, 1])):
        columns = {'image': np.full((3, 2, 2, 3), level, np.uint8), 'label': np.array(labels, np.int32)}
        splits[name] = Split(name=name, columns=columns, records=pd.DataFrame(index=range(3)))
    prepared = Dataset(splits=splits, info={'class_names': ['a', 'b']})
    monkeypatch.setattr('common.classification.load_images', lambda dataset, data_dir: prepared)
    info = Lesion.load(demo.get_config(), None).info
    assert (info['class_counts'], info['pixel_mean'], info['pixel_deviation']) == ([2, 1], [10.0] * 3, [1.0] * 3)


def test_of_each_metric_the_better_is_what_it_is_said_to_be():
    split = Split(name='test', columns={'label': LABELS}, records=pd.DataFrame(index=range(9)))
    good, bad = (task().metrics({'logits': sign * 5 * np.eye(4)[LABELS]}, split) for sign in (1, -1))
    assert {name: 'max' if good[name] > bad[name] else 'min' for name in Lesion.better} == Lesion.better


def test_preprocessing_standardises_and_gives_targets_only_where_there_are_labels():
    image = RANDOM.integers(0, 256, (9, 4, 4, 1), dtype=np.uint8)
    batch = task().preprocess({'image': jnp.asarray(image), 'label': LABELS}, {}, None)
    np.testing.assert_allclose(batch['inputs'], (image.astype(np.float32) - 10) / 4, rtol=1e-6)
    np.testing.assert_array_equal(batch['target'], np.eye(4)[LABELS])
    assert 'target' not in task().preprocess({'image': jnp.asarray(image)}, {}, None)


def test_prediction_files_have_the_documented_columns(tmp_path):
    records = pd.DataFrame({'name': [f'ISIC_{i}' for i in range(9)]})
    labelled = Split(name='test', columns={'label': LABELS}, records=records)
    unlabelled = Split(name='inputs', columns={}, records=records)
    for split in (labelled, unlabelled):
        task().write_predictions({'logits': LOGITS}, split, tmp_path / 'predictions.csv')
        table = pd.read_csv(tmp_path / 'predictions.csv')
        assert list(table) == ['image', 'label', 'predicted', *'abcd']
        np.testing.assert_allclose(table[list('abcd')], softmax(LOGITS.astype(np.float64), -1), rtol=1e-8)
        assert table.predicted.tolist() == ['abcd'[i] for i in LOGITS.argmax(-1)]
        assert table.label.isna().all() if split is unlabelled else table.label.tolist() == ['abcd'[i] for i in LABELS]
    assert not (tmp_path / 'submission.csv').exists()  # these are not the challenge's classes


def test_classes_that_are_called_like_columns_of_prediction_files_have_columns_of_their_own(tmp_path):
    records = pd.DataFrame({'name': [f'ISIC_{i}' for i in range(9)]})
    split = Split(name='test', columns={'label': LABELS}, records=records)
    named = Lesion(demo.get_config(), INFO | {'class_names': ['image', 'label', 'predicted', 'other']})
    named.write_predictions({'logits': LOGITS}, split, tmp_path / 'predictions.csv')
    table = pd.read_csv(tmp_path / 'predictions.csv')
    own = [*(f'probability of {name}' for name in ('image', 'label', 'predicted')), 'other']
    assert list(table) == ['image', 'label', 'predicted', *own]
    assert table.image.tolist() == records.name.tolist()
    assert table.label.tolist() == [named.class_names[i] for i in LABELS]
    np.testing.assert_allclose(table[own], softmax(LOGITS.astype(np.float64), -1), rtol=1e-8)


def test_submission_has_exactly_the_columns_of_the_challenge(tmp_path):
    info = INFO | {'class_names': ['akiec', 'bcc', 'bkl', 'df', 'mel', 'nv', 'vasc'], 'class_counts': [1] * 7}
    logits = RANDOM.normal(size=(2, 7))
    split = Split(name='inputs', columns={}, records=pd.DataFrame({'name': ['ISIC_1', 'ISIC_2']}))
    Lesion(demo.get_config(), info).write_predictions({'logits': logits}, split, tmp_path / 'predictions.csv')
    table = pd.read_csv(tmp_path / 'submission.csv')
    assert list(table) == ['image', 'MEL', 'NV', 'BCC', 'AKIEC', 'BKL', 'DF', 'VASC']
    np.testing.assert_allclose(table['NV'], softmax(logits, -1)[:, 5], atol=1e-6)
    np.testing.assert_allclose(table['AKIEC'], softmax(logits, -1)[:, 0], atol=1e-6)


def test_submission_spares_predictions_of_its_own_name(tmp_path):
    info = INFO | {'class_names': ['akiec', 'bcc', 'bkl', 'df', 'mel', 'nv', 'vasc'], 'class_counts': [1] * 7}
    split = Split(name='inputs', columns={}, records=pd.DataFrame({'name': ['ISIC_1']}))
    Lesion(demo.get_config(), info).write_predictions({'logits': np.zeros((1, 7))}, split, tmp_path / 'submission.csv')
    assert list(pd.read_csv(tmp_path / 'submission.csv'))[:3] == ['image', 'label', 'predicted']
    assert list(pd.read_csv(tmp_path / 'challenge.csv'))[:3] == ['image', 'MEL', 'NV']


def test_submission_for_2019_says_that_nothing_is_unknown(tmp_path):
    names = ['MEL', 'NV', 'BCC', 'AK', 'BKL', 'DF', 'VASC', 'SCC']
    logits = RANDOM.normal(size=(2, 8))
    split = Split(name='inputs', columns={}, records=pd.DataFrame({'name': ['ISIC_1', 'ISIC_2']}))
    task = Lesion(demo.get_config(), INFO | {'class_names': names, 'class_counts': [1] * 8})
    task.write_predictions({'logits': logits}, split, tmp_path / 'predictions.csv')
    table = pd.read_csv(tmp_path / 'submission.csv')
    assert list(table) == ['image', *names, 'UNK']
    np.testing.assert_allclose(table[names], softmax(logits, -1), atol=1e-6)
    assert table['UNK'].tolist() == [0.0, 0.0]
