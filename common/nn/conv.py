"""A drop-in for `lax.conv_general_dilated` that takes a faster way on the CPU where one is known and wins.

Use it as `nn.Conv(..., conv_general_dilated=convolution())`. The way is chosen from shapes, dtype and the processor's
features, never by timing, so that a run can be repeated; on GPUs and TPUs the program stays XLA's own convolution.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from common.errors import UsageError
from common.nn.convolutions import (
    bfloat16,
    depthwise,
    direct,
    few_channels,
    pointwise,
    products,
    winograd,
    winograd_rows,
)
from common.nn.convolutions.choices import Layer, way_of
from common.nn.convolutions.chunks import at_least_float32
from common.nn.convolutions.direct import DIMENSIONS, Padding


class _Way(NamedTuple):
    """How a 3x3 convolution with stride 1 and SAME padding and its two gradients are computed on a CPU."""

    forward: Callable[[jax.Array, jax.Array], jax.Array]  # x, w -> y
    input_gradient: Callable[[jax.Array, jax.Array], jax.Array]  # g, w -> dx
    weight_gradient: Callable[[jax.Array, jax.Array], jax.Array]  # x, g -> dw


WAYS = {
    'winograd': _Way(winograd.convolve, winograd.input_gradient, winograd.weight_gradient),
    'winograd_weight_gradient': _Way(direct.convolve, products.input_gradient, winograd.weight_gradient),
    'products': _Way(direct.convolve, products.input_gradient, products.weight_gradient),
    # The same, by the processor's own products (`bfloat16.options`).
    'bfloat16': _Way(direct.convolve, products.input_gradient, products.weight_gradient),
    'winograd_rows': _Way(direct.convolve, winograd_rows.input_gradient, winograd_rows.weight_gradient),
    'few_channels_weight_gradient': _Way(direct.convolve, products.input_gradient, few_channels.weight_gradient),
}


def _differentiable(convolve: Callable[..., jax.Array], gradients: Callable[..., Any]) -> Callable[..., jax.Array]:
    """x, w, stride -> y by `convolve` on a CPU, its gradients by `gradients`; on other devices XLA's own."""

    @partial(jax.custom_vjp, nondiff_argnums=(2,))
    def run(x: jax.Array, w: jax.Array, stride: int) -> jax.Array:
        plain = partial(direct.convolve, stride=stride)
        return lax.platform_dependent(x, w, cpu=partial(convolve, stride=stride), default=plain)

    def forward(x: jax.Array, w: jax.Array, stride: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        return run(x, w, stride), (x, w)

    def backward(stride: int, residuals: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, ...]:
        def plain(x: jax.Array, w: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
            return jax.vjp(partial(direct.convolve, stride=stride), x, w)[1](g)

        return lax.platform_dependent(*residuals, g, cpu=partial(gradients, stride=stride), default=plain)

    run.defvjp(forward, backward)
    return run


# The ways of the other kinds, of which each has one, of its own name: x, w, stride -> y.
OWN = {
    'few_channels': _differentiable(few_channels.convolve, few_channels.gradients),
    'depthwise': _differentiable(depthwise.convolve, depthwise.gradients),
    'pointwise': _differentiable(
        lambda x, w, stride: pointwise.convolve(x, w), lambda x, w, g, stride: pointwise.gradients(x, w, g)
    ),
}


def choose(
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    strides: Sequence[int],
    padding: Padding,
    dilation: Sequence[int],
    groups: int,
    dtype: Any,
    *,
    bfloat16_speed: float = 0,
) -> str:
    """The name of the way that 'auto' takes on a CPU, a pure function of its arguments.

    Args:
        x_shape: `[batch, height, width, channels_in]`.
        w_shape: `[kernel_height, kernel_width, channels_in / groups, channels_out]`.
        strides: between windows.
        padding: 'SAME', 'VALID', or a pair (before, after) for each spatial dimension.
        dilation: of the kernel.
        groups: of the features.
        dtype: of both arrays.
        bfloat16_speed: that of the processor's own products in bfloat16, see `bfloat16.speed`.

    Returns:
        'direct', or a key of `WAYS` or `OWN` that was measured to be faster.
    """
    kind = _kind(x_shape, w_shape, strides, padding, dilation, groups, dtype)
    narrow = dtype == jnp.bfloat16 and bfloat16_speed
    if kind == 'few_channels' and narrow and set(strides) == {1}:
        return 'few_channels_weight_gradient'  # forward, the processor's own products are faster even of so few
    if kind != '3x3':
        return kind or 'direct'  # the other kinds have one way each, of their own name
    batch, height, width, channels_in = x_shape
    tiles = winograd.tiles(batch, height, width)
    if narrow:
        # Where products are as fast as with AMX, it is not known whether half of them are worth the sums.
        wins = bfloat16_speed <= 2 and tiles >= 128 and winograd_rows.gain(height, channels_in, w_shape[3]) >= 1.1
        return 'winograd_rows' if wins else 'bfloat16'
    gain = winograd.gain(height, width, channels_in, w_shape[3])
    if tiles >= 64 and gain >= 1.2:  # products of fewer rows are bound by the cost of starting them
        return 'winograd'
    if gain >= 0.85 and tiles >= 256:
        return 'winograd_weight_gradient'
    return 'direct' if dtype == jnp.bfloat16 else 'products'  # whose sums would be coarse in bfloat16


def convolution(path: str = 'auto') -> Callable[..., jax.Array]:
    """A function with the arguments and the result of `lax.conv_general_dilated`, for `nn.Conv`.

    The fast ways need arrays `[batch, height, width, channels]`, SAME padding, no dilation, equal float dtypes and
    default precision, and a kernel that is 3x3 or 1x1 with stride 1 and no groups, 3x3 over no more than three
    channels, or depthwise (a group a channel) with an odd side, the last two with the same stride both ways. They
    compute in float32, or float64 for float64 input, but for 'bfloat16', 'winograd_rows' and the weight gradients of
    few channels, whose products are of x's dtype. All else goes to XLA. Reverse-mode differentiation only, except for
    'direct'.

    Args:
        path: 'auto' for what `choose` says, 'direct' for XLA's own convolution bit for bit, or a key of `WAYS` or
            `OWN` to take that one wherever it is applicable.

    Raises:
        UsageError: no such path.
    """
    paths = ('auto', 'direct', *WAYS, *OWN)
    if path not in paths:
        raise UsageError(f'config.convolution is {path!r}; it may be {", ".join(paths)}')

    def conv_general_dilated(
        lhs: jax.Array,
        rhs: jax.Array,
        window_strides: Sequence[int],
        padding: Padding,
        lhs_dilation: Sequence[int] | None = None,
        rhs_dilation: Sequence[int] | None = None,
        dimension_numbers: Any = None,
        feature_group_count: int = 1,
        precision: Any = None,
    ) -> jax.Array:
        dilation = rhs_dilation or (1,) * (lhs.ndim - 2)
        arguments = (lhs.shape, rhs.shape, window_strides, padding, dilation, feature_group_count, lhs.dtype)
        numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        kind = _kind(*arguments)
        if kind and (
            numbers != lax.conv_dimension_numbers(lhs.shape, rhs.shape, DIMENSIONS)
            or set(lhs_dilation or (1,)) != {1}
            or lhs.dtype != rhs.dtype
            or precision is not None
        ):
            kind = None
        if kind:
            layer = Layer(lhs.shape, rhs.shape, lhs.dtype.name, window_strides[0])
            speed = bfloat16.speed()
            way = path if path != 'auto' else way_of(layer, lambda: choose(*arguments, bfloat16_speed=speed))
            if way == kind:
                return OWN[way](lhs, rhs, window_strides[0])
            if kind in ('3x3', 'few_channels') and set(window_strides) == {1} and way in WAYS:
                return _convolve(lhs, rhs, way)
        dtype = lhs.dtype
        if path in ('auto', 'bfloat16') and dtype == jnp.bfloat16 and bfloat16.speed():
            # As XLA does where it is not told otherwise; and where it is, this keeps to the region that is right.
            lhs, rhs = at_least_float32(lhs), at_least_float32(rhs)
        y = lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            precision=precision,
        )
        return y.astype(dtype)

    return conv_general_dilated


def _kind(
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    strides: Sequence[int],
    padding: Padding,
    dilation: Sequence[int],
    groups: int,
    dtype: Any,
) -> str | None:
    """'3x3', 'few_channels', 'pointwise' or 'depthwise', the kinds that have fast ways; None for all others.

    Arguments as `choose`.
    """
    plain = len(x_shape) == 4 and set(dilation) == {1} and 0 not in (*x_shape, *w_shape) and len(set(strides)) == 1
    if not plain or not jnp.issubdtype(dtype, jnp.floating):
        return None
    height, width, *_, channels_out = w_shape
    around = padding.upper() if isinstance(padding, str) else [tuple(pair) for pair in padding]
    if groups == 1 and set(strides) == {1}:
        if (height, width) == (3, 3) and around in ('SAME', 'SAME_LOWER', [(1, 1), (1, 1)]):
            return 'few_channels' if x_shape[-1] <= few_channels.MOST else '3x3'
        if (height, width) == (1, 1) and around in ('SAME', 'SAME_LOWER', 'VALID', [(0, 0), (0, 0)]):
            return 'pointwise'
    if groups == 1 and (height, width) == (3, 3) and around == 'SAME' and x_shape[-1] <= few_channels.MOST:
        return 'few_channels'
    if groups == x_shape[-1] == channels_out > 1 and height == width and height % 2 == 1 and around == 'SAME':
        return 'depthwise'
    return None


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: jax.Array, w: jax.Array, way: str) -> jax.Array:
    return lax.platform_dependent(x, w, cpu=WAYS[way].forward, default=direct.convolve)


def _forward(x: jax.Array, w: jax.Array, way: str) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(x, w, way), (x, w)


def _backward(way: str, residuals: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = residuals
    dx = lax.platform_dependent(g, w, cpu=WAYS[way].input_gradient, default=direct.input_gradient)
    dw = lax.platform_dependent(
        x,
        g,
        cpu=lambda x, g: WAYS[way].weight_gradient(x, lax.optimization_barrier(g)).astype(w.dtype),
        default=direct.weight_gradient,
    )
    return dx, dw


_convolve.defvjp(_forward, _backward)
