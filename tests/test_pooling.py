"""Pooling is Flax's in values and gradients, ties of maxima included."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.errors import UsageError
from common.nn.pooling import average_pool, max_pool

WINDOWS = (2, 2), (2, 2)  # their shape and strides, for Flax's pools


def result_and_gradient(pool, x, *arguments):
    @jax.jit
    def run(x):
        y, pull_back = jax.vjp(lambda x: pool(x, *arguments), x)
        return y, *pull_back(jnp.arange(1, y.size + 1, dtype=y.dtype).reshape(y.shape))

    return run(x)


@pytest.fixture(params=['cpu', 'gpu'])
def backend(request, monkeypatch):
    """As the program is written for a CPU and for other devices; it runs on the CPU."""
    monkeypatch.setattr(jax, 'default_backend', lambda: request.param)


@pytest.mark.usefixtures('backend')
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('shape', [(2, 6, 8, 3), (1, 7, 5, 2), (3, 2, 3, 1)])
def test_ties_go_to_the_first_maximum_as_in_flax(shape, dtype):
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, shape), dtype)
    actual, expected = result_and_gradient(max_pool, x), result_and_gradient(nn.max_pool, x, *WINDOWS)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.usefixtures('backend')
def test_a_window_is_taken_apart_by_hand():
    x = jnp.asarray([[1.0, 4.0, 2.0, 2.0], [3.0, 4.0, 2.0, 2.0]])[None, :, :, None]
    y, gradient = result_and_gradient(max_pool, x)
    np.testing.assert_array_equal(y[0, :, :, 0], [[4, 2]])
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[0, 1, 2, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize('pool', [max_pool, average_pool])
def test_what_cannot_be_halved_is_refused(pool):
    with pytest.raises(UsageError, match='too small to be halved once more'):
        pool(jnp.ones((2, 1, 8, 3)))


@pytest.mark.usefixtures('backend')
@pytest.mark.parametrize('lift', [jax.vmap, jax.pmap])
def test_it_may_be_mapped(lift):
    x = jnp.asarray(np.random.default_rng(2).integers(0, 3, (4, 2, 4, 4, 3)), jnp.float32)
    actual = lift(lambda x: result_and_gradient(max_pool, x))(x)
    for member in range(4):
        expected = result_and_gradient(nn.max_pool, x[member], *WINDOWS)
        jax.tree.map(np.testing.assert_array_equal, [a[member] for a in actual], list(expected))


def test_programs_for_accelerators_hold_no_barrier():
    step = jax.jit(jax.grad(lambda x: jnp.sum(max_pool(x) ** 2)))
    lowered = step.trace(jnp.ones((2, 4, 4, 3))).lower(lowering_platforms=('cuda',))
    assert 'optimization_barrier' not in lowered.as_text()


def test_elsewhere_than_on_a_cpu_a_bytes_worth_is_kept_of_a_window(monkeypatch):
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    pull_back = jax.eval_shape(lambda x: jax.vjp(max_pool, x), jnp.zeros((2, 6, 4, 3)))[1]
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(pull_back)] == [((2, 3, 2, 3), jnp.int8)]


@pytest.mark.parametrize(('dtype', 'tolerance'), [(jnp.float32, 1e-6), (jnp.bfloat16, 1e-2)])
@pytest.mark.parametrize('shape', [(2, 6, 8, 3), (1, 7, 5, 2), (3, 2, 3, 1)])
def test_means_and_their_gradients_are_those_of_flax(shape, dtype, tolerance):
    x = jnp.asarray(np.random.default_rng(3).normal(size=shape), dtype)
    actual = result_and_gradient(average_pool, x)
    expected = result_and_gradient(nn.avg_pool, x, *WINDOWS)
    assert {a.dtype for a in actual} == {jnp.dtype(dtype)}
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=tolerance, atol=tolerance)


def test_a_mean_of_narrow_numbers_is_rounded_once():
    x = jnp.asarray(np.random.default_rng(3).normal(size=(8, 16, 16, 8)) + 2, jnp.bfloat16)
    expected = nn.avg_pool(x.astype(jnp.float32), *WINDOWS).astype(jnp.bfloat16)
    np.testing.assert_array_equal(average_pool(x), expected)
