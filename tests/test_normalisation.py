"""Batch normalisation is Flax's in values, statistics and gradients, on one device and on several."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.nn.normalisation import BatchNorm

DEVICES = 4


@pytest.fixture(params=['cpu', 'gpu'], autouse=True)
def backend(request, monkeypatch):
    """As it is written for a CPU and for other devices."""
    monkeypatch.setattr(jax, 'default_backend', lambda: request.param)
    jax.clear_caches()  # or else the second of them would take what was traced for the first
    return request.param


class Flax(nn.Module):
    """Flax's BatchNorm, ReLU and max pool, under the same variable names."""

    train: bool = True
    activation: str | None = 'relu'
    axis_name: str | None = None
    dtype: jnp.dtype | None = None
    pool: bool = False

    @nn.compact
    def __call__(self, x):
        normalise = nn.BatchNorm(not self.train, momentum=0.9, axis_name=self.axis_name, dtype=self.dtype, name='n')
        y = {'relu': nn.relu, 'relu6': nn.relu6, None: lambda y: y}[self.activation](normalise(x))
        return nn.max_pool(y, (2, 2), (2, 2)) if self.pool else y


class Fused(Flax):
    @nn.compact
    def __call__(self, x):
        return BatchNorm(
            not self.train, 0.9, 1e-5, self.axis_name, self.activation, self.dtype, pool=self.pool, name='n'
        )(x)


def draw(shape, dtype=jnp.float64):
    """Inputs far from normalised, and variables far from their initial values."""
    generator = np.random.default_rng(0)
    channels = shape[-1]
    x = jnp.asarray(
        generator.normal(size=shape) * generator.uniform(0.5, 3, channels) + generator.normal(size=channels)
    )
    vectors = [jnp.asarray(generator.uniform(0.5, 2, channels)) for _ in range(4)]
    names = {'params': {'n': {'scale': 5 * vectors[0], 'bias': vectors[1] - 1}}}  # beyond 6 too
    return x.astype(dtype), names | {'batch_stats': {'n': {'mean': vectors[2], 'var': vectors[3]}}}


def loss_and_gradients(model, variables, x):
    """Loss, new statistics, and gradients with respect to parameters and x, of a loss that weighs each number anew."""

    def loss(params, x):
        y, updates = model.apply({**variables, 'params': params}, x, mutable=['batch_stats'])
        weights = jnp.sin(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
        if model.pool:
            weights = weights[:, : 2 * y.shape[1] : 2, : 2 * y.shape[2] : 2]
        return jnp.mean(jax.lax.stop_gradient(weights) * y + 0.1 * y**3), (y, updates)

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables['params'], x)


def assert_close(actual, expected, tolerance):
    def check(one, other):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(1e-30, np.abs(other).max()))

    jax.tree.map(check, actual, expected)


@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize('activation', ['relu', 'relu6', None])
@pytest.mark.parametrize('shape', [(3, 5, 4, 6), (1, 7, 7, 1), (9, 4)])
def test_values_statistics_and_gradients_are_those_of_flax(float64, shape, activation, train):
    x, variables = draw(shape)
    actual = jax.jit(loss_and_gradients, static_argnums=0)(Fused(train, activation), variables, x)
    assert_close(actual, loss_and_gradients(Flax(train, activation), variables, x), 1e-12)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize('activation', ['relu', 'relu6', None])
@pytest.mark.parametrize('shape', [(3, 6, 4, 6), (2, 5, 4, 5), (2, 3, 7, 4)])
def test_with_a_pool_too_whatever_the_sign_of_the_scale(shape, activation, train):
    x, variables = draw(shape)
    scale = variables['params']['n']['scale']
    variables['params']['n']['scale'] = scale * jnp.resize(jnp.asarray([1.0, -1.0, 0.0]), scale.shape)
    actual = jax.jit(loss_and_gradients, static_argnums=0)(Fused(train, activation, pool=True), variables, x)
    assert_close(actual, loss_and_gradients(Flax(train, activation, pool=True), variables, x), 1e-12)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('pool', [False, True])
def test_wide_inputs_may_give_narrow_results(pool):
    x, variables = draw((3, 6, 4, 5))
    actual, expected = (
        loss_and_gradients(model(dtype=jnp.float32, pool=pool), variables, x) for model in (Fused, Flax)
    )
    assert_close(actual, expected, 1e-5)


def test_equal_maxima_of_a_window_go_to_the_first():
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (8, 6, 6, 5)), jnp.float32)
    variables = {'params': {'n': {'scale': jnp.asarray([1.0, 2.0, -1.0, 0.0, 4.0]), 'bias': jnp.full(5, 3.0)}}}
    variables |= {'batch_stats': {'n': {'mean': jnp.zeros(5), 'var': jnp.ones(5)}}}
    actual, expected = (loss_and_gradients(model(pool=True), variables, x) for model in (Fused, Flax))
    assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize('pool', [False, True])
@pytest.mark.parametrize(('dtype', 'tolerance'), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_rounding_in_lower_precision_is_small(dtype, tolerance, pool):
    x, variables = draw((8, 6, 6, 16), dtype)
    variables = jax.tree.map(lambda a: a.astype(jnp.float32), variables)
    (loss, (y, updates)), (params, dx) = loss_and_gradients(Fused(dtype=dtype, pool=pool), variables, x)
    assert y.dtype == dx.dtype == dtype
    assert {a.dtype for a in jax.tree.leaves((loss, updates, params))} == {jnp.dtype(jnp.float32)}
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), (variables, x))
        expected = loss_and_gradients(Flax(pool=pool), *wide)
    assert_close(((loss, (y, updates)), (params, dx)), expected, tolerance)


@pytest.mark.parametrize('activation', ['relu', None])
def test_sums_of_narrow_inputs_are_those_of_wide_ones(activation):
    x, variables = draw((16, 8, 8, 16), jnp.float32)
    x, variables = (x + 3).astype(jnp.bfloat16), jax.tree.map(lambda a: a.astype(jnp.float32), variables)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), jnp.float32)

    def run(x):
        def loss(params, x):
            model = Fused(activation=activation, dtype=x.dtype)
            y, updates = model.apply({**variables, 'params': params}, x, mutable=['batch_stats'])
            return jnp.sum(weights * y), (y, updates)

        (_, (y, updates)), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(variables['params'], x)
        return jax.tree.map(lambda a: np.asarray(a, np.float64), (updates, (y, gradients)))

    (actual, narrow), (expected, wide) = run(x), run(x.astype(jnp.float32))
    assert_close(actual, expected, 1e-5)
    for one, other in zip(jax.tree.leaves(narrow), jax.tree.leaves(wide), strict=True):
        assert np.linalg.norm(one - other) < 3.2e-3 * np.linalg.norm(other)  # rounding alone is 1.7e-3


def test_a_variance_that_is_rounded_below_zero_passes_nothing_on():
    """Of numbers far from zero float32 loses the variance, forward as with Flax; then nothing may explode backward."""
    x = jnp.asarray(1e3 + np.random.default_rng(0).normal(size=(8, 8, 8, 4)), jnp.float32)
    variables = Fused().init(jax.random.key(0), x)
    (_, (_, updates)), (_, dx) = loss_and_gradients(Fused(), variables, x)
    running = next(leaf for path, leaf in jax.tree.leaves_with_path(updates) if path[-1].key == 'var')
    assert (running == jnp.float32(0.9)).any()  # a batch of variance 0
    assert jnp.abs(dx).max() < 1e6  # 8e8 if it did


def test_variables_start_as_those_of_flax():
    x = jnp.ones((2, 4, 4, 3), jnp.bfloat16)
    actual, expected = (model(axis_name='data').init(jax.random.key(0), x) for model in (Fused, Flax))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize('pool', [False, True])
@pytest.mark.parametrize('lift', [jax.pmap, jax.vmap])
def test_a_plain_sgd_step_on_four_devices_is_the_step_on_the_full_batch(float64, lift, pool):
    x, variables = draw((DEVICES, 3, 5, 4, 6))

    def step(model, variables, x):
        (loss, (y, updates)), (gradients, dx) = loss_and_gradients(model, variables, x)
        if model.axis_name:
            loss, gradients = jax.lax.pmean((loss, gradients), model.axis_name)
        params = jax.tree.map(lambda p, g: p - 0.5 * g, variables['params'], gradients)
        return loss, params, updates, y, dx

    full = step(Flax(pool=pool), variables, x.reshape(-1, *x.shape[2:]))
    devices = lift(lambda v, x: step(Fused(axis_name='data', pool=pool), v, x), axis_name='data', in_axes=(None, 0))
    *shared, y, dx = devices(variables, x)
    for device in range(DEVICES):
        assert_close([jax.tree.map(lambda a, d=device: a[d], part) for part in shared], list(full[:3]), 1e-12)
    # A device's loss is the mean over a quarter of the examples, so its gradients are four times as large.
    assert_close((y.reshape(full[3].shape), dx.reshape(full[4].shape) / DEVICES), full[3:], 1e-12)


def test_running_statistics_stay_in_evaluation():
    x, variables = draw((3, 4, 4, 2), jnp.float32)
    _, updates = Fused(train=False).apply(variables, x, mutable=['batch_stats'])
    jax.tree.map(np.testing.assert_array_equal, updates['batch_stats'], variables['batch_stats'])


@pytest.mark.parametrize(('train', 'pool', 'barriers'), [(False, True, 0), (True, False, 2), (True, True, 3)])
def test_programs_for_accelerators_hold_few_barriers(train, pool, barriers, backend):
    """None of those that a CPU needs; in training, those that keep XLA from writing what two operations read.

    And sums in pairs, forward and back.
    """
    x, variables = draw((3, 4, 4, 2), jnp.float32)
    step = jax.jit(lambda v, x: loss_and_gradients(Fused(train, pool=pool), v, x))
    program = step.trace(variables, x).lower(lowering_platforms=('cuda' if backend == 'gpu' else 'cpu',)).as_text()
    count = program.count('stablehlo.optimization_barrier')
    assert count == barriers if backend == 'gpu' else count > barriers
    assert program.count(':2 = stablehlo.reduce(') == (2 if train and backend == 'gpu' else 0)  # two sums at once


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="must be 'relu', 'relu6' or None"):
        BatchNorm(True, activation='gelu').init(jax.random.key(0), jnp.ones((2, 3)))
