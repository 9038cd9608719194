"""The time loop of an LSTM layer as one kernel for NVIDIA GPUs: states and weights stay on the chip for all steps.

As a loop of XLA's, every time step starts seven kernels, which takes longer than what they compute; cuDNN's LSTM starts
several as well. Here a program takes 16 rows of the batch through all steps. It is written in Pallas for Triton, in the
arithmetic of `common.nn.lstm`, whose own loop is taken wherever `fits` says no.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

ROWS = 16  # of the batch in a program: the fewest that the matrix units take
WARPS = 4
SIZES = (16, 32, 64)  # of layers; with 128, the recurrent weights are more than a program can hold


def fits(batch: int, hidden: int, dtype: Any) -> bool:
    """Whether such a layer can take the kernels on jax's default device; a pure function of device and shapes.

    They have been compared and timed on a GPU in float32 alone.
    """
    return batch % ROWS == 0 and hidden in SIZES and dtype == jnp.float32 and _has_kernels()


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
    (steps, batch, _), hidden = projected.shape, len(kernel)
    return _over_rows(
        _forward,
        [projected, kernel],
        [
            jax.ShapeDtypeStruct((steps, batch, hidden), jnp.float32),
            jax.ShapeDtypeStruct((steps, batch, 6, hidden), jnp.float32),
        ],
        interpret,
    )


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
    gates = jax.ShapeDtypeStruct((*output_gradient.shape[:2], len(kernel)), jnp.float32)
    return _over_rows(_backward, [output_gradient, factors, kernel], [gates], interpret)[0]


def _over_rows(program: Any, inputs: Sequence[Any], outputs: Sequence[Any], interpret: bool) -> Any:
    """Runs `program` on every ROWS rows of arrays [steps, batch, ...] and the whole of the last input, the kernel."""
    # Only where it is needed: the import takes a fifth of a second.
    from jax.experimental import pallas
    from jax.experimental.pallas import triton

    def rows_of(array: Any) -> pallas.BlockSpec:
        rest = array.shape[2:]
        return pallas.BlockSpec((array.shape[0], ROWS, *rest), lambda part: (0, part, *(0 for _ in rest)))

    *by_rows, kernel = inputs
    return pallas.pallas_call(
        program,
        grid=(outputs[0].shape[1] // ROWS,),
        in_specs=[*map(rows_of, by_rows), pallas.BlockSpec(kernel.shape, lambda _: (0, 0))],
        out_specs=[rows_of(output) for output in outputs],
        out_shape=outputs,
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        name=f'lstm{program.__name__}',
    )(*inputs)


def _forward(projected: Any, kernel: Any, hidden_out: Any, factors_out: Any) -> None:
    steps, rows, size = hidden_out.shape
    columns = _columns(size)
    kernels = [kernel[:, gate] for gate in columns]

    def read(step: Any) -> list[jax.Array]:
        return [projected[step, :, gate] for gate in columns]

    def advance(step: Any, carry: Any) -> Any:
        hidden, cell, inputs = carry
        following = read(jnp.minimum(step + 1, steps - 1))  # asked for early: it takes longer than a step's arithmetic
        i, f, g, o = (x + _dot(hidden, weights) for x, weights in zip(inputs, kernels, strict=True))
        i, f, g, o = _sigmoid(i), _sigmoid(f), jnp.tanh(g), _sigmoid(o)
        new_cell = f * cell + i * g
        squashed = jnp.tanh(new_cell)
        hidden = o * squashed
        hidden_out[step] = hidden
        to_gates = g * i * (1 - i), cell * f * (1 - f), i * (1 - g * g), squashed * o * (1 - o)
        for number, factor in enumerate([*to_gates, o * (1 - squashed * squashed), f]):
            factors_out[step, :, number] = factor
        return hidden, new_cell, following

    zero = jnp.zeros((rows, size), jnp.float32)
    lax.fori_loop(0, steps, advance, (zero, zero, read(0)))


def _backward(output_gradient: Any, factors: Any, kernel: Any, gates_out: Any) -> None:
    steps, rows, size = output_gradient.shape
    columns = _columns(size)
    kernels = [kernel[gate] for gate in columns]

    def read(step: Any) -> list[jax.Array]:
        return [output_gradient[step], *(factors[step, :, number] for number in range(6))]

    def retreat(done: Any, carry: Any) -> Any:
        step = steps - 1 - done
        hidden_gradient, cell_gradient, (output, to_i, to_f, to_g, to_o, to_cell, to_previous_cell) = carry
        following = read(jnp.maximum(step - 1, 0))
        hidden_gradient += output
        cell_gradient += hidden_gradient * to_cell
        gates = cell_gradient * to_i, cell_gradient * to_f, cell_gradient * to_g, hidden_gradient * to_o
        for gate, gradient in zip(columns, gates, strict=True):
            gates_out[step, :, gate] = gradient
        hidden_gradient = sum(_dot(gradient, weights) for gradient, weights in zip(gates, kernels, strict=True))
        return hidden_gradient, cell_gradient * to_previous_cell, following

    zero = jnp.zeros((rows, size), jnp.float32)
    lax.fori_loop(0, steps, retreat, (zero, zero, read(steps - 1)))


def _columns(size: int) -> list[slice]:
    """Those of each gate."""
    return [slice(gate * size, (gate + 1) * size) for gate in range(4)]


def _sigmoid(x: jax.Array) -> jax.Array:
    return 1 / (1 + jnp.exp(-x))


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """In float32 with TF32, as XLA multiplies, unless jax is told otherwise; Triton's own default is another."""
    precision = None if jax.config.jax_default_matmul_precision else lax.Precision.DEFAULT
    return jnp.dot(a, b, preferred_element_type=jnp.float32, precision=precision)
