"""Schedules at known steps against their closed forms, and optimizers against hand-computed steps."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from common.config import base_config, number_of_steps
from common.errors import UsageError
from common.training.optim import global_norm, make_optimizer, make_schedule, stop_gradients

PEAK = 0.4


def to_steps(duration):
    return number_of_steps(duration, steps_per_epoch=10, batch_size=8, total_steps=100)


def schedule(steps=100, **values):
    config = base_config()
    config.optimizer.learning_rate = PEAK
    config.schedule.update(values)
    return make_schedule(config, steps, to_steps)


@pytest.mark.parametrize('name', ['constant', 'plateau'])
def test_constant_and_plateau_stay_at_the_peak(name):
    np.testing.assert_allclose([schedule(name=name)(step) for step in (0, 50, 99)], PEAK, rtol=1e-6)


def test_cosine_falls_from_the_peak_to_zero():
    rate = schedule(name='cosine')
    for step in (0, 25, 50, 99, 100):
        assert rate(step) == pytest.approx(PEAK * (1 + math.cos(math.pi * step / 100)) / 2, abs=1e-6)


def test_warmup_rises_linearly_and_the_rest_follows():
    rate = schedule(name='cosine', warmup='2epochs')
    np.testing.assert_allclose([rate(step) for step in (0, 5, 10, 20)], [0, PEAK / 4, PEAK / 2, PEAK], atol=1e-6)
    assert rate(60) == pytest.approx(PEAK / 2, abs=1e-6)
    assert rate(100) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize('warmup', ['0steps', '20steps'])
def test_step_multiplies_by_the_factor_at_absolute_milestones(warmup):
    rate = schedule(name='step', factor=0.1, milestones=('50%', '75steps'), warmup=warmup)
    rates = [rate(step) for step in (49, 51, 74, 76)]
    np.testing.assert_allclose(rates, [PEAK, PEAK / 10, PEAK / 10, PEAK / 100], rtol=1e-5)


def test_milestones_within_the_warmup_count_one_by_one():
    rate = schedule(name='step', factor=0.1, milestones=('10%', '20%', '75%'), warmup='60%')
    np.testing.assert_allclose([rate(step) for step in (60, 74, 76)], [PEAK / 100, PEAK / 100, PEAK / 1000], rtol=1e-5)


def test_a_warmup_that_takes_all_steps_and_unknown_names_are_refused():
    with pytest.raises(UsageError, match=r'config\.schedule\.warmup takes 100 of 100 steps'):
        schedule(warmup='10epochs')
    with pytest.raises(UsageError, match=r"config\.schedule\.name is 'linear'; it may be constant, plateau, cosine"):
        schedule(name='linear')
    with pytest.raises(UsageError, match=r"config\.optimizer\.name is 'lion'; it may be adam, adamw, sgd"):
        optimizer(name='lion')
    with pytest.raises(UsageError, match='weight_decay needs adamw or sgd'):
        optimizer(name='adam', weight_decay=0.1)


def optimizer(**values):
    config = base_config()
    config.optimizer.update(ConfigDict(values))
    return make_optimizer(config, optax.constant_schedule(config.optimizer.learning_rate), to_steps)


PARAMS = {'kernel': jnp.full((2, 2), 3.0), 'bias': jnp.full(2, 5.0), 'scale': jnp.full(2, 7.0)}


@pytest.mark.parametrize('name', ['adamw', 'sgd'])
def test_weight_decay_spares_biases_and_scales(name):
    rule = optimizer(name=name, learning_rate=0.1, weight_decay=0.5, momentum=0.0)
    zero = {name: jnp.zeros_like(leaf) for name, leaf in PARAMS.items()}
    updates, _ = rule.update(zero, rule.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates['kernel'], -0.1 * 0.5 * 3.0, rtol=1e-6)
    np.testing.assert_array_equal(updates['bias'], 0)
    np.testing.assert_array_equal(updates['scale'], 0)


def steps(rule, gradients):
    state, moved = rule.init(PARAMS), []
    for g in gradients:
        updates, state = rule.update({name: jnp.full_like(leaf, g) for name, leaf in PARAMS.items()}, state, PARAMS)
        moved.append(float(updates['bias'][0]))
    return moved


def test_sgd_has_nesterov_momentum():
    moved = steps(optimizer(name='sgd', learning_rate=0.1, momentum=0.9, weight_decay=0.0), [1.0, 2.0])
    # v = 0.9 v + g; the step is along 0.9 v + g (Sutskever et al. 2013, as in PyTorch's nesterov=True).
    np.testing.assert_allclose(moved, [-0.1 * (0.9 * 1 + 1), -0.1 * (0.9 * (0.9 + 2) + 2)], rtol=1e-6)


def test_weight_decay_of_sgd_goes_through_the_momentum():
    rule = optimizer(name='sgd', learning_rate=0.1, weight_decay=0.5, momentum=0.9)
    updates, _ = rule.update(jax.tree.map(jnp.zeros_like, PARAMS), rule.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates['kernel'], -0.1 * (0.9 * 0.5 * 3.0 + 0.5 * 3.0), rtol=1e-6)


def test_adam_takes_the_steps_of_its_paper():
    moved = steps(optimizer(name='adam', learning_rate=0.1, weight_decay=0.0), [1.0, -3.0])
    m, v, expected = 0.0, 0.0, []
    for t, g in enumerate([1.0, -3.0], 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        expected.append(-0.1 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8))
    np.testing.assert_allclose(moved, expected, rtol=1e-5)


@pytest.mark.parametrize('backend', ['cpu', 'gpu'])
def test_the_global_norm_and_its_clipping_are_those_of_optax(backend, monkeypatch):
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)  # as it is written for a CPU and for other devices
    random = np.random.default_rng(0)
    shapes = {'kernel': (3, 3, 4, 5), 'bias': (5,), 'scalar': ()}
    grads = {name: jnp.asarray(random.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    norm = optax.tree.norm(grads)
    np.testing.assert_allclose(global_norm(grads), norm, rtol=1e-6)
    for most in (0.5 * float(norm), 2 * float(norm)):
        rule = optimizer(name='sgd', learning_rate=1.0, momentum=0.0, weight_decay=0.0, gradient_clip=most)
        updates, _ = rule.update(grads, rule.init(grads), grads)
        expected, _ = optax.clip_by_global_norm(most).update(grads, optax.EmptyState())
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -b, rtol=1e-5), updates, expected)


def test_gradients_are_clipped_to_the_global_norm():
    rule = optimizer(name='sgd', learning_rate=1.0, momentum=0.0, weight_decay=0.0, gradient_clip=2.0)
    gradients = {name: jnp.full_like(leaf, 3.0) for name, leaf in PARAMS.items()}  # 8 elements: norm 3 sqrt(8)
    updates, _ = rule.update(gradients, rule.init(PARAMS), PARAMS)
    np.testing.assert_allclose(optax.tree.norm(updates), 2.0, rtol=1e-6)
    np.testing.assert_allclose(updates['bias'], -2.0 / math.sqrt(8), rtol=1e-6)


def test_it_is_the_gradient_that_is_clipped_and_not_the_step():
    values = {'name': 'adam', 'learning_rate': 0.1, 'weight_decay': 0.0}
    clipped = steps(optimizer(gradient_clip=2.0, **values), [0.1, -3.0])
    np.testing.assert_allclose(clipped, steps(optimizer(**values), [0.1, -2.0 / math.sqrt(8)]), rtol=1e-5)


PARTS = {
    'backbone': {'stem': {'kernel': jnp.array([[-0.0, 1e-30], [3.0, -7.0]])}, 'block': {'bias': jnp.full(2, 5.0)}},
    'head': {'kernel': jnp.full((2, 2), 3.0)},
}


def trained(count, **values):
    """PARTS after `count` steps of a constant gradient, as the train step takes them."""
    rule = optimizer(learning_rate=0.1, weight_decay=0.5, momentum=0.0, **values)
    params, state = PARTS, rule.init(PARTS)
    for _ in range(count):
        updates, state = rule.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = jax.tree.map(lambda p, u: p + u, params, updates)
    return params


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize('name', ['adamw', 'sgd'])
def test_parts_have_learning_rates_of_their_own_and_the_longest_prefix_counts(name):
    moved = jax.tree.map(jnp.subtract, trained(1, name=name), PARTS)
    scales = (('backbone', 0.1), ('backbone.stem', 2.0))
    scaled = jax.tree.map(jnp.subtract, trained(1, name=name, scales=scales), PARTS)
    for part, factor in (('stem', 2.0), ('block', 0.1)):
        jax.tree.map(
            lambda one, other, f=factor: np.testing.assert_allclose(one, f * other, rtol=1e-4),
            scaled['backbone'][part],
            moved['backbone'][part],
        )
    assert bits(scaled['head']) == bits(moved['head'])


@pytest.mark.parametrize('name', ['adamw', 'sgd'])
def test_frozen_parameters_keep_every_bit_until_their_time_has_come(name):
    freeze = (('backbone.stem', '3steps'), ('backbone', '100%'))
    early, late = (trained(count, name=name, freeze=freeze) for count in (3, 4))
    assert bits(early['backbone']) == bits(PARTS['backbone'])
    assert bits(late['backbone']['block']) == bits(PARTS['backbone']['block'])
    assert not np.any(late['backbone']['stem']['kernel'] == PARTS['backbone']['stem']['kernel'])
    assert bits(late['head']) == bits(trained(4, name=name)['head'])


def test_only_what_is_frozen_for_good_has_no_gradient():
    config = base_config()
    config.optimizer.freeze = (('backbone.stem', '20steps'), ('backbone', '100%'))
    stop = stop_gradients(config, to_steps, 100)
    gradients = jax.grad(lambda params: sum(leaf.sum() for leaf in jax.tree.leaves(stop(params))))(PARTS)
    assert jax.tree.map(lambda leaf: float(leaf.ravel()[0]), gradients) == {
        'backbone': {'stem': {'kernel': 1.0}, 'block': {'bias': 0.0}},
        'head': {'kernel': 1.0},
    }


@pytest.mark.parametrize(('key', 'value'), [('scales', 0.1), ('freeze', '100%')])
def test_a_prefix_of_no_parameter_is_refused_and_the_names_listed(key, value):
    names = r'backbone\.block\.bias, backbone\.stem\.kernel, head\.kernel'
    with pytest.raises(UsageError, match=rf"optimizer\.{key}: no parameter begins with 'back'; there are {names}"):
        trained(1, **{key: (('back', value),)})
