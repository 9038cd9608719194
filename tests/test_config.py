"""Durations, the locked config, and the config.json that a run keeps."""

import json

import jax
import jax.numpy as jnp
import pytest

from common.config import (
    RunRecord,
    base_config,
    check,
    differences,
    load_run,
    number_of_steps,
    pairs,
    plain,
    save_run,
)
from common.errors import UsageError, UserError
from common.losses import classification_loss, training_loss
from lesion.configs import ham10000


@pytest.mark.parametrize(
    ('duration', 'steps'),
    [
        ('10epochs', 250),
        ('1epoch', 25),
        ('0.5epochs', 13),
        ('500steps', 500),
        ('1 step', 1),
        ('1600examples', 50),
        ('1601examples', 51),
        ('10%', 100),
        ('0.1%', 1),
        ('0steps', 0),
    ],
)
def test_durations_become_steps_rounded_up(duration, steps):
    assert number_of_steps(duration, steps_per_epoch=25, batch_size=32, total_steps=1000) == steps


@pytest.mark.parametrize('duration', ['10', 'epochs', '-1epochs', '3 weeks', '', '1e3steps', 7])
def test_what_is_no_duration_is_refused(duration):
    with pytest.raises(UsageError, match='is no duration; write 500steps, 10epochs, 10000examples or 5%'):
        number_of_steps(duration, steps_per_epoch=25, batch_size=32)


@pytest.mark.parametrize('loss', [{'logit_adjustment': 1.0}, {'class_weights': 'effective'}])
def test_two_ways_of_favouring_rare_classes_at_once_are_warned_of(loss, recwarn):
    config = ham10000.get_config()
    config.loss.update(loss)
    with pytest.warns(UserWarning, match=r'rare classes are favoured twice.*config\.data\.sampling=uniform'):
        check(config)
    recwarn.clear()
    config.data.sampling = 'uniform'
    check(config)
    check(ham10000.get_config())
    assert not recwarn.list


@pytest.mark.parametrize('value', [('backbone', 0.1), (('backbone',),), ('ab', 'cd')])
def test_pairs_without_both_brackets_are_refused(value):
    assert pairs((('backbone', 0.1),), 'optimizer.scales') == (('backbone', 0.1),)
    with pytest.raises(UsageError, match=r'config\.optimizer\.scales is \(.*it must be pairs'):
        pairs(value, 'optimizer.scales')


def test_a_scale_that_is_no_number_is_refused():
    config = base_config()
    config.optimizer.scales = (('backbone', '0.1'),)
    with pytest.raises(
        UsageError, match=r"config\.optimizer\.scales is .*'0\.1'.*; it must be pairs of a prefix and a number"
    ):
        check(config)


@pytest.mark.parametrize(('key', 'value'), [('beta', 1.0), ('focal_gamma', -1.0), ('label_smoothing', 1.0)])
def test_values_of_the_loss_out_of_range_are_refused(key, value):
    loss = classification_loss()
    loss[key] = value
    with pytest.raises(UsageError, match=rf'config\.loss\.{key} is {value}; it must be'):
        training_loss(loss, [3, 4])


def test_a_percentage_of_an_unknown_total_is_refused():
    with pytest.raises(UsageError, match='a percentage needs a training of known length'):
        number_of_steps('5%', steps_per_epoch=25, batch_size=32)


def test_a_misspelt_key_raises_at_once():
    with pytest.raises(AttributeError):
        base_config().batchsize = 3


def record(config):
    return RunRecord(
        config=config,
        info={'class_names': ['a', 'b'], 'pixel_mean': [0.1]},
        columns={'image': jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.uint8)},
        tables={'prices': jax.ShapeDtypeStruct((9, 2), jnp.float32)},
        groups=None,
        data_dir='/data',
        environment={'python': '3'},
    )


def test_a_run_comes_back_as_it_was_saved(tmp_path):
    config = base_config()
    config.schedule.milestones = ('10%', '20%')
    save_run(tmp_path, record(config))
    restored = load_run(tmp_path)
    assert restored.columns == record(config).columns
    assert restored.tables == record(config).tables
    assert restored.info == record(config).info
    assert plain(restored.config) == plain(config)
    assert differences(restored.config, config) == []  # tuples come back as lists, which is no difference
    assert [path.name for path in tmp_path.iterdir()] == ['config.json']


def test_differences_name_key_and_both_values():
    old, new = base_config(), base_config()
    new.batch_size, new.optimizer.learning_rate = 32, 0.5
    with new.unlocked():
        new.model.depth = 3
    assert differences(old, new) == [
        'config.batch_size: 64 before, 32 now',
        'config.model.depth: absent before, 3 now',
        'config.optimizer.learning_rate: 0.001 before, 0.5 now',
    ]


def test_a_folder_that_is_no_run_or_a_damaged_one_is_named(tmp_path):
    with pytest.raises(UserError, match=f'{tmp_path} holds no run: there is no config.json'):
        load_run(tmp_path)
    save_run(tmp_path, record(base_config()))
    text = (tmp_path / 'config.json').read_text()
    for damaged in (text[: len(text) // 2], '', '{}', json.dumps(json.loads(text) | {'columns': 3})):
        (tmp_path / 'config.json').write_text(damaged)
        with pytest.raises(UserError, match=r'config\.json is damaged'):
            load_run(tmp_path)
