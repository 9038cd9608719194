"""Stacked LSTM layers (Hochreiter and Schmidhuber 1997) whose time loop holds nothing but the recurrence itself.

What does not wait for another step is done for all steps at once, outside the loop: the projection of the inputs
and every weight gradient. The forward loop leaves the coefficients of the backward one, which therefore only
multiplies and adds. Layers may share one loop as a *wavefront*: in step `s` layer `l` is at time `s - l`, so that
no layer waits for another within a step.

On a CPU, barriers keep XLA from fusing these pieces together again or computing them twice; they change no value. On
other devices a step should be few kernels: there are no barriers, and all that a step keeps is two arrays.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.dtypes import canonicalize_dtype

from common.nn.layers import Dropout
from common.runtime import cpu_barrier
from common.types import Tree

GATES = ('i', 'f', 'g', 'o')  # input, forget, candidate, output: the order of the 4 * hidden columns


class Weights(NamedTuple):
    """The parameters of one layer in one direction."""

    input_kernel: jax.Array  # [features, 4 * hidden]
    recurrent_kernel: jax.Array  # [hidden, 4 * hidden]
    bias: jax.Array  # [4 * hidden]


class LSTM(nn.Module):
    """A stack of LSTM layers that start from zero states, initialised as Flax initialises its LSTM cells.

    It can be vmapped over parameters and data together. It can be differentiated in reverse mode only.

    Attributes:
      hidden_size: units of each layer in each direction.
      num_layers: layers in the stack.
      dropout_rate: of the dropout between layers, for which see `common.nn.layers`; none follows the last layer.
      bidirectional: each layer also reads the sequence from its end; those outputs follow the others.
      dtype: of products and outputs, by default that of inputs and parameters promoted. Cell states and
        sums are float32 at least.
      param_dtype: of the parameters.
    """

    hidden_size: int
    num_layers: int = 1
    dropout_rate: float = 0.0
    bidirectional: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps x [batch, time, features] to outputs [batch, time, hidden], twice as wide if bidirectional."""
        x = x.astype(canonicalize_dtype(x, jnp.zeros((), self.param_dtype), dtype=self.dtype))
        separate = self.bidirectional or (train and self.dropout_rate > 0)
        depth = 1 if separate else _layers_per_loop(x.shape[0])
        for bottom in range(0, self.num_layers, depth):
            if bottom > 0:
                x = Dropout(self.dropout_rate)(x, train=train)
            features, layers = x.shape[-1], []
            for level in range(bottom, min(bottom + depth, self.num_layers)):
                layers.append(self._weights(f'layer_{level}', features))
                features = self.hidden_size
            inputs = x.swapaxes(0, 1)
            outputs = _run(inputs, tuple(layers))
            if self.bidirectional:
                backward = self._weights(f'layer_{bottom}_backward', x.shape[-1])
                outputs = jnp.concatenate([outputs, _run(inputs[::-1], (backward,))[::-1]], axis=-1)
            x = outputs.swapaxes(0, 1)
        return x

    def _weights(self, name: str, features: int) -> Weights:
        return Weights(**self.param(name, _init_layer, features, self.hidden_size, self.param_dtype))


def _init_layer(key: jax.Array, features: int, hidden_size: int, dtype: Any) -> dict[str, jax.Array]:
    input_key, *gate_keys = jax.random.split(key, 1 + len(GATES))
    columns, orthogonal = len(GATES) * hidden_size, nn.initializers.orthogonal()
    squares = [orthogonal(gate_key, (hidden_size, hidden_size), dtype) for gate_key in gate_keys]
    return Weights(
        input_kernel=nn.initializers.lecun_normal()(input_key, (features, columns), dtype),
        recurrent_kernel=jnp.concatenate(squares, axis=1),
        bias=jnp.zeros(columns, dtype),
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


def _layers_per_loop(batch: int) -> int:
    """How many stacked layers share one time loop.

    A wavefront pays once the products of a step are large enough to run beside each other; below that, its wider
    products and longer step cost more than they save.
    """
    return 2 if batch >= 256 else 1


class _Saved(NamedTuple):
    """What a layer keeps of its steps for the backward pass.

    The factors are those on the gradients to the gates, from the cell (i, f, g) or the hidden state (o); from the
    hidden state to the cell; and from the cell to the previous one.
    """

    hidden: jax.Array  # [steps, batch, hidden]
    factors: jax.Array  # [steps, batch, 6, hidden]


@jax.custom_vjp
def _run(x: jax.Array, layers: tuple[Weights, ...]) -> jax.Array:
    """Runs stacked layers over x [time, batch, features] in one loop; gives [time, batch, hidden] of the top one."""
    return _run_forward(x, layers)[0]


def _run_forward(x: jax.Array, layers: tuple[Weights, ...]) -> tuple[jax.Array, Tree]:
    dtype, wide, lag = x.dtype, _wide(x.dtype), len(layers) - 1
    x = jnp.pad(x, ((0, lag), (0, 0), (0, 0)))  # the bottom layer idles while the top one ends
    kernels = cpu_barrier(_loop_kernels(dtype, layers))
    biases = [layer.bias.astype(wide) for layer in layers]
    # What each layer adds to its product. Without a bias a cell whose inputs are zero stays at zero, and that is
    # where an upper layer must be when the wave reaches it.
    addends = [cpu_barrier(_product(x, layers[0].input_kernel.astype(dtype)) + biases[0])]
    for level in range(1, len(layers)):
        reached = np.arange(len(x))[:, None, None] >= level
        addends.append(jnp.where(reached, biases[level], 0))

    def step(carry: Tree, addends: Tree) -> tuple[Tree, Tree]:
        states, saved = [], []
        for level, (hidden, cell) in enumerate(carry):
            if level > 0:
                hidden = cpu_barrier(jnp.concatenate([carry[level - 1][0], hidden], axis=-1))
            gates = _activate(cpu_barrier(_product(hidden, kernels[level])) + addends[level])
            state, factors = _advance(gates, cell)
            states.append((state[0].astype(dtype), state[1]))
            saved.append(_Saved(states[level][0], factors.astype(dtype)))
        return tuple(states), tuple(saved)

    shape = (x.shape[1], layers[0].recurrent_kernel.shape[0])
    zero = jnp.zeros(shape, dtype), jnp.zeros(shape, wide)
    saved = _loop(step, (zero,) * len(layers), tuple(addends))
    return saved[-1].hidden[lag:], (x, layers, saved)


def _run_backward(residuals: Tree, output_gradient: jax.Array) -> tuple[jax.Array, tuple[Weights, ...]]:
    x, layers, saved = residuals
    dtype, wide, lag = x.dtype, _wide(x.dtype), len(layers) - 1
    _, batch, hidden_size = saved[0].hidden.shape
    output_gradient = jnp.pad(output_gradient.astype(wide), ((lag, 0), (0, 0), (0, 0)))
    kernels = cpu_barrier(tuple(kernel.T for kernel in _loop_kernels(dtype, layers)))
    is_output_gate = np.array([gate == 'o' for gate in GATES])[:, None]

    def step(carry: Tree, inputs: Tree) -> tuple[Tree, Tree]:
        output_gradient, factors = inputs
        gate_gradients, products, cell_gradients = [], [], []
        for level, (hidden_gradient, cell_gradient) in enumerate(carry):
            if level == lag:
                hidden_gradient = cpu_barrier(hidden_gradient + output_gradient)
            to_gates, to_cell, to_previous_cell = factors[level][:, :4], factors[level][:, 4], factors[level][:, 5]
            cell_gradient = cpu_barrier(cell_gradient + hidden_gradient * to_cell)
            sources = jnp.where(is_output_gate, hidden_gradient[:, None], cell_gradient[:, None])
            gate_gradients.append(cpu_barrier((sources * to_gates).reshape(batch, -1).astype(dtype)))
            products.append(cpu_barrier(_product(gate_gradients[level], kernels[level])))
            cell_gradients.append(cell_gradient * to_previous_cell)
        hidden_gradients = [product[:, -hidden_size:] for product in products]
        for level in range(lag):
            hidden_gradients[level] += products[level + 1][:, :hidden_size]
        return tuple(zip(hidden_gradients, cell_gradients, strict=True)), tuple(gate_gradients)

    zero = jnp.zeros((batch, hidden_size), wide)
    inputs = cpu_barrier(output_gradient), tuple(layer.factors for layer in saved)
    gate_gradients = _loop(step, ((zero, zero),) * len(layers), inputs, reverse=True)

    gate_gradients = cpu_barrier(gate_gradients)
    bottom_kernel = cpu_barrier(layers[0].input_kernel.astype(dtype).T)
    x_gradient = _product(gate_gradients[0], bottom_kernel)[: len(x) - lag].astype(dtype)
    # Before its time 0 a layer's gradient means nothing; the states it would meet there are zero, and the sum
    # for the bias leaves it out. After its last time it is zero.
    gradients = []
    for level, (layer, gate_gradient) in enumerate(zip(layers, gate_gradients, strict=True)):
        gradient = Weights(
            input_kernel=_sum_outer(x if level == 0 else _previous(saved[level - 1].hidden), gate_gradient),
            recurrent_kernel=_sum_outer(_previous(saved[level].hidden), gate_gradient),
            bias=gate_gradient[level:].sum((0, 1), wide),
        )
        gradients.append(jax.tree.map(lambda g, weights: g.astype(weights.dtype), gradient, layer))
    return x_gradient, tuple(gradients)


_run.defvjp(_run_forward, _run_backward)


def _loop(step: Callable, carry: Tree, inputs: Tree, reverse: bool = False) -> Tree:
    """What a scan gives out a step; on accelerators, where the time goes into starting kernels, four steps a turn."""

    def scan(unroll: int) -> Callable:
        return lambda carry, inputs: jax.lax.scan(step, carry, inputs, reverse=reverse, unroll=unroll)[1]

    return jax.lax.platform_dependent(carry, inputs, cpu=scan(1), default=scan(4))


def _loop_kernels(dtype: Any, layers: tuple[Weights, ...]) -> tuple[jax.Array, ...]:
    """One kernel a layer: the bottom one multiplies its own hidden state, the others that of the layer below too."""
    upper = [jnp.concatenate([layer.input_kernel, layer.recurrent_kernel]) for layer in layers[1:]]
    return tuple(kernel.astype(dtype) for kernel in (layers[0].recurrent_kernel, *upper))


def _activate(z: jax.Array) -> jax.Array:
    """All gates by one tanh, since sigmoid(z) = tanh(z / 2) / 2 + 1 / 2."""
    is_candidate = np.repeat([gate == 'g' for gate in GATES], z.shape[-1] // len(GATES))
    scale, offset = np.where(is_candidate, 1, 0.5).astype(z.dtype), np.where(is_candidate, 0, 0.5).astype(z.dtype)
    return cpu_barrier(jnp.tanh(z * scale) * scale + offset)


def _advance(gates: jax.Array, cell: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """From activated gates and the cell: the new (hidden, cell), and the factors that `_Saved` keeps."""
    i, f, g, o = jnp.split(gates, len(GATES), axis=-1)
    new_cell = cpu_barrier(f * cell + i * g)
    squashed = cpu_barrier(jnp.tanh(new_cell))
    to_gates = g * i * (1 - i), cell * f * (1 - f), i * (1 - g * g), squashed * o * (1 - o)
    factors = cpu_barrier(jnp.stack([*to_gates, o * (1 - squashed * squashed), f], axis=1))
    return (cpu_barrier(o * squashed), new_cell), factors


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
