"""The LSTM against Flax's own cells, and in every setting that the toolkit runs it in."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from common.nn.lstm import LSTM, from_flax_cell, to_flax_cell
from common.runtime import AXIS

# batch, time, features, hidden, layers
SHAPES = [(1, 1, 1, 1, 1), (1, 9, 5, 4, 2), (3, 6, 4, 7, 3), (2, 1, 3, 4, 3)]


class FlaxLSTM(nn.Module):
    """The same stack from Flax's parts."""

    hidden_size: int
    num_layers: int
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in range(self.num_layers):
            cell = nn.OptimizedLSTMCell(self.hidden_size, param_dtype=self.param_dtype, name=f'cell_{layer}')
            x = nn.RNN(cell)(x)
        return x


def normal(seed: int, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def drawn_params(model: LSTM, x: jax.Array, members: tuple[int, ...] = ()) -> Any:
    """Parameters of x's dtype with nothing special about them: biases are not zero. One set, or one a member."""
    leaves, structure = jax.tree.flatten(jax.eval_shape(model.init, jax.random.key(0), x))
    draws = [0.5 * normal(seed, members + leaf.shape, x.dtype) for seed, leaf in enumerate(leaves)]
    return structure.unflatten(draws)


def take(member: int, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[member], tree)


def value_and_gradients(apply: Callable, params: Any, x: jax.Array, weights: jax.Array) -> Any:
    def loss(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        outputs = apply(params, x)
        return (outputs * weights).sum(), outputs

    (_, outputs), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)
    return outputs, *gradients


def assert_trees_close(actual: Any, expected: Any, rtol: float = 0, atol: float = 0) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.float64(a), np.float64(b), rtol, atol), actual, expected)


def compare_with_flax(shape: tuple[int, ...], dtype: Any, tolerance: float, last_only: bool = False) -> None:
    batch, time, features, hidden, layers = shape
    x, weights = normal(1, (batch, time, features), dtype), normal(2, (batch, time, hidden), dtype)
    if last_only:
        weights = weights.at[:, :-1].set(0)
    model, reference = LSTM(hidden, layers), FlaxLSTM(hidden, layers, dtype)
    params = drawn_params(model, x)
    converted = {f'cell_{n}': to_flax_cell(params['params'][f'layer_{n}']) for n in range(layers)}
    expected, flax_gradients, x_gradient = value_and_gradients(reference.apply, {'params': converted}, x, weights)
    gradients = {f'layer_{n}': from_flax_cell(flax_gradients['params'][f'cell_{n}']) for n in range(layers)}
    actual = value_and_gradients(model.apply, params, x, weights)
    assert_trees_close(actual, (expected, {'params': gradients}, x_gradient), atol=tolerance)


@pytest.mark.parametrize('shape', SHAPES)
def test_values_and_gradients_are_those_of_flax_in_float64(shape: tuple[int, ...]) -> None:
    with jax.enable_x64(True):
        compare_with_flax(shape, jnp.float64, 1e-12)


@pytest.mark.parametrize('shape', [(256, 4, 2, 3, 3), (8, 30, 5, 32, 2)])
def test_values_and_gradients_are_those_of_flax_in_float32(shape: tuple[int, ...]) -> None:
    compare_with_flax(shape, jnp.float32, 5e-5)  # gradients are sums of up to 1,000 terms of order one


def test_a_loss_on_the_last_step_alone_reaches_every_weight() -> None:
    with jax.enable_x64(True):
        compare_with_flax((3, 8, 3, 4, 2), jnp.float64, 1e-12, last_only=True)


def test_vmapped_members_equal_each_alone() -> None:
    with jax.enable_x64(True):
        model, x = LSTM(6, 2), normal(1, (5, 4, 7, 3), jnp.float64)
        weights = normal(2, (4, 7, 6), jnp.float64)
        params = drawn_params(model, x[0], members=(5,))
        together = jax.vmap(lambda p, x: value_and_gradients(model.apply, p, x, weights))(params, x)
        for member in range(5):
            alone = value_and_gradients(model.apply, *take(member, (params, x)), weights)
            assert_trees_close(take(member, together), alone, atol=1e-12)


def test_pmapped_gradients_are_those_of_the_whole_batch() -> None:
    devices = jax.local_device_count()
    model, x = LSTM(4, 2), normal(1, (devices, 3, 6, 5))
    params = drawn_params(model, x[0])

    def gradient(params: Any, x: jax.Array) -> Any:
        return jax.grad(lambda p: jnp.square(model.apply(p, x)).mean())(params)

    def device_gradient(params: Any, x: jax.Array) -> Any:
        return jax.lax.pmean(gradient(params, x), AXIS)

    lifted = jax.pmap(device_gradient, AXIS, in_axes=(None, 0), out_axes=None)
    assert_trees_close(lifted(params, x), jax.jit(gradient)(params, x.reshape(-1, 6, 5)), atol=1e-6)


def test_bidirectional_is_one_layer_each_way() -> None:
    x = normal(1, (3, 6, 5))
    both, single = LSTM(4, 2, bidirectional=True), LSTM(4)
    params = drawn_params(both, x)
    expected = x
    for layer in range(2):
        ahead = {'params': {'layer_0': params['params'][f'layer_{layer}']}}
        back = {'params': {'layer_0': params['params'][f'layer_{layer}_backward']}}
        reverse = single.apply(back, expected[:, ::-1])[:, ::-1]
        expected = jnp.concatenate([single.apply(ahead, expected), reverse], axis=-1)
    outputs = both.apply(params, x)
    assert outputs.shape == (3, 6, 8)
    np.testing.assert_allclose(outputs, expected, atol=1e-6)


def test_outputs_never_see_later_steps() -> None:
    model, x = LSTM(4, 2), normal(1, (5, 8, 3))
    params = drawn_params(model, x)
    changed = x.at[:, 5:].add(1.0)
    before, after = model.apply(params, x), model.apply(params, changed)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any()


def test_bfloat16_stays_near_float32_and_keeps_parameter_dtype() -> None:
    x, weights = normal(1, (4, 40, 5)), normal(2, (4, 40, 16))
    # As initialised: larger recurrent weights amplify rounding from step to step, in any implementation.
    params = jax.jit(LSTM(16, 2).init)(jax.random.key(0), x)
    exact = value_and_gradients(LSTM(16, 2).apply, params, x, weights)
    rounded = value_and_gradients(LSTM(16, 2, dtype=jnp.bfloat16).apply, params, x, weights)
    assert rounded[0].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded[1:])} == {jnp.dtype('float32')}
    assert LSTM(16, 2).apply(params, x.astype(jnp.bfloat16)).dtype == jnp.float32  # unless it is asked for
    for actual, expected in zip(jax.tree.leaves(rounded), jax.tree.leaves(exact), strict=True):
        error = np.linalg.norm(np.float32(actual) - expected) / np.linalg.norm(expected)
        assert error < 0.01  # bfloat16 rounds by up to 0.004


def test_cell_states_add_up_in_float32_under_bfloat16() -> None:
    """A cell that gains 1/300 a step would stand still near 0.5 if it were kept in bfloat16."""
    large, gain = 20.0, float(np.arctanh(1 / 300))
    bias = jnp.array([large, large, gain, large])  # gates open, candidate tanh(gain)
    layer = {'input_kernel': jnp.zeros((1, 4)), 'recurrent_kernel': jnp.zeros((1, 4)), 'bias': bias}
    model = LSTM(1, dtype=jnp.bfloat16)
    outputs = model.apply({'params': {'layer_0': layer}}, jnp.zeros((1, 300, 1)))
    np.testing.assert_allclose(np.float32(outputs[0, -1, 0]), np.tanh(1.0), rtol=0.005)


def test_dropout_falls_between_layers_and_only_in_training() -> None:
    x = normal(1, (256, 6, 3))
    model, plain = LSTM(4, 2, dropout_rate=0.5), LSTM(4, 2)
    params = drawn_params(model, x)

    def trained(model: LSTM) -> jax.Array:
        return model.apply(params, x, train=True, rngs={'dropout': jax.random.key(3)})

    np.testing.assert_array_equal(model.apply(params, x), plain.apply(params, x))
    assert not np.allclose(trained(model), plain.apply(params, x), atol=1e-3)
    one = {'params': {'layer_0': params['params']['layer_0']}}
    below = LSTM(4).apply(one, x)
    two = {'params': {'layer_0': params['params']['layer_1']}}
    # With every input of the upper layer either zero or doubled, its first step is one of 2^4 known ones.
    masks = np.array([[bits >> unit & 1 for unit in range(4)] for bits in range(16)], np.float32)
    possible = LSTM(4).apply(two, (2 * masks[:, None] * below[None, :, 0]).reshape(-1, 1, 4)).reshape(16, 256, 4)
    distance = np.abs(possible - trained(model)[None, :, 0]).max(-1)
    assert (distance.min(0) < 1e-5).all()
    assert len(set(distance.argmin(0))) == 16


def test_conversions_to_and_from_flax_are_inverse() -> None:
    cell = nn.OptimizedLSTMCell(4)
    carry = cell.initialize_carry(jax.random.key(0), (1, 3))
    flax_params = cell.init(jax.random.key(1), carry, jnp.zeros((1, 3)))['params']
    assert_trees_close(to_flax_cell(from_flax_cell(flax_params)), flax_params)
    params = LSTM(4).init(jax.random.key(0), jnp.zeros((1, 2, 3)))['params']['layer_0']
    assert_trees_close(from_flax_cell(to_flax_cell(params)), params)


def test_initial_parameters_are_distributed_as_in_flax() -> None:
    params = LSTM(64).init(jax.random.key(0), jnp.zeros((1, 2, 100)))['params']['layer_0']
    for kernel in jnp.split(params['recurrent_kernel'], 4, axis=1):
        np.testing.assert_allclose(kernel.T @ kernel, np.eye(64), atol=1e-5)
    assert np.std(params['input_kernel']) == pytest.approx(1 / np.sqrt(100), rel=0.03)
    assert not params['bias'].any()


@pytest.mark.parametrize('time', [1, 4, 9])
def test_the_loop_of_accelerators_gives_the_same(time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax.lax, 'platform_dependent', lambda *arguments, cpu, default: default(*arguments))
    with jax.enable_x64(True):
        compare_with_flax((3, time, 4, 5, 2), jnp.float64, 1e-12)


def products(program: str) -> int:
    """Matrix products in the text of a program, those of a function once for every call of it."""
    _, *parts = re.split(r'func\.func \w+ @(\w+)', program)
    functions = dict(zip(parts[::2], parts[1::2], strict=True))

    def of(name: str) -> int:
        called = re.findall(r'call @(\w+)', functions[name])
        return functions[name].count('stablehlo.dot_general') + sum(map(of, called))

    return of('main')


def test_programs_for_accelerators_hold_several_steps_a_turn_and_no_barrier() -> None:
    model, x = LSTM(4, num_layers=2), normal(0, (3, 8, 2))
    params = drawn_params(model, x)
    traced = jax.jit(jax.grad(lambda params: model.apply(params, x).sum())).trace(params)
    here, there = (traced.lower(lowering_platforms=(platform,)).as_text() for platform in ('cpu', 'cuda'))
    assert 'optimization_barrier' in here
    assert 'optimization_barrier' not in there
    assert products(there) - products(here) == 4 * 3  # two loops each way
