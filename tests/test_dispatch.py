"""Short steps share a dispatch, by a rule that knows nothing of time."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from common.flops import flops, has_own_convolution
from common.nn.conv import convolution
from common.nn.lstm import LSTM
from common.training.dispatch import accumulate_steps, cpu_devices, steps_per_dispatch
from tests.test_steps import lesion_training, toy, toy_data

__all__ = ['toy_data']  # a fixture


@pytest.mark.parametrize(
    ('operations', 'platform', 'boundary', 'expected'),
    [
        (4e9, 'cpu', 100, 1),  # long enough
        (2.4e9, 'cpu', 9, 3),
        (0.6e9, 'cpu', 1600, 16),
        (0.6e9, 'cpu', 39, 13),  # 16 would leave single steps at every boundary
        (0.6e9, 'cpu', 37, 16),  # 37 is a prime
        (1e6, 'cpu', 1000, 50),
        (0.0, 'cpu', 3, 3),
        (1e11, 'gpu', 1000, 50),
        (3e11, 'tpu', 1000, 50),
        (1.6e12, 'gpu', 1000, 10),
        (1e13, 'gpu', 1000, 1),
    ],
)
def test_short_steps_share_a_dispatch(operations, platform, boundary, expected):
    assert steps_per_dispatch(operations, platform, boundary) == expected


@pytest.mark.parametrize(
    ('asked', 'rows', 'platform', 'expected'),
    [
        *((0, 256, 'cpu', 16), (0, 128, 'cpu', 8), (0, 32, 'cpu', 2), (0, 16, 'cpu', 1), (0, 100, 'cpu', 5)),
        *((0, 74, 'cpu', 2), (0, 37, 'cpu', 1), (0, 8, 'cpu', 1)),
        *((0, 256, 'gpu', 1), (3, 256, 'cpu', 3), (1, 256, 'cpu', 1), (4, 256, 'gpu', 4)),
    ],
)
def test_parts_of_a_batch_stay_in_the_cache(asked, rows, platform, expected):
    assert accumulate_steps(asked, rows, platform) == expected


@pytest.mark.parametrize(
    ('asked', 'batch_size', 'cores', 'expected'),
    [(0, 256, 2, 2), (0, 256, 6, 4), (0, 32, 16, 2), (0, 31, 16, 1), (0, 8, 4, 1), (1, 256, 16, 1), (3, 8, 1, 3)],
)
def test_a_cpu_is_divided_where_its_devices_get_rows_enough(monkeypatch, asked, batch_size, cores, expected):
    monkeypatch.setattr('common.training.dispatch.cores', lambda: cores)
    assert cpu_devices(asked, batch_size) == expected


def forward_flops(model, shape):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return flops(model.apply, jax.eval_shape(model.init, jax.random.key(0), x), x)


@pytest.mark.parametrize('options', [{}, {'conv_general_dilated': convolution('winograd')}])
def test_convolutions_count_as_direct_ones(options):
    assert forward_flops(nn.Conv(16, (3, 3), **options), (2, 8, 8, 4)) == 2 * (2 * 8 * 8 * 16) * 9 * 4
    assert forward_flops(nn.Conv(8, (3, 3), feature_group_count=4), (2, 8, 8, 4)) == 2 * (2 * 8 * 8 * 8) * 9


def test_of_a_strided_convolution_either_gradient_counts_as_much_as_itself():
    model, x = nn.Conv(8, (3, 3), strides=2, use_bias=False), jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    gradients = jax.grad(lambda variables, x: model.apply(variables, x).sum(), argnums=(0, 1))
    assert flops(gradients, variables, x) == 3 * flops(model.apply, variables, x)


def test_loops_count_every_time():
    gates, window, batch = 4 * 6, 7, 3
    assert forward_flops(LSTM(6), (batch, window, 5)) == 2 * batch * window * (5 + 6) * gates
    looped = flops(lambda a: lax.fori_loop(0, 5, lambda i, a: a @ a, a), jax.ShapeDtypeStruct((4, 4), 'float32'))
    assert looped == 5 * 2 * 4**3


def test_a_training_takes_as_many_steps_in_a_dispatch(toy_data):
    training = toy(toy_data, steps_per_dispatch=0, evaluate_every='12steps')
    assert training.steps_per_dispatch == 12
    assert toy(toy_data, steps_per_dispatch=0, evaluate_every='12steps', ensemble=2).steps_per_dispatch == 12
    assert toy(toy_data, steps_per_dispatch=5, evaluate_every='12steps').steps_per_dispatch == 5
    # more would fit nowhere, and every step be one by itself
    assert toy(toy_data, steps_per_dispatch=50, evaluate_every='12steps').steps_per_dispatch == 12


def test_the_operations_of_a_dispatch_are_those_of_all_models(toy_data, monkeypatch):
    monkeypatch.setattr('common.training.setup.steps_per_dispatch', lambda operations, *_: operations)
    one, three = (toy(toy_data, steps_per_dispatch=0, ensemble=models).steps_per_dispatch for models in (1, 3))
    assert three == 3 * one > 0


def test_no_loop_holds_a_convolution_of_xlas_own(monkeypatch):
    training = lesion_training(monkeypatch, 1)
    training.config.steps_per_dispatch, training.config.evaluate_every = 0, '6steps'
    assert training.steps_per_dispatch == 6
    del training.steps_per_dispatch
    assert not training._slow_in_loops
    training.model = training.model.copy(convolution='direct')
    del training._slow_in_loops
    assert training.steps_per_dispatch == 1
    del training.steps_per_dispatch, training._slow_in_loops
    monkeypatch.setattr('jax.default_backend', lambda: 'gpu')
    assert training.steps_per_dispatch == 6


@pytest.mark.parametrize('slow', [True, False])
def test_a_loop_over_convolutions_of_xlas_own_is_warned_of(toy_data, monkeypatch, recwarn, slow):
    monkeypatch.setattr('common.training.setup.has_own_convolution', lambda *_: slow)
    for values, named in (
        ({}, ''),
        ({'steps_per_dispatch': 2, 'accumulate_steps': 4}, 'steps_per_dispatch=2 and config.accumulate_steps=4'),
        ({'ensemble': 2}, 'ensemble=2'),
    ):
        training = toy(toy_data, **values)
        host = training.transport('train').host_batch(*training.plan.dispatches([(0, training.steps_per_dispatch)])[0])
        training.compile(training.init_state(), training.parallel.put(host))
        told = [str(warning.message) for warning in recwarn if 'hundred times' in str(warning.message)]
        assert [f'in the loop of config.{named} the' in text for text in told] == [True] * bool(slow and named)
        recwarn.clear()


@pytest.mark.parametrize(
    ('model', 'expected'),
    [
        (nn.Conv(8, (3, 3), conv_general_dilated=convolution('products')), False),
        (nn.Conv(8, (3, 3), conv_general_dilated=convolution('direct')), True),
        (nn.Conv(8, (3, 3), strides=2, conv_general_dilated=convolution()), True),  # for which there is no other way
        (nn.jit(nn.Conv)(8, (3, 3)), True),
        (nn.Dense(8), False),
    ],
)
def test_convolutions_with_gradients_of_xlas_own_are_told_from_others(model, expected):
    x = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    assert has_own_convolution(model.apply, variables, x) == expected
