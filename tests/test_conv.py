"""The fast convolutions say what XLA's own says, wherever they are taken."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from common.errors import UsageError
from common.nn.conv import WAYS, choose, convolution
from common.nn.convolutions.chunks import map_chunks, shared
from common.nn.convolutions.direct import DIMENSIONS
from common.nn.normalisation import BatchNorm
from common.nn.pooling import max_pool


def draw(seed, *shapes, dtype=jnp.float64):
    generator = np.random.default_rng(seed)
    return [jnp.asarray(generator.normal(size=shape), dtype) for shape in shapes]


def gradients_of(convolve, stride=1, groups=1):
    """x, w and the gradient g with respect to y -> y, dx and dw of a convolution."""
    options = {'dimension_numbers': DIMENSIONS, 'feature_group_count': groups}

    @jax.jit
    def run(x, w, g):
        y, pull_back = jax.vjp(lambda x, w: convolve(x, w, (stride, stride), 'SAME', **options), x, w)
        return y, *pull_back(g)

    return run


def result_and_gradients(convolve, x, w, g):
    return gradients_of(convolve)(x, w, g)


def assert_close(actual, expected, relative):
    """Within `relative` of the largest number expected, and of its dtype unless another precision is compared."""
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype or relative > 1e-10
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        np.testing.assert_allclose(one, other, rtol=0, atol=relative * max(1e-30, np.abs(other).max()))


def convolve_by_hand(x, w):
    x = np.pad(np.asarray(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1] - 2, x.shape[2] - 2
    return sum(
        x[:, row : row + height, column : column + width] @ np.asarray(w)[row, column]
        for row in range(3)
        for column in range(3)
    )


@pytest.mark.parametrize(
    ('way', 'batch', 'height', 'width', 'channels_in', 'channels_out'),
    [
        ('winograd', 1, 8, 8, 4, 8),
        ('winograd', 7, 5, 6, 3, 5),
        ('winograd', 3, 1, 9, 2, 2),
        ('winograd_weight_gradient', 5, 4, 13, 8, 4),
        ('products', 5, 4, 13, 8, 4),
        ('bfloat16', 5, 4, 13, 8, 4),
        ('bfloat16', 3, 1, 9, 2, 3),
        ('winograd_rows', 2, 8, 5, 4, 3),
        ('winograd_rows', 7, 6, 9, 3, 5),
        ('winograd_rows', 3, 1, 1, 2, 2),
        ('few_channels', 7, 5, 6, 1, 4),
        ('few_channels', 1, 1, 9, 2, 3),
        ('few_channels_weight_gradient', 3, 7, 4, 3, 5),
    ],
)
def test_every_way_is_exact_in_float64(float64, way, batch, height, width, channels_in, channels_out):
    x, w, g = draw(
        batch,
        (batch, height, width, channels_in),
        (3, 3, channels_in, channels_out),
        (batch, height, width, channels_out),
    )
    expected = result_and_gradients(convolution('direct'), x, w, g)
    assert_close(expected[0], convolve_by_hand(x, w), 1e-13)
    assert_close(result_and_gradients(convolution(way), x, w, g), expected, 1e-12)


@pytest.mark.parametrize('stride', [1, 2, 3, 5])
@pytest.mark.parametrize('shape', [(3, 7, 8, 3), (2, 6, 5, 1), (1, 2, 9, 2)])
def test_few_channels_may_have_any_stride(float64, shape, stride):
    size = [-(-length // stride) for length in shape[1:3]]
    x, w, g = draw(1, shape, (3, 3, shape[-1], 5), (shape[0], *size, 5))
    actual, expected = (gradients_of(convolution(path), stride)(x, w, g) for path in ('few_channels', 'direct'))
    assert_close(actual, expected, 1e-12)


@pytest.mark.parametrize(('devices', 'expected'), [(1, 4 * 7), (2, 7)])
def test_a_chunk_is_as_large_as_the_cores_at_it_can_use(monkeypatch, devices, expected):
    monkeypatch.setattr(jax, 'local_device_count', lambda: devices)
    assert shared(7) == expected


@pytest.mark.parametrize('batch', [14, 67])
@pytest.mark.parametrize('way', ['winograd', 'bfloat16', 'winograd_rows'])
def test_a_batch_may_be_cut_into_any_chunks(float64, monkeypatch, way, batch):
    monkeypatch.setattr('common.nn.convolutions.winograd.TILES_PER_CHUNK', (4 * 7, 4 * 7))
    monkeypatch.setattr('common.nn.convolutions.products.PIXELS_PER_CHUNK', 7 * 7 * 7)
    monkeypatch.setattr('common.nn.convolutions.winograd_rows.PIXELS_PER_CHUNK', 7 * 7 * 7)
    x, w, g = draw(1, (batch, 7, 7, 2), (3, 3, 2, 4), (batch, 7, 7, 4))
    expected = result_and_gradients(convolution('direct'), x, w, g)
    assert_close(result_and_gradients(convolution(way), x, w, g), expected, 1e-12)


@pytest.mark.parametrize(
    ('batch', 'limit', 'chunks'),
    [(64, 6, (8, 8)), (64, 4, (16, 4)), (67, 6, (12, 6)), (7, 4, (2, 4)), (5, 9, (1, 5)), (3, 0, (3, 1))],
)
def test_chunks_fill_a_batch_up_only_where_none_fits(batch, limit, chunks):
    x = jnp.arange(1, batch + 1)
    y = map_chunks(lambda chunk: chunk * 2, limit, x)
    assert y.shape == chunks
    np.testing.assert_array_equal(y.reshape(-1)[:batch], 2 * x)
    assert not y.reshape(-1)[batch:].any()


@pytest.mark.parametrize(('dtype', 'relative'), [(jnp.float32, 2e-5), (jnp.bfloat16, 1e-2)])
@pytest.mark.parametrize(
    ('way', 'channels_in'), [('winograd', 48), ('few_channels', 1), ('few_channels_weight_gradient', 3)]
)
def test_rounding_in_lower_precision_is_small(way, channels_in, dtype, relative):
    x, w, g = draw(2, (6, 13, 12, channels_in), (3, 3, channels_in, 40), (6, 13, 12, 40), dtype=dtype)
    actual = result_and_gradients(convolution(way), x, w, g)
    assert [a.dtype for a in actual] == [dtype] * 3
    wide = [np.asarray(a, np.float64) for a in (x, w, g)]
    with jax.enable_x64(True):
        assert_close(actual, result_and_gradients(convolution('direct'), *map(jnp.asarray, wide)), relative)


@pytest.mark.parametrize(
    ('kernel', 'options'),
    [
        ((5, 5), {}),
        ((1, 1), {}),
        ((3, 3), {'strides': 2}),
        ((3, 3), {'padding': 'VALID'}),
        ((3, 3), {'padding': 'CIRCULAR'}),
        ((3, 3), {'padding': 2}),
        ((3, 3), {'kernel_dilation': 2}),
        ((3, 3), {'input_dilation': 2, 'padding': ((1, 1), (1, 1))}),
        ((3, 3), {'feature_group_count': 2}),
        ((3, 3), {'precision': 'highest'}),
        ((3,), {}),
    ],
)
def test_what_no_fast_way_covers_is_xlas_own(kernel, options):
    (x,) = draw(3, (3, *(9, 8)[: len(kernel)], 64), dtype=jnp.float32)
    plain = nn.Conv(64, kernel, **options)
    routed = nn.Conv(64, kernel, **options, conv_general_dilated=convolution('winograd'))
    variables = plain.init(jax.random.key(0), x)

    def loss(model):
        return jax.jit(jax.value_and_grad(lambda v, x: jnp.sum(model.apply(v, x) ** 2), argnums=(0, 1)))

    assert 'optimization_barrier' not in loss(routed).lower(variables, x).as_text()
    jax.tree.map(np.testing.assert_array_equal, loss(routed)(variables, x), loss(plain)(variables, x))


def test_axes_in_another_order_are_xlas_own():
    x, w = draw(3, (2, 6, 6, 6), (3, 3, 6, 6), dtype=jnp.float32)
    numbers = {'dimension_numbers': ('NCHW', 'HWIO', 'NCHW')}
    expected = lax.conv_general_dilated(x, w, (1, 1), 'SAME', **numbers)
    np.testing.assert_array_equal(convolution('winograd')(x, w, (1, 1), 'SAME', **numbers), expected)


def test_direct_is_xlas_own_bit_for_bit():
    x, w, g = draw(4, (4, 12, 12, 64), (3, 3, 64, 64), (4, 12, 12, 64), dtype=jnp.float32)
    expected = result_and_gradients(lax.conv_general_dilated, x, w, g)
    jax.tree.map(np.testing.assert_array_equal, result_and_gradients(convolution('direct'), x, w, g), expected)


def test_the_choice_depends_on_shapes_and_dtype_alone():
    def choice(x, w, strides=(1, 1), padding='SAME', dilation=(1, 1), groups=1, dtype=jnp.float32):
        return choose(x, w, strides, padding, dilation, groups, dtype)

    x, w = (64, 24, 24, 128), (3, 3, 128, 128)
    assert choice(x, w) == choice(x, w, padding=[(1, 1), (1, 1)]) == 'winograd'
    assert choice((64, 48, 48, 1), (3, 3, 1, 64)) == choice((64, 48, 48, 3), (3, 3, 3, 64)) == 'few_channels'
    assert choice((64, 48, 48, 3), (3, 3, 3, 64), strides=(2, 2)) == 'few_channels'
    assert choice((64, 48, 48, 3), (3, 3, 3, 64), strides=(2, 2), padding=[(1, 1), (1, 1)]) == 'direct'
    assert choice((64, 48, 48, 3), (3, 3, 3, 64), strides=(2, 2), padding='SAME_LOWER') == 'direct'
    assert choice((0, 24, 24, 128), w) == 'direct'
    assert choice((64, 24, 24, 32), (3, 3, 32, 32)) == 'winograd_weight_gradient'
    assert choice((64, 24, 24, 16), (3, 3, 16, 32), dtype=jnp.bfloat16) == 'direct'
    assert choice((64, 24, 24, 16), (3, 3, 16, 32)) == choice((1, 8, 8, 64), (3, 3, 64, 64)) == 'products'
    for change in ({'strides': (2, 1)}, {'padding': 'VALID'}, {'dilation': (1, 2)}, {'groups': 2}, {'dtype': jnp.int8}):
        assert choice(x, w, **change) == 'direct'


def test_a_way_in_bfloat16_depends_on_the_processor_and_on_how_much_there_is_to_multiply():
    def choice(batch, side, channels, speed, dtype=jnp.bfloat16, stride=1):
        x, w = (batch, side, side, channels), (3, 3, channels, channels)
        return choose(x, w, (stride, stride), 'SAME', (1, 1), 1, dtype, bfloat16_speed=speed)

    assert choice(64, 48, 64, 2) == choice(64, 12, 256, 2) == 'winograd_rows'
    assert choice(2, 12, 256, 2) == choice(64, 48, 32, 2) == choice(64, 5, 64, 2) == 'bfloat16'
    assert choice(64, 48, 64, 8) == choice(64, 12, 256, 8) == 'bfloat16'
    assert choice(64, 48, 3, 2) == 'few_channels_weight_gradient'
    assert choice(64, 48, 3, 2, stride=2) == 'few_channels'
    assert choice(64, 12, 256, 0) == choice(64, 48, 64, 8, jnp.float32) == 'winograd'


@pytest.mark.parametrize('way', ['direct', *WAYS])
def test_in_loops_xla_finds_no_convolution_that_it_would_have_to_rearrange(way):
    """Which it does not do there, so that the convolution takes up to a hundred times as long."""
    channels = 3 if 'few_channels' in way else 4
    x, w, g = draw(5, (2, 4, 8, 8, channels), (2, 3, 3, channels, 6), (2, 4, 8, 8, 6), dtype=jnp.float32)
    gradients = gradients_of(convolution(way))
    program = jax.jit(lambda *arrays: lax.map(lambda one: gradients(*one), arrays)).lower(x, w, g).compile().as_text()
    labels = set(re.findall(r' convolution\(.*dim_labels=(\S+?)[,\s]', program))
    assert (labels <= {'b01f_01io->b01f'}) == (way != 'direct')


@pytest.mark.parametrize('way', [*WAYS, 'few_channels'])
def test_programs_for_accelerators_hold_nothing_but_xlas_convolution(way):
    channels = 3 if 'few_channels' in way else 64
    x, w, g = draw(5, (4, 12, 12, channels), (3, 3, channels, 64), (4, 12, 12, 64), dtype=jnp.float32)

    def operations(path, platform):
        lowered = gradients_of(convolution(path)).trace(x, w, g).lower(lowering_platforms=(platform,))
        names = re.findall(r'stablehlo\.(\w+)', lowered.as_text())
        # The choice between platforms is a case with one branch, which XLA resolves.
        return sorted(name for name in names if name not in ('case', 'constant', 'return'))

    assert operations(way, 'cuda') == operations(way, 'tpu') == operations('direct', 'cuda')
    assert 'optimization_barrier' in operations(way, 'cpu')


@pytest.mark.parametrize(('lift', 'in_axes'), [(jax.pmap, (0, None, 0)), (jax.vmap, (0, 0, 0))])
@pytest.mark.parametrize('way', ['winograd', 'few_channels'])
def test_it_may_be_mapped_over_devices_and_members(float64, way, lift, in_axes):
    x, w, g = draw(6, (4, 2, 6, 6, 3), (4, 3, 3, 3, 5), (4, 2, 6, 6, 5))
    actual = lift(gradients_of(convolution(way)), in_axes=in_axes)(x, w if in_axes[1] == 0 else w[0], g)
    for member in range(4):
        weights = w[member if in_axes[1] == 0 else 0]
        expected = result_and_gradients(convolution('direct'), x[member], weights, g[member])
        assert_close([a[member] for a in actual], list(expected), 1e-12)


def test_rematerialisation_changes_no_gradient(float64):
    x, w = draw(7, (2, 8, 8, 4), (3, 3, 4, 4))

    def loss(w):
        return jnp.sum(jnp.sin(convolution('winograd')(x, w, (1, 1), 'SAME', dimension_numbers=DIMENSIONS)))

    assert_close(jax.jit(jax.grad(jax.checkpoint(loss)))(w), jax.grad(loss)(w), 1e-13)


def test_an_unknown_path_is_refused():
    with pytest.raises(UsageError, match=r"config\.convolution is 'fastest'; it may be auto, direct"):
        convolution('fastest')


class Network(nn.Module):
    """Four convolutions, with everything from Flax or everything from here."""

    fast: bool

    @nn.compact
    def __call__(self, x):
        options = {'conv_general_dilated': convolution()} if self.fast else {}
        for layer in range(4):
            x = nn.Conv(64, (3, 3), use_bias=False, **options)(x)
            if self.fast:
                x = BatchNorm(use_running_average=False, activation='relu')(x)
            else:
                x = nn.relu(nn.BatchNorm(use_running_average=False, momentum=0.9)(x))
            if layer % 2:
                x = max_pool(x) if self.fast else nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(7)(x.reshape(x.shape[0], -1))


def test_a_whole_network_has_the_loss_and_gradients_of_plain_flax(float64):
    (x,) = draw(8, (12, 12, 8, 1))
    labels = jnp.arange(12) % 7
    assert choose((12, 12, 8, 64), (3, 3, 64, 64), (1, 1), 'SAME', (1, 1), 1, x.dtype) == 'winograd'
    variables = jax.tree.map(lambda a: a.astype(jnp.float64), Network(False).init(jax.random.key(0), x))

    def run(model):
        def loss(params):
            logits, updates = model.apply({**variables, 'params': params}, x, mutable=['batch_stats'])
            return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(12), labels]), updates

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables['params'])

    assert_close(run(Network(fast=True)), run(Network(fast=False)), 1e-11)
