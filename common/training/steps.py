"""The training step: one pure function of one device's part of a batch, for one model or for many at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from common.data.augment import example_keys
from common.data.transport import complete
from common.members import for_each
from common.nn.layers import examples_from
from common.runtime import AXIS
from common.state import TrainState
from common.task import Task
from common.training.optim import global_norm
from common.types import Array, Batch, Tree

type Step = Callable[[TrainState, Tree, Batch], tuple[TrainState, dict[str, Array]]]


def init_state(
    model: Any, optimizer: optax.GradientTransformation, key: Array, inputs: Tree, *, average: bool
) -> TrainState:
    """A fresh state; `inputs` is an example batch as `Task.preprocess` gives it, of any batch size.

    With `key` [members], the state of an ensemble: every leaf has a leading axis [members].
    """

    def init(key: Array) -> TrainState:
        init_key, step_key = jax.random.split(key)
        collections = model.init(init_key, inputs, train=False)
        params = collections.pop('params')
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            collections=collections,
            opt_state=optimizer.init(params),
            average=params if average else None,
            key=jax.random.key_data(step_key),
            learning_rate_scale=jnp.ones((), jnp.float32),
        )

    return (jax.vmap(init) if key.ndim else init)(key)


def make_train_step(
    task: Task,
    model: Any,
    optimizer: optax.GradientTransformation,
    *,
    members: int | None,
    accumulate: int,
    ema_decay: float,
    stop_gradients: Callable[[Tree], Tree],
) -> Step:
    """The per-device function `step(state, shared, batch) -> (state, metrics)`.

    It must run over the device axis AXIS (see `runtime.DataParallel.lift`). The leaves of `batch` are
    [steps, batch / devices, ...]; the steps are taken one after the other, and metrics are [steps] each, or
    [steps, members]. The gradient is the mean over the whole batch of all devices, equal to what one device would
    compute: losses come per example, are masked here and nowhere else, and are divided by the global count.

    Args:
      members: size of an ensemble whose states are stacked; the batch then holds [members, batch] flattened. None for
        a single model.
      accumulate: parts into which each device's batch is cut, one after the other, to save memory.
      ema_decay: of `state.average`.
      stop_gradients: cuts off parameters that are not to be trained, see `optim.stop_gradients`.
    """

    def one_step(state: TrainState, shared: Tree, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step))
        batch = complete(batch, shared)
        size = batch['mask'].shape[0]
        first = lax.axis_index(AXIS) * size
        batch = task.preprocess(batch, shared['tables'], example_keys(augment_key, first + jnp.arange(size)))
        weight = batch['mask'] / lax.pmean(batch['mask'].sum(), AXIS)

        def weighted_loss(
            params: Tree, collections: Tree, part: Batch, weight: Array, first: Array
        ) -> tuple[Array, Any]:
            with examples_from(first):
                outputs, updated = model.apply(
                    {'params': stop_gradients(params), **collections},
                    part['inputs'],
                    train=True,
                    mutable=list(collections),
                    rngs={'dropout': dropout_key},
                )
            losses = task.loss(outputs, part, train=True)
            # `loss` is what evaluation computes, so that both sides can be compared; `objective` is what is minimised.
            metrics = {'objective': losses, 'loss': task.loss(outputs, part, train=False)}
            metrics |= task.step_metrics(outputs, part)
            return (weight * losses).sum(), (
                updated,
                {name: (weight * value).sum() for name, value in metrics.items()},
            )

        gradient = jax.grad(weighted_loss, has_aux=True)
        if accumulate == 1:
            grads, (collections, metrics) = gradient(state.params, state.collections, batch, weight, first)
        else:
            grads, (collections, metrics) = _accumulated(gradient, state, batch, weight, first, accumulate)
        grads, metrics = lax.pmean((grads, metrics), AXIS)
        metrics['gradient_norm'] = global_norm(grads)
        return _apply(state, optimizer, grads, collections, ema_decay), metrics

    steps = _scanned(one_step)
    return _for_members(steps, members) if members else steps


def _scanned(one_step: Step) -> Step:
    """The step taken for every leading index of the batch, metrics [steps]."""

    def steps(state: TrainState, shared: Tree, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        if batch['mask'].shape[0] == 1:  # a scan of one would only hide the step from the compiler
            state, metrics = one_step(state, shared, jax.tree.map(lambda x: x[0], batch))
            return state, jax.tree.map(lambda x: x[None], metrics)
        return lax.scan(lambda state, batch: one_step(state, shared, batch), state, batch)

    return steps


def _for_members(steps: Step, members: int) -> Step:
    """The steps of every member of an ensemble, metrics [steps, members]."""

    def cut(x: Array) -> Array:
        return x.reshape(x.shape[0], members, -1, *x.shape[2:]).swapaxes(0, 1)

    def member_steps(state: TrainState, shared: Tree, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        state, metrics = for_each(steps)(state, shared, jax.tree.map(cut, batch))
        return state, jax.tree.map(lambda x: x.swapaxes(0, 1), metrics)

    return member_steps


def _accumulated(
    gradient: Callable, state: TrainState, batch: Batch, weight: Array, first: Array, parts: int
) -> tuple[Tree, Any]:
    """Sums the gradient over `parts` slices of the batch; normalisation statistics are those of a slice."""

    def cut(x: Array) -> Array:
        return x.reshape(parts, -1, *x.shape[1:])

    def add(carry: Any, sliced: Any) -> tuple[Any, None]:
        grads, collections, metrics = carry
        part, weight, first = sliced
        new, (collections, more) = gradient(state.params, collections, part, weight, first)
        return (jax.tree.map(jnp.add, grads, new), collections, jax.tree.map(jnp.add, metrics, more)), None

    sliced = (jax.tree.map(cut, dict(batch)), cut(weight), first + jnp.arange(0, len(weight), len(weight) // parts))
    shapes = jax.eval_shape(gradient, state.params, state.collections, *jax.tree.map(lambda x: x[0], sliced))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0], shapes[1][1]))
    (grads, collections, metrics), _ = lax.scan(add, (zeros[0], state.collections, zeros[1]), sliced)
    return grads, (collections, metrics)


def _apply(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    grads: Tree,
    collections: Tree,
    ema_decay: float,
) -> TrainState:
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = jax.tree.map(lambda p, u: p + state.learning_rate_scale * u, state.params, updates)
    average = state.average
    if average is not None:
        # Early on, the average forgets its random start faster than `ema_decay` would.
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        average = jax.tree.map(lambda a, p: a + (1.0 - decay) * (p - a), average, params)  # exact where p stays
    return state.replace(
        step=state.step + 1, params=params, collections=collections, opt_state=opt_state, average=average
    )
