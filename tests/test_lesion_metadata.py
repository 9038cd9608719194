"""Age, sex and site beside the image: codes, their vocabulary, the model that takes them in, and the scripts."""

import json
import pathlib
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from common.classification import ClassificationTask
from common.config import load_run
from common.data.dataset import Dataset, Split
from common.errors import DataError, UsageError
from common.nn.cnn import CNN
from lesion import metadata
from lesion.configs import demo
from lesion.models import MODELS
from lesion.task import Lesion
from tests.conftest import SMALL, Trained, run_script

TRAIN = pd.DataFrame(
    {
        'age': [55.0, 20.0, 59.0, np.nan],
        'sex': ['female', 'male', np.nan, 'unknown'],
        'localization': ['back', 'Face', 'back', np.nan],
    }
)
VOCABULARY = {'age': ['20', '50'], 'sex': ['female', 'male'], 'localization': ['back', 'face']}


def test_vocabulary_has_age_bands_and_names_and_nothing_that_is_unknown():
    assert metadata.fit_vocabulary(TRAIN) == VOCABULARY
    assert metadata.fit_vocabulary(TRAIN[['sex']]) == {'age': [], 'sex': ['female', 'male'], 'localization': []}


def test_what_training_has_not_seen_counts_as_unknown():
    other = pd.DataFrame({'age': [29.9, 85.0], 'sex': ['divers', 'FEMALE'], 'localization': [np.nan, 'hand']})
    codes = metadata.encode(pd.concat([TRAIN, other]), VOCABULARY)
    assert codes.dtype == np.int32
    assert codes.tolist() == [[2, 1, 1], [1, 2, 2], [2, 0, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0]]


@pytest.mark.filterwarnings('error')
def test_a_field_that_is_unknown_of_all_is_encoded_in_silence():
    records = pd.DataFrame({'age': [55.0, 20.0], 'sex': [np.nan, np.nan], 'localization': [np.nan, np.nan]})
    assert metadata.encode(records, VOCABULARY).tolist() == [[2, 0, 0], [1, 0, 0]]


def test_the_vocabulary_is_that_of_the_training_rows(monkeypatch, tmp_path):
    test = TRAIN.assign(age=80.0, localization='hand')
    splits = {name: Split(name=name, columns={}, records=rows) for name, rows in {'train': TRAIN, 'test': test}.items()}
    monkeypatch.setattr(ClassificationTask, 'load', lambda config, data_dir: Dataset(splits=splits, info={'a': 1}))
    config = demo.get_config()
    assert Lesion.load(config, tmp_path).info == {'a': 1}
    config.model.metadata = True
    dataset = Lesion.load(config, tmp_path)
    assert dataset.info == {'a': 1, 'metadata': VOCABULARY}
    assert dataset.splits['train'].columns['metadata'].tolist() == [[2, 1, 1], [1, 2, 2], [2, 0, 1], [0, 0, 0]]
    assert dataset.splits['test'].columns['metadata'].tolist() == [[0, 1, 0], [0, 2, 0], [0, 0, 0], [0, 0, 0]]


def test_unknown_values_are_zeros_where_others_have_a_one():
    codes = np.array([[2, 1, 0], [0, 0, 0]])
    expected = [[0, 1, 1, 0, 0, 0], [0] * 6]
    np.testing.assert_array_equal(metadata.one_hot(codes, VOCABULARY), expected)
    partial_vocabulary = {'age': [], 'sex': ['female', 'male'], 'localization': []}
    np.testing.assert_array_equal(metadata.one_hot(np.array([[0, 2, 0]]), partial_vocabulary), [[0, 1]])


def test_a_set_without_metadata_is_refused():
    with pytest.raises(DataError, match=r'config\.model\.metadata is on, but'):
        metadata.fit_vocabulary(pd.DataFrame({'name': ['a'], 'age': [np.nan], 'sex': ['unknown']}))


def fusion(**settings: float):
    return MODELS['cnn'](num_classes=3, metadata=True, widths=(4,), depth=1, dense=(), axis_name=None, **settings)


INPUTS = {
    'image': np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype(np.float32),
    'metadata': np.asarray(metadata.one_hot(np.random.default_rng(1).integers(1, 3, (6, 3)), VOCABULARY)),
}


def test_fusion_joins_image_features_with_an_mlp_of_the_metadata():
    model = fusion()
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), INPUTS)
    params = variables['params']
    image = CNN(num_classes=64, widths=(4,), depth=1, dense=(), axis_name=None)
    alone = jax.jit(partial(image.init, train=False))(jax.random.key(0), INPUTS['image'])['params']
    # The image model's parameters are found where they are without metadata.
    assert jax.tree.map(jnp.shape, {name: params[name] for name in alone}) == jax.tree.map(jnp.shape, alone)
    assert params.keys() - alone.keys() == {'metadata_hidden', 'fusion'}
    own = {'params': {name: params[name] for name in alone}, 'batch_stats': variables['batch_stats']}
    features = np.maximum(image.apply(own, INPUTS['image'], train=False), 0)
    hidden = INPUTS['metadata'] @ params['metadata_hidden']['kernel'] + params['metadata_hidden']['bias']
    joined = np.concatenate([features, np.maximum(hidden, 0)], axis=1)
    expected = joined @ params['fusion']['kernel'] + params['fusion']['bias']
    np.testing.assert_allclose(model.apply(variables, INPUTS, train=False), expected, rtol=1e-4, atol=1e-5)


def test_metadata_dropout_takes_all_of_an_example_or_nothing():
    model = fusion(metadata_dropout=0.5, dropout=0.0)
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), INPUTS)

    def train(inputs, **changes):
        rngs = {'dropout': jax.random.key(3)}
        return model.clone(**changes).apply(variables, inputs, train=True, rngs=rngs, mutable=['batch_stats'])[0]

    found, kept = train(INPUTS), train(INPUTS, metadata_dropout=0.0)
    without = train({**INPUTS, 'metadata': np.zeros_like(INPUTS['metadata'])})
    is_kept = np.isclose(found, kept, atol=1e-5).all(1)
    assert 0 < is_kept.sum() < 6
    np.testing.assert_array_equal(~is_kept, np.isclose(found, without, atol=1e-5).all(1))


def test_metadata_cannot_be_mixed():
    info = {'class_names': list('ab'), 'class_counts': [1, 1], 'metadata': VOCABULARY}
    config = demo.get_config()
    config.model.metadata = True
    config.augment = {'mixup': 0.2}
    with pytest.raises(UsageError, match=r'config\.model\.metadata off'):
        Lesion(config, info)


def test_cnn_lstm_with_metadata_through_the_scripts_and_bare_images_have_none(trained: Trained, tmp_path: pathlib.Path):
    raw = tmp_path / 'raw'
    shutil.copytree(trained.raw_dir / 'HAM10000_images_part_1', raw / 'images')
    table = pd.read_csv(trained.raw_dir / 'HAM10000_metadata.csv')
    known = table.dx.isin(['mel', 'nv', 'df'])  # of the others nothing is known, so that they see what bare images do
    table['age'] = table.age.where(known)
    table['sex'] = np.where(known, np.where(table.dx == 'mel', 'male', 'female'), 'unknown')
    table['localization'] = table.localization.where(known)
    table.to_csv(raw / 'HAM10000_metadata.csv', index=False)
    kept = [flag for flag in SMALL[1:] if 'dense' not in flag and 'duration' not in flag]
    flags = ['--config=lesion/configs/demo.py:cnn_lstm', *kept, '--config.duration=4steps', '--config.model.metadata']
    run, data = tmp_path / 'run', tmp_path / 'data'
    ended = run_script('train', *flags, f'--config.dataset.raw_dir={raw}', f'--data_dir={data}', f'--workdir={run}')
    assert ended.status == 0, ended.stderr
    record = load_run(run)
    assert record.info['metadata'] == {'age': ['50'], 'sex': ['female', 'male'], 'localization': ['back']}
    assert record.columns['metadata'].shape == (1, 3)

    assert run_script('evaluate', f'--workdir={run}', '--views=flip').status == 0
    evaluated = pd.read_csv(run / 'evaluation/test/predictions.csv').set_index('image')
    averaged = pd.read_csv(run / 'evaluation/test/flip/predictions.csv').set_index('image')
    metrics = json.loads((run / 'evaluation/test/metrics.json').read_text())
    for figures, said in ((metrics, evaluated), (metrics['test_time_augmentation'], averaged)):
        recalls = (said.label == said.predicted).groupby(said.label).mean()
        assert figures['balanced_accuracy'] == pytest.approx(recalls.mean())
    assert list(averaged.index) == list(evaluated.index)
    assert 1e-5 < np.abs(averaged.iloc[:, 2:] - evaluated.iloc[:, 2:]).to_numpy().max() < 0.5
    output = tmp_path / 'out.csv'
    ended = run_script('predict', f'--workdir={run}', f'--inputs={raw}/images', f'--output={output}')
    assert ended.status == 0, ended.stderr
    bare = pd.read_csv(output).set_index('image').loc[evaluated.index]
    classes = list(evaluated.columns[2:])
    difference = np.abs(bare[classes] - evaluated[classes]).max(axis=1)
    with_metadata = evaluated.label.isin(['mel', 'nv', 'df'])
    assert difference[~with_metadata].max() < 2e-6
    assert difference[with_metadata].min() > 1e-5
