"""The time loop of an LSTM layer as one kernel for NVIDIA GPUs: states and weights stay on the chip for all steps.

As a loop of XLA's, every time step starts seven kernels, which takes longer than what they compute; cuDNN's LSTM starts
several as well. Here a program takes its rows of the batch through all steps. It is written in Pallas for Triton, in
the arithmetic of `common.nn.lstm`, whose own loop is taken wherever `fits` says no.

What takes time in a program is to hand numbers from thread to thread. The matrix units ask for that before and after
each product, and want sixteen rows. So a program takes one row, and multiplies without them, until there are more rows
than the GPU can run side by side; from then on sixteen in a program are faster.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

SIZES = (16, 32, 64)  # of layers; with 128, the recurrent weights are more than a program can hold
MANY = 512  # rows, of all models that are trained together, from which on a program takes a tile of them
TILE = 16  # the fewest that the matrix units take
PAIRED = (0, 2, 1, 3)  # the order of gates where (i, f) and (g, o) are stacked
FEW = 128  # rows up to which each has a multiprocessor, and can have more of its threads
CASES = (1, FEW + 1, MANY)  # batches of which each takes another program


def fits(hidden: int, dtype: Any) -> bool:
    """Whether such a layer can take the kernels on jax's default device; a pure function of device and shapes.

    They have been compared and timed on a GPU in float32 alone.
    """
    return hidden in SIZES and dtype == jnp.float32 and _has_kernels()


@functools.cache
def _has_kernels() -> bool:
    """On an NVIDIA GPU since Ampere; whether this release of jax can still compile them, `common.nn.lstm` tries out."""
    number = str(getattr(jax.devices()[0], 'compute_capability', '')).partition('.')[0]
    return number.isdigit() and int(number) >= 8


def forward(projected: jax.Array, kernel: jax.Array, *, interpret: bool = False) -> tuple[jax.Array, jax.Array]:
    """All steps of a layer, from zero states.

    Args:
      projected: the inputs' part of the gates, float32 [steps, batch, 4 * hidden].
      kernel: recurrent, float32 [hidden, 4 * hidden].
      interpret: run in Python, on any device, for tests.

    Returns:
      Hidden states [steps, batch, hidden] and the factors of the backward pass [steps, batch, 6, hidden]: the four to
      the gates and the two to the cells, as `common.nn.lstm` explains them. Both float32.
    """

    def run(rows: int, projected: jax.Array, kernel: jax.Array) -> Any:
        (steps, batch, _), hidden = projected.shape, len(kernel)
        if rows < MANY:  # the four gates of a unit beside each other, where one thread has them all
            kernel = kernel.reshape(hidden, 4, hidden).swapaxes(1, 2)
        shapes = [(steps, batch, hidden), (steps, batch, 6, hidden)]
        return _over_rows('lstm_forward', _forward, rows, [projected, kernel], shapes, interpret)

    return _with_members(run)(projected, kernel)


def backward(
    output_gradient: jax.Array, factors: jax.Array, kernel: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """The gradients to the gates of all steps, before their activation.

    Args:
      output_gradient: float32 [steps, batch, hidden].
      factors: of `forward`.
      kernel: recurrent, transposed: float32 [4 * hidden, hidden].
      interpret: as in `forward`.

    Returns:
      float32 [steps, batch, 4 * hidden].
    """

    def run(rows: int, output_gradient: jax.Array, factors: jax.Array, kernel: jax.Array) -> jax.Array:
        (steps, batch, hidden), columns = output_gradient.shape, len(kernel)
        if rows < MANY:  # as in `forward`, the gates in the order in which `_row_by_transposed` pairs them
            kernel = kernel.reshape(4, hidden, hidden)[np.array(PAIRED)].transpose(1, 2, 0)
        inputs, shapes = [output_gradient, factors, kernel], [(steps, batch, columns)]
        return _over_rows('lstm_backward', _backward, rows, inputs, shapes, interpret)[0]

    return _with_members(run)(output_gradient, factors, kernel)


def _with_members(run: Callable) -> Callable:
    """`run(rows, *arrays)`, arrays [steps, batch, ...], told the rows of all models where these are vmapped.

    Of nested vmaps, those of the innermost.
    """

    def alone(*arrays: jax.Array) -> Any:
        return run(arrays[0].shape[1], *arrays)

    def together(members: int, batched: Sequence[bool], *arrays: jax.Array) -> Any:
        rows = members * arrays[0].shape[2 if batched[0] else 1]
        outputs = jax.vmap(functools.partial(run, rows), [0 if one else None for one in batched])(*arrays)
        return outputs, jax.tree.map(lambda _: True, outputs)

    function = custom_vmap(alone)
    function.def_vmap(together)
    return function


def _over_rows(
    name: str, program: Callable, rows: int, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...]], interpret: bool
) -> list[Any]:
    """Runs `program` on every row or tile of arrays [steps, batch, ...] and the whole of the last input, the kernel.

    A tile that the batch does not fill has zeros in it. There are `rows` of all models; outputs are float32.
    """
    # Only where it is needed: the import takes a fifth of a second.
    from jax.experimental import pallas
    from jax.experimental.pallas import triton

    tiled = rows >= MANY
    steps, batch = shapes[0][:2]
    programs = -(-batch // TILE) if tiled else batch
    whole = programs * TILE if tiled else batch

    def filled(array: Any) -> Any:
        return jnp.pad(array, [(0, 0), (0, whole - batch), *[(0, 0)] * (array.ndim - 2)])

    def part_of(array: Any) -> pallas.BlockSpec:
        rest = array.shape[2:]
        shape = array.shape[0], TILE if tiled else None, *rest
        return pallas.BlockSpec(shape, lambda part: (0, part, *(0 for _ in rest)))

    *by_rows, kernel = [*map(filled, inputs[:-1]), inputs[-1]]
    outputs = [jax.ShapeDtypeStruct((steps, whole, *shape[2:]), jnp.float32) for shape in shapes]
    cost = pallas.CostEstimate(  # of the products alone, for `common.flops`
        flops=2 * steps * batch * kernel.size,
        transcendentals=0,
        bytes_accessed=sum(array.size * array.dtype.itemsize for array in [*by_rows, kernel, *outputs]),
    )
    results = pallas.pallas_call(
        functools.partial(program, tiled),
        grid=(programs,),
        in_specs=[*map(part_of, by_rows), pallas.BlockSpec(kernel.shape, lambda _: (0,) * kernel.ndim)],
        out_specs=[part_of(output) for output in outputs],
        out_shape=outputs,
        compiler_params=triton.CompilerParams(num_warps=8 if rows <= FEW else 4, num_stages=1),
        cost_estimate=cost,
        interpret=interpret,
        name=name,
    )(*by_rows, kernel)
    return [result[:, :batch] for result in results]


def _forward(tiled: bool, projected: Any, kernel: Any, hidden_out: Any, factors_out: Any) -> None:
    steps, *rows, size = hidden_out.shape
    every = (slice(None),) * len(rows)
    product = (_tile_by_kernel if tiled else _row_by_kernel)(kernel, size)

    def read(step: Any) -> list[jax.Array]:
        return [projected[step, *every, gate] for gate in _columns(size)]

    def advance(step: Any, carry: Any) -> Any:
        hidden, cell, inputs = carry
        following = read(jnp.minimum(step + 1, steps - 1))  # asked for early: it takes longer than a step's arithmetic
        i, f, g, o = (ours + theirs for ours, theirs in zip(product(hidden), inputs, strict=True))
        i, f, g, o = _sigmoid(i), _sigmoid(f), jnp.tanh(g), _sigmoid(o)
        new_cell = f * cell + i * g
        squashed = jnp.tanh(new_cell)
        hidden = o * squashed
        hidden_out[step] = hidden
        to_gates = g * i * (1 - i), cell * f * (1 - f), i * (1 - g * g), squashed * o * (1 - o)
        for number, factor in enumerate([*to_gates, o * (1 - squashed * squashed), f]):
            factors_out[step, *every, number] = factor
        return hidden, new_cell, following

    zero = jnp.zeros((*rows, size), jnp.float32)
    lax.fori_loop(0, steps, advance, (zero, zero, read(0)))


def _backward(tiled: bool, output_gradient: Any, factors: Any, kernel: Any, gates_out: Any) -> None:
    steps, *rows, size = output_gradient.shape
    every = (slice(None),) * len(rows)
    product = (_tile_by_transposed if tiled else _row_by_transposed)(kernel, size)

    def read(step: Any) -> list[jax.Array]:
        return [output_gradient[step], *(factors[step, *every, number] for number in range(6))]

    def retreat(done: Any, carry: Any) -> Any:
        step = steps - 1 - done
        hidden_gradient, cell_gradient, (output, to_i, to_f, to_g, to_o, to_cell, to_previous_cell) = carry
        following = read(jnp.maximum(step - 1, 0))
        hidden_gradient += output
        cell_gradient += hidden_gradient * to_cell
        gates = cell_gradient * to_i, cell_gradient * to_f, cell_gradient * to_g, hidden_gradient * to_o
        for gate, gradient in zip(_columns(size), gates, strict=True):
            gates_out[step, *every, gate] = gradient
        return product(gates), cell_gradient * to_previous_cell, following

    zero = jnp.zeros((*rows, size), jnp.float32)
    lax.fori_loop(0, steps, retreat, (zero, zero, read(steps - 1)))


# Products that hold the weights on the chip. From hidden states to the four gates:


def _tile_by_kernel(kernel: Any, size: int) -> Callable:
    """[TILE, size] by [size, 4 * size]."""
    kernels = [kernel[:, gate] for gate in _columns(size)]
    return lambda hidden: [_dot(hidden, weights) for weights in kernels]


def _row_by_kernel(kernel: Any, size: int) -> Callable:
    """[size] by [size, size, gate]."""
    weights, which = kernel[...], lax.broadcasted_iota(jnp.int32, (size, 4), 1)

    def product(hidden: jax.Array) -> list[jax.Array]:
        sums = (hidden[:, None, None] * weights).sum(0)
        return [jnp.where(which == gate, sums, 0.0).sum(1) for gate in range(4)]

    return product


# And back, from the gradients to the gates:


def _tile_by_transposed(kernel: Any, size: int) -> Callable:
    """Four [TILE, size] by [4 * size, size]."""
    kernels = [kernel[gate] for gate in _columns(size)]
    return lambda gates: sum(_dot(gradient, weights) for gradient, weights in zip(gates, kernels, strict=True))


def _row_by_transposed(kernel: Any, size: int) -> Callable:
    """Four [size] by [size, size, gate], the gates PAIRED."""
    weights = kernel[...]

    def product(gates: Sequence[jax.Array]) -> jax.Array:
        i, f, g, o = gates
        # Put together first, so that all four go from thread to thread at once.
        paired = jnp.stack([jnp.stack([i, f], -1), jnp.stack([g, o], -1)], -1).reshape(size, 4)
        return (paired[:, None] * weights).sum(0).sum(1)

    return product


def _columns(size: int) -> list[slice]:
    """Those of each gate."""
    return [slice(gate * size, (gate + 1) * size) for gate in range(4)]


def _sigmoid(x: jax.Array) -> jax.Array:
    return 1 / (1 + jnp.exp(-x))


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """In float32 with TF32, as XLA multiplies, unless jax is told otherwise; Triton's own default is another."""
    precision = None if jax.config.jax_default_matmul_precision else lax.Precision.DEFAULT
    return jnp.dot(a, b, preferred_element_type=jnp.float32, precision=precision)
