"""Stacked LSTM layers (Hochreiter and Schmidhuber 1997) whose time loop holds nothing but the recurrence itself.

What does not wait for another step is done for all steps at once, outside the loop: the projection of the inputs
and every weight gradient. The forward loop leaves the coefficients of the backward one, which therefore only
multiplies and adds.

On a CPU, barriers keep XLA from fusing these pieces together again or computing them twice; they change no value. On
other devices a step should be few kernels: there are no barriers, and a step keeps no more than three arrays. On NVIDIA
GPUs, layers that fit take all their steps in one kernel (`common.nn.lstm_kernel`).
"""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from common.nn import lstm_kernel
from common.nn.layers import Dropout
from common.runtime import cpu_barrier
from common.types import Tree

TOLERANCE = 1e-2  # between a kernel and a loop that both multiply in TF32, which rounds to 5e-4
GATES = ('i', 'f', 'g', 'o')  # input, forget, candidate, output: the order of the 4 * hidden columns


class Weights(NamedTuple):
    """The parameters of one layer in one direction."""

    input_kernel: jax.Array  # [features, 4 * hidden]
    recurrent_kernel: jax.Array  # [hidden, 4 * hidden]
    bias: jax.Array  # [4 * hidden]


class LSTM(nn.Module):
    """A stack of LSTM layers that start from zero states, initialised as Flax initialises its LSTM cells.

    It can be vmapped over parameters and data together. It can be differentiated in reverse mode only.
    """

    hidden_size: int  # units of each layer in each direction
    num_layers: int = 1
    # of the dropout between layers, for which see `common.nn.layers`; none follows the last layer
    dropout_rate: float = 0.0
    bidirectional: bool = False  # each layer also reads the sequence from its end; those outputs follow the others
    # of products and outputs, by default the inputs', float32 at least, as cell states and sums always are
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps x [batch, time, features] to outputs [batch, time, hidden], twice as wide if bidirectional."""
        x = x.astype(self.dtype or _wide(x.dtype))
        for level in range(self.num_layers):
            if level > 0:
                x = Dropout(self.dropout_rate)(x, train=train)
            inputs = x.swapaxes(0, 1)
            outputs = _run(inputs, self._weights(f'layer_{level}', x.shape[-1]))
            if self.bidirectional:
                backward = self._weights(f'layer_{level}_backward', x.shape[-1])
                outputs = jnp.concatenate([outputs, _run(inputs[::-1], backward)[::-1]], axis=-1)
            x = outputs.swapaxes(0, 1)
        return x

    def _weights(self, name: str, features: int) -> Weights:
        return Weights(**self.param(name, _init_layer, features, self.hidden_size))


def _init_layer(key: jax.Array, features: int, hidden_size: int) -> dict[str, jax.Array]:
    input_key, *gate_keys = jax.random.split(key, 1 + len(GATES))
    columns, orthogonal = len(GATES) * hidden_size, nn.initializers.orthogonal()
    squares = [orthogonal(gate_key, (hidden_size, hidden_size), jnp.float32) for gate_key in gate_keys]
    return Weights(
        input_kernel=nn.initializers.lecun_normal()(input_key, (features, columns), jnp.float32),
        recurrent_kernel=jnp.concatenate(squares, axis=1),
        bias=jnp.zeros(columns, jnp.float32),
    )._asdict()


def from_flax_cell(params: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Converts the parameters of a Flax `LSTMCell` or `OptimizedLSTMCell` to those of one `LSTM` layer."""
    return Weights(
        input_kernel=jnp.concatenate([params[f'i{gate}']['kernel'] for gate in GATES], axis=-1),
        recurrent_kernel=jnp.concatenate([params[f'h{gate}']['kernel'] for gate in GATES], axis=-1),
        bias=jnp.concatenate([params[f'h{gate}']['bias'] for gate in GATES], axis=-1),
    )._asdict()


def to_flax_cell(params: Mapping[str, Any]) -> dict[str, dict[str, jax.Array]]:
    """Converts the parameters of one `LSTM` layer to those of a Flax `LSTMCell` or `OptimizedLSTMCell`."""
    cell: dict[str, dict[str, jax.Array]] = {}
    pieces = (jnp.split(params[name], len(GATES), axis=-1) for name in Weights._fields)
    for gate, input_kernel, recurrent_kernel, bias in zip(GATES, *pieces, strict=True):
        cell[f'i{gate}'] = {'kernel': input_kernel}
        cell[f'h{gate}'] = {'kernel': recurrent_kernel, 'bias': bias}
    return cell


@jax.custom_vjp
def _run(x: jax.Array, weights: Weights) -> jax.Array:
    """One layer over x [time, batch, features]; gives [time, batch, hidden]."""
    return _run_forward(x, weights)[0]


def _run_forward(x: jax.Array, weights: Weights) -> tuple[jax.Array, Tree]:
    dtype, wide = x.dtype, _wide(x.dtype)
    recurrent_kernel = cpu_barrier(weights.recurrent_kernel.astype(dtype))
    projected = cpu_barrier(_product(x, weights.input_kernel.astype(dtype)) + weights.bias.astype(wide))
    steps = lstm_kernel.forward if _takes_kernel(len(recurrent_kernel), dtype) else _steps_forward
    hidden, factors = steps(projected, recurrent_kernel)
    return hidden, (x, weights, hidden, factors)


class _Factors(NamedTuple):
    """What the loops keep of every step for the backward pass: the factors on gradients that flow back.

    One row a step, for XLA puts rows of few numbers in their place one number at a time.
    """

    to_gates: jax.Array  # from the cell (i, f, g) or the hidden state (o), [steps, batch * 4 * hidden]
    to_cells: jax.Array  # from the hidden state to the cell, from the cell to the last, [steps, batch * 2 * hidden]


def _steps_forward(projected: jax.Array, recurrent_kernel: jax.Array) -> tuple[jax.Array, _Factors]:
    """All steps: hidden states [steps, batch, hidden], from the inputs' part of the gates [steps, batch, 4 * hidden].

    A step's factors take the place of its part of the gates, so that no memory need be cleared for them.
    """
    (steps, batch, columns), size, dtype = projected.shape, len(recurrent_kernel), recurrent_kernel.dtype

    def step(carry: Tree, at: jax.Array) -> Tree:
        hidden, cell, outputs, kept = carry
        projected = kept.to_gates[at].reshape(batch, columns)
        gates = _activate(cpu_barrier(_product(hidden, recurrent_kernel)) + projected)
        (hidden, cell), to_gates, to_cells = _advance(gates, cell)
        hidden = hidden.astype(dtype)
        kept = _Factors(_put(kept.to_gates, to_gates, at), _put(kept.to_cells, to_cells, at))
        return hidden, cell, _put(outputs, hidden, at), kept

    wide = projected.dtype
    kept = _Factors(projected.reshape(steps, -1), jnp.zeros((steps, batch * 2 * size), wide))
    start = jnp.zeros((batch, size), dtype), jnp.zeros((batch, size), wide), jnp.zeros((steps, batch * size), dtype)
    _, _, outputs, kept = _loop(step, (*start, kept), jnp.arange(steps))
    return outputs.reshape(steps, batch, size), kept


def _run_backward(residuals: Tree, output_gradient: jax.Array) -> tuple[jax.Array, Weights]:
    x, weights, hidden, factors = residuals
    dtype, wide = x.dtype, _wide(x.dtype)
    kernel = cpu_barrier(weights.recurrent_kernel.astype(dtype).T)
    steps = lstm_kernel.backward if _takes_kernel(kernel.shape[1], dtype) else _steps_backward
    gate_gradients = cpu_barrier(steps(output_gradient.astype(wide), factors, kernel))
    input_kernel = cpu_barrier(weights.input_kernel.astype(dtype).T)
    gradients = Weights(
        input_kernel=_sum_outer(x, gate_gradients),
        recurrent_kernel=_sum_outer(_previous(hidden), gate_gradients),
        bias=gate_gradients.sum((0, 1), wide),
    )
    gradients = jax.tree.map(lambda gradient, weights: gradient.astype(weights.dtype), gradients, weights)
    return _product(gate_gradients, input_kernel).astype(dtype), gradients


def _steps_backward(output_gradient: jax.Array, factors: _Factors, kernel: jax.Array) -> jax.Array:
    """The gradients to the gates [steps, batch, 4 * hidden], before their activation; the kernel is transposed.

    Each takes the place of its factors.
    """
    (steps, batch, size), dtype = output_gradient.shape, kernel.dtype
    is_output_gate = np.array([gate == 'o' for gate in GATES])[:, None]
    output_gradient = cpu_barrier(output_gradient)

    def step(carry: Tree, at: jax.Array) -> Tree:
        hidden_gradient, cell_gradient, gates = carry
        to_gates, to_cells = gates[at].reshape(batch, 4, size), factors.to_cells[at].reshape(batch, 2, size)
        hidden_gradient = cpu_barrier(hidden_gradient + output_gradient[at])
        cell_gradient = cpu_barrier(cell_gradient + hidden_gradient * to_cells[:, 0])
        sources = jnp.where(is_output_gate, hidden_gradient[:, None], cell_gradient[:, None])
        # Flattened only afterwards: a product with the reshape inside is one of single numbers.
        gate_gradient = cpu_barrier((sources * to_gates).astype(dtype)).reshape(batch, -1)
        product = cpu_barrier(_product(gate_gradient, kernel))
        return product, cell_gradient * to_cells[:, 1], _put(gates, gate_gradient, at)

    zero = jnp.zeros((batch, size), output_gradient.dtype)
    gates = _loop(step, (zero, zero, factors.to_gates), jnp.arange(steps)[::-1])[-1]
    return gates.reshape(steps, batch, -1).astype(dtype)


_run.defvjp(_run_forward, _run_backward)


def _takes_kernel(hidden: int, dtype: Any) -> bool:
    return lstm_kernel.fits(hidden, dtype) and _kernel_agrees()


@functools.cache
def _kernel_agrees() -> bool:
    """Whether the kernels run on this machine and give the numbers of the loops, in cases of three steps."""
    size, random = max(lstm_kernel.SIZES), np.random.default_rng(0)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def run(forward: Callable, backward: Callable, projected: Any, kernel: Any, gradient: Any) -> Sequence[jax.Array]:
        hidden, factors = forward(projected, kernel)
        return hidden, backward(gradient, factors, kernel.T)

    def distance(batch: int) -> float:
        shapes = (3, batch, 4 * size), (size, 4 * size), (3, batch, size)
        drawn = [random.normal(size=shape).astype(np.float32) for shape in shapes]
        want, got = run(_steps_forward, _steps_backward, *drawn), run(lstm_kernel.forward, lstm_kernel.backward, *drawn)
        # A NaN is the largest.
        return np.max([jnp.linalg.norm(a - b) / jnp.linalg.norm(b) for a, b in zip(got, want, strict=True)])

    try:
        with ThreadPoolExecutor(1) as elsewhere:  # for in this thread a model is being traced
            apart = np.max([*elsewhere.map(distance, lstm_kernel.CASES)])
        trouble = '' if apart < TOLERANCE else f'gives other numbers than the loop (relative distance {apart:.1e})'
    except Exception as error:  # Pallas for Triton is deprecated: a release of jax can fail in any way
        trouble = f'does not run ({type(error).__name__}: {error})'
    if trouble:
        warnings.warn(f'the LSTM kernel {trouble}: LSTMs take a slower loop', stacklevel=2)
    return not trouble


def _loop(step: Callable, carry: Tree, order: jax.Array) -> Tree:
    """What is carried to the end; on accelerators, where the time goes into starting kernels, four steps a turn."""

    def scan(unroll: int) -> Callable:
        return lambda carry, order: jax.lax.scan(lambda c, at: (step(c, at), None), carry, order, unroll=unroll)[0]

    return jax.lax.platform_dependent(carry, order, cpu=scan(1), default=scan(4))


def _put(rows: jax.Array, row: jax.Array, at: jax.Array) -> jax.Array:
    """`rows` with `row`, flattened, at its place."""
    flat = cpu_barrier(row.reshape(-1).astype(rows.dtype))
    return jax.lax.dynamic_update_index_in_dim(rows, flat, at, 0)


def _activate(z: jax.Array) -> jax.Array:
    """All gates by one tanh, since sigmoid(z) = tanh(z / 2) / 2 + 1 / 2."""
    is_candidate = np.repeat([gate == 'g' for gate in GATES], z.shape[-1] // len(GATES))
    scale, offset = np.where(is_candidate, 1, 0.5).astype(z.dtype), np.where(is_candidate, 0, 0.5).astype(z.dtype)
    return cpu_barrier(jnp.tanh(z * scale) * scale + offset)


def _advance(gates: jax.Array, cell: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array, jax.Array]:
    """From activated gates and the cell: the new (hidden, cell), and the factors, [batch, 4 or 2, hidden]."""
    i, f, g, o = jnp.split(gates, len(GATES), axis=-1)
    new_cell = cpu_barrier(f * cell + i * g)
    squashed = cpu_barrier(jnp.tanh(new_cell))
    to_gates = g * i * (1 - i), cell * f * (1 - f), i * (1 - g * g), squashed * o * (1 - o)
    to_cells = o * (1 - squashed * squashed), f
    return (
        (cpu_barrier(o * squashed), new_cell),
        cpu_barrier(jnp.stack(to_gates, axis=1)),
        cpu_barrier(jnp.stack(to_cells, axis=1)),
    )


def _previous(states: jax.Array) -> jax.Array:
    """States [steps, ...] one step later, after a zero state."""
    return jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])


def _sum_outer(inputs: jax.Array, gradient: jax.Array) -> jax.Array:
    """The weight gradient inputs^T gradient, summed over steps and batch by one product."""
    # The transpose is written out first: as an operand it is slow on a CPU.
    transposed = cpu_barrier(inputs.reshape(-1, inputs.shape[-1]).T)
    return _product(transposed, gradient.reshape(-1, gradient.shape[-1]))


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.dot(a, b, preferred_element_type=_wide(a.dtype))


def _wide(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)
