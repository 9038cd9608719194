"""Stacked LSTM layers (Hochreiter and Schmidhuber 1997) whose time loop holds nothing but the recurrence itself.

Whatever does not depend on the previous step is done for all steps at once, outside the loop: the input projection,
the coefficients of the backward pass, every weight gradient. Several layers may share one loop as a *wavefront*:
at step `s` layer `l` is at time `s - l`, so that the layers of one step do not wait for each other.

Barriers keep XLA from fusing those pieces back into the loop, or from computing them twice; they change no value.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen import Dropout
from flax.linen.dtypes import canonicalize_dtype
from jax.lax import optimization_barrier

from common.types import Tree

GATES = ('i', 'f', 'g', 'o')  # input, forget, candidate, output: the order of the 4 * hidden columns


class Weights(NamedTuple):
    """The parameters of one layer in one direction."""

    input_kernel: jax.Array  # [features, 4 * hidden]
    recurrent_kernel: jax.Array  # [hidden, 4 * hidden]
    bias: jax.Array  # [4 * hidden]


class LSTM(nn.Module):
    """A stack of LSTM layers that start from zero states, initialised as Flax initialises its LSTM cells.

    It may be vmapped over parameters and data alike, one member each. Reverse-mode differentiation only.

    Attributes:
      hidden_size: units of each layer in each direction.
      num_layers: layers in the stack.
      dropout_rate: of the dropout between layers (rng 'dropout'); there is none after the last.
      bidirectional: each layer also reads the sequence from its end; these outputs follow the others.
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
        dtype = canonicalize_dtype(x, jnp.zeros((), self.param_dtype), dtype=self.dtype)
        outputs_size = self.hidden_size * (2 if self.bidirectional else 1)
        sizes = [x.shape[-1]] + [outputs_size] * (self.num_layers - 1)
        layers = [self._weights(f'layer_{layer}', size) for layer, size in enumerate(sizes)]
        x = x.astype(dtype)
        separate = self.bidirectional or (train and self.dropout_rate > 0)
        depth = 1 if separate else _layers_per_loop(x.shape[0])
        for bottom in range(0, self.num_layers, depth):
            if bottom > 0:
                x = Dropout(self.dropout_rate)(x, deterministic=not train)
            inputs = x.swapaxes(0, 1)
            outputs = _run(inputs, tuple(layers[bottom : bottom + depth]))
            if self.bidirectional:
                backward = self._weights(f'layer_{bottom}_backward', sizes[bottom])
                reversed_outputs = _run(inputs[::-1], (backward,))[::-1]
                outputs = jnp.concatenate([outputs, reversed_outputs], axis=-1)
            x = outputs.swapaxes(0, 1)
        return x

    def _weights(self, name: str, features: int) -> Weights:
        return _LayerWeights(features, self.hidden_size, self.param_dtype, name=name)()


class _LayerWeights(nn.Module):
    features: int
    hidden_size: int
    param_dtype: Any

    @nn.compact
    def __call__(self) -> Weights:
        columns = len(GATES) * self.hidden_size
        shapes = (self.features, columns), (self.hidden_size, columns), (columns,)
        initializers = nn.initializers.lecun_normal(), _orthogonal_per_gate, nn.initializers.zeros_init()
        return Weights(
            *(
                self.param(name, initializer, shape, self.param_dtype)
                for name, initializer, shape in zip(Weights._fields, initializers, shapes, strict=True)
            )
        )


def _orthogonal_per_gate(key: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
    square = (shape[0], shape[1] // len(GATES))
    orthogonal = nn.initializers.orthogonal()
    return jnp.concatenate([orthogonal(k, square, dtype) for k in jax.random.split(key, len(GATES))], axis=1)


def from_flax_cell(params: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Converts the parameters of a Flax `LSTMCell` or `OptimizedLSTMCell` to those of one `LSTM` layer."""
    return Weights(
        input_kernel=jnp.concatenate([params[f'i{gate}']['kernel'] for gate in GATES], axis=-1),
        recurrent_kernel=jnp.concatenate([params[f'h{gate}']['kernel'] for gate in GATES], axis=-1),
        bias=jnp.concatenate([params[f'h{gate}']['bias'] for gate in GATES], axis=-1),
    )._asdict()


def to_flax_cell(params: Mapping[str, Any]) -> dict[str, dict[str, jax.Array]]:
    """Converts the parameters of one `LSTM` layer to those of a Flax `LSTMCell` or `OptimizedLSTMCell`."""
    pieces = Weights(*(jnp.split(params[name], len(GATES), axis=-1) for name in Weights._fields))
    cell = {f'i{gate}': {'kernel': kernel} for gate, kernel in zip(GATES, pieces.input_kernel, strict=True)}
    for gate, kernel, bias in zip(GATES, pieces.recurrent_kernel, pieces.bias, strict=True):
        cell[f'h{gate}'] = {'kernel': kernel, 'bias': bias}
    return cell


def _layers_per_loop(batch: int) -> int:
    """How many stacked layers share one time loop."""
    return 2 if batch >= 128 else 1


class _States(NamedTuple):
    """What one layer leaves for its backward pass, each [steps, batch, ...]."""

    hidden: jax.Array
    cell: jax.Array
    gates: jax.Array  # after their nonlinearities


@jax.custom_vjp
def _run(x: jax.Array, layers: tuple[Weights, ...]) -> jax.Array:
    """Runs stacked layers over x [time, batch, features] in one loop; gives the top one's [time, batch, hidden]."""
    return _run_forward(x, layers)[0]


def _run_forward(x: jax.Array, layers: tuple[Weights, ...]) -> tuple[jax.Array, Tree]:
    dtype, lag = x.dtype, len(layers) - 1
    x = jnp.pad(x, ((0, lag), (0, 0), (0, 0)))  # the bottom layer idles while the top one ends
    steps, batch, _ = x.shape
    kernels = optimization_barrier(_loop_kernels(dtype, layers))
    # What each layer adds to its product. Without a bias a cell whose inputs are zero stays at zero, which is
    # where an upper layer must be when the wave reaches it.
    addends = [optimization_barrier(_product(x, layers[0].input_kernel.astype(dtype)) + layers[0].bias)]
    for level in range(1, len(layers)):
        reached = np.arange(steps)[:, None, None] >= level
        addends.append(jnp.where(reached, layers[level].bias, 0))

    def step(carry: Tree, addends: Tree) -> Tree:
        states = []
        for level, (hidden, cell) in enumerate(carry):
            if level > 0:
                hidden = optimization_barrier(jnp.concatenate([carry[level - 1][0], hidden], axis=-1))
            gates = _activate(optimization_barrier(_product(hidden, kernels[level])) + addends[level])
            i, f, g, o = jnp.split(gates, len(GATES), axis=-1)
            cell = optimization_barrier(f * cell + i * g)
            hidden = optimization_barrier((o * jnp.tanh(cell)).astype(dtype))
            states.append(_States(hidden, cell, gates.astype(dtype)))
        return tuple((state.hidden, state.cell) for state in states), tuple(states)

    shape = (batch, layers[0].recurrent_kernel.shape[0])
    zero = jnp.zeros(shape, dtype), jnp.zeros(shape, _wide(dtype))
    _, states = jax.lax.scan(step, (zero,) * len(layers), tuple(addends))
    return states[-1].hidden[lag:], (x, layers, states)


def _run_backward(residuals: Tree, output_gradient: jax.Array) -> tuple[jax.Array, tuple[Weights, ...]]:
    x, layers, states = residuals
    dtype, lag, wide = x.dtype, len(layers) - 1, _wide(x.dtype)
    batch, hidden_size = states[0].cell.shape[1:]
    output_gradient = jnp.pad(output_gradient.astype(wide), ((lag, 0), (0, 0), (0, 0)))
    kernels = optimization_barrier(tuple(kernel.T for kernel in _loop_kernels(dtype, layers)))
    is_output_gate = np.array([gate == 'o' for gate in GATES])[:, None]

    def step(carry: Tree, inputs: Tree) -> Tree:
        output_gradient, coefficients = inputs
        gate_gradients, products, cell_gradients = [], [], []
        for level, (hidden_gradient, cell_gradient) in enumerate(carry):
            if level == lag:
                hidden_gradient = optimization_barrier(hidden_gradient + output_gradient)
            to_gates, to_cell, forget = coefficients[level]
            cell_gradient = optimization_barrier(cell_gradient + hidden_gradient * to_cell)
            arriving = jnp.where(is_output_gate, hidden_gradient[:, None], cell_gradient[:, None])
            gate_gradient = (arriving * to_gates.reshape(batch, len(GATES), hidden_size)).reshape(batch, -1)
            gate_gradients.append(optimization_barrier(gate_gradient.astype(dtype)))
            products.append(optimization_barrier(_product(gate_gradients[level], kernels[level])))
            cell_gradients.append(cell_gradient * forget)
        hidden_gradients = [product[:, -hidden_size:] for product in products]
        for level in range(lag):
            hidden_gradients[level] += products[level + 1][:, :hidden_size]
        return tuple(zip(hidden_gradients, cell_gradients, strict=True)), tuple(gate_gradients)

    zero = jnp.zeros((batch, hidden_size), wide)
    inputs = optimization_barrier(output_gradient), tuple(_coefficients(state) for state in states)
    _, gate_gradients = jax.lax.scan(step, ((zero, zero),) * len(layers), inputs, reverse=True)

    gradients = []
    for level, (layer, gate_gradient) in enumerate(zip(layers, gate_gradients, strict=True)):
        gate_gradient = optimization_barrier(gate_gradient)
        # Before a layer's time 0 its gradient means nothing; there the states are zero, and the bias leaves it out.
        below = x if level == 0 else _previous(states[level - 1].hidden)
        gradient = Weights(
            _contract_steps(below, gate_gradient),
            _contract_steps(_previous(states[level].hidden), gate_gradient),
            gate_gradient[level:].sum((0, 1), wide),
        )
        gradients.append(jax.tree.map(lambda g, weights: g.astype(weights.dtype), gradient, layer))
    bottom_kernel = optimization_barrier(layers[0].input_kernel.astype(dtype).T)
    x_gradient = _product(gate_gradients[0], bottom_kernel)[: len(x) - lag].astype(dtype)
    return x_gradient, tuple(gradients)


_run.defvjp(_run_forward, _run_backward)


def _loop_kernels(dtype: Any, layers: tuple[Weights, ...]) -> tuple[jax.Array, ...]:
    """One kernel a layer: the bottom one reads its own hidden state, the others the layer's below and their own."""
    upper = [jnp.concatenate([layer.input_kernel, layer.recurrent_kernel]) for layer in layers[1:]]
    return tuple(kernel.astype(dtype) for kernel in (layers[0].recurrent_kernel, *upper))


def _activate(z: jax.Array) -> jax.Array:
    """The four gates by one tanh, since sigmoid(z) = tanh(z / 2) / 2 + 1 / 2."""
    scale = np.repeat([1.0 if gate == 'g' else 0.5 for gate in GATES], z.shape[-1] // len(GATES)).astype(z.dtype)
    return optimization_barrier(jnp.tanh(z * scale) * scale + (1 - scale) * (scale < 1))


def _coefficients(states: _States) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The factors by which gradients pass, for all steps: to the gates, from hidden to cell, and cell to cell."""
    cell, wide_gates = states.cell, states.gates.astype(states.cell.dtype)
    i, f, g, o = jnp.split(wide_gates, len(GATES), axis=-1)
    activated = optimization_barrier(jnp.tanh(cell))
    to_gates = [g * i * (1 - i), _previous(cell) * f * (1 - f), i * (1 - g * g), activated * o * (1 - o)]
    return optimization_barrier((jnp.concatenate(to_gates, axis=-1), o * (1 - activated * activated), f))


def _previous(states: jax.Array) -> jax.Array:
    return jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])


def _contract_steps(inputs: jax.Array, gradient: jax.Array) -> jax.Array:
    """The sum over steps and batch of inputs^T gradient, as one product."""
    transposed = optimization_barrier(inputs.reshape(-1, inputs.shape[-1]).T)
    return _product(transposed, gradient.reshape(-1, gradient.shape[-1]))


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.dot(a, b, preferred_element_type=_wide(a.dtype))


def _wide(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)
