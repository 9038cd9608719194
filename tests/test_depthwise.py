"""Depthwise and 1x1 convolutions say what XLA's own say, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from common.nn.conv import choose, convolution
from common.nn.convolutions import depthwise, pointwise
from common.nn.convolutions.direct import DIMENSIONS
from tests.test_conv import assert_close, draw, gradients_of


def depthwise_case(batch, height, width, channels, side, stride, dtype=jnp.float64):
    y = (batch, -(-height // stride), -(-width // stride), channels)
    return draw(0, (batch, height, width, channels), (side, side, 1, channels), y, dtype=dtype)


def run(path, x, w, g, stride, groups):
    """y, dx and dw."""
    return gradients_of(convolution(path), stride, groups)(x, w, g)


@pytest.mark.parametrize(('side', 'stride'), [(3, 1), (3, 2), (5, 1), (5, 2), (3, 3), (1, 2)])
@pytest.mark.parametrize(('batch', 'height', 'width', 'channels'), [(3, 7, 10, 4), (2, 1, 2, 3), (2, 42, 3, 2)])
def test_depthwise_is_exact_in_float64(float64, batch, height, width, channels, side, stride):
    x, w, g = depthwise_case(batch, height, width, channels, side, stride)
    assert_close(run('depthwise', x, w, g, stride, channels), run('direct', x, w, g, stride, channels), 1e-13)


@pytest.mark.parametrize(('channels_in', 'channels_out'), [(3, 7), (7, 3), (4, 4)])
def test_pointwise_is_exact_in_float64(float64, channels_in, channels_out):
    x, w, g = draw(0, (5, 4, 3, channels_in), (1, 1, channels_in, channels_out), (5, 4, 3, channels_out))
    assert_close(run('pointwise', x, w, g, 1, 1), run('direct', x, w, g, 1, 1), 1e-13)


def test_a_batch_may_be_cut_into_chunks_of_any_size(float64, monkeypatch):
    monkeypatch.setattr(depthwise, 'ELEMENTS_PER_CHUNK', 2 * 6 * 5 * 4)
    monkeypatch.setattr(pointwise, 'ROWS_PER_CHUNK', 2 * 6 * 5)
    x, w, g = depthwise_case(7, 6, 5, 4, 3, 1)
    assert_close(run('depthwise', x, w, g, 1, 4), run('direct', x, w, g, 1, 4), 1e-13)
    (w,) = draw(0, (1, 1, 4, 4))
    expected = run('direct', x, w, g, 1, 1)
    assert_close(run('pointwise', x, w, g, 1, 1), expected, 1e-13)
    assert_close(run('pointwise', *(array.astype(jnp.bfloat16) for array in (x, w, g)), 1, 1), expected, 2e-2)


@pytest.mark.parametrize(('dtype', 'relative'), [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)])
@pytest.mark.parametrize('way', ['depthwise', 'pointwise'])
def test_rounding_in_lower_precision_is_small(way, dtype, relative):
    x, w, g = depthwise_case(4, 9, 12, 16, 5, 1, dtype=dtype)
    groups = 16
    if way == 'pointwise':
        (w,), groups = draw(0, (1, 1, 16, 16), dtype=dtype), 1
    actual = run(way, x, w, g, 1, groups)
    assert [a.dtype for a in actual] == [dtype] * 3
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a, np.float64)) for a in (x, w, g)]
        assert_close(actual, run('direct', *wide, 1, groups), relative)


def test_auto_takes_them_where_they_apply_and_nowhere_else():
    def choice(w, strides=(1, 1), padding='SAME', dilation=(1, 1), groups=1):
        return choose((2, 9, 9, 8), w, strides, padding, dilation, groups, jnp.float32)

    assert choice((5, 5, 1, 8), groups=8, strides=(2, 2)) == 'depthwise'
    assert choice((1, 1, 8, 12)) == 'pointwise'
    lower = {'strides': (2, 2), 'padding': 'SAME_LOWER'}
    for options in ({'strides': (1, 2)}, {'padding': 'VALID'}, {'dilation': (2, 2)}, lower):
        assert choice((3, 3, 1, 8), groups=8, **options) == 'direct'
    assert choice((3, 3, 1, 16), groups=8) == choice((4, 4, 1, 8), groups=8) == 'direct'
    assert choice((1, 1, 8, 12), strides=(2, 2)) == choice((1, 1, 4, 8), groups=2) == 'direct'


@pytest.mark.parametrize('way', ['depthwise', 'pointwise'])
def test_programs_for_accelerators_are_xlas_own(way):
    side, groups = {'depthwise': (3, 8), 'pointwise': (1, 1)}[way]
    x, w, g = draw(0, (2, 6, 6, 8), (side, side, 8 // groups, 8), (2, 6, 6, 8), dtype=jnp.float32)

    def program(convolve):
        def gradients(x, w, g):
            numbers = {'dimension_numbers': DIMENSIONS, 'feature_group_count': groups}
            return jax.vjp(lambda x, w: convolve(x, w, (1, 1), 'SAME', **numbers), x, w)[1](g)

        return jax.jit(gradients).trace(x, w, g).lower(lowering_platforms=('cuda',)).as_text()

    convolutions = program(convolution()).count('stablehlo.convolution')
    assert convolutions == program(lax.conv_general_dilated).count('stablehlo.convolution') == 2
    assert 'optimization_barrier' not in program(convolution())
