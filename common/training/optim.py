"""Optimizers and learning-rate schedules by name, from optax."""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from ml_collections import ConfigDict

from common.config import choose, pairs
from common.errors import UsageError
from common.types import Tree

type Pairs = Sequence[tuple[str, Any]]  # a prefix of parameter names, and a value for what begins with it


def make_schedule(config: ConfigDict, total_steps: int, to_steps: Callable[[str], int]) -> optax.Schedule:
    """The learning rate at every step as `config.schedule` says; `to_steps` converts durations.

    A plateau schedule is constant here: what it lowers is `TrainState.learning_rate_scale`.
    """
    peak, schedule = config.optimizer.learning_rate, config.schedule
    warmup = to_steps(schedule.warmup)
    if warmup >= total_steps:
        raise UsageError(f'config.schedule.warmup takes {warmup} of {total_steps} steps; make it shorter, e.g. 0steps')
    after = total_steps - warmup

    def drops() -> dict[int, float]:  # by step after the warmup, to which several milestones may come down
        steps = collections.Counter(max(to_steps(milestone) - warmup, 0) for milestone in schedule.milestones)
        return {step: schedule.factor**count for step, count in steps.items()}

    shapes = {
        'constant': lambda: optax.constant_schedule(peak),
        'plateau': lambda: optax.constant_schedule(peak),
        'cosine': lambda: optax.cosine_decay_schedule(peak, after),
        'step': lambda: optax.piecewise_constant_schedule(peak, drops()),
    }
    decay = choose(shapes, schedule.name, 'schedule.name')()
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def make_optimizer(
    config: ConfigDict, schedule: optax.Schedule, to_steps: Callable[[str], int]
) -> optax.GradientTransformation:
    """The optimizer of `config.optimizer`; weight decay spares biases and normalisation.

    Decay is decoupled in adamw (Loshchilov and Hutter 2019); in sgd it goes through the momentum, as in PyTorch's, and
    works 1 / (1 - momentum) times as much.

    Parts may have learning rates of their own (`scales`), or stay as they are for a while (`freeze`): to the bit, also
    under weight decay, while their moments are kept up so that they begin smoothly. Only parameters are frozen: a
    frozen BatchNorm goes on normalising by its batch and keeping running statistics.
    """
    settings = config.optimizer
    if settings.name == 'adam' and settings.weight_decay:
        raise UsageError('config.optimizer.weight_decay needs adamw or sgd; set it to 0 for adam')
    decay = (
        optax.add_decayed_weights(settings.weight_decay, mask=is_kernel) if settings.weight_decay else optax.identity()
    )
    rules = {
        'adam': lambda: [optax.scale_by_adam()],
        'adamw': lambda: [optax.scale_by_adam(), decay],
        'sgd': lambda: [
            decay,
            optax.trace(settings.momentum, nesterov=True) if settings.momentum else optax.identity(),
        ],
    }
    rule = choose(rules, settings.name, 'optimizer.name')()
    clip = [_clipped(settings.gradient_clip)] if settings.gradient_clip else []
    return optax.chain(
        *clip,
        *rule,
        optax.scale_by_learning_rate(schedule),
        _scaled(pairs(settings.scales, 'optimizer.scales')),
        _frozen(_until(config, to_steps)),
    )


def global_norm(tree: Tree) -> jax.Array:
    """The 2-norm of all leaves together.

    Elsewhere than on a CPU, a sum a column comes first: XLA takes it while it updates the parameter, where a leaf's
    whole sum is a kernel more to finish.
    """
    if jax.default_backend() == 'cpu':
        return optax.tree.norm(tree)
    squares = [jnp.square(leaf).sum(tuple(range(leaf.ndim - 1))).reshape(-1) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(lax.optimization_barrier(jnp.concatenate(squares or [jnp.zeros(1)])).sum())


def _clipped(most: float) -> optax.GradientTransformation:
    """As `optax.clip_by_global_norm`, by the norm that the metrics have: it is computed once."""

    def clip(updates: Tree, state: Any, params: Tree | None = None) -> tuple[Tree, Any]:
        del params
        norm = global_norm(updates)
        return jax.tree.map(lambda u: lax.select(norm < most, u, (u / norm.astype(u.dtype)) * most), updates), state

    return optax.GradientTransformation(optax.init_empty_state, clip)


def _scaled(scales: Pairs) -> optax.GradientTransformation:
    def factors(params: Tree) -> Tree:
        return by_prefix(scales, params, 1.0, 'optimizer.scales')

    def init(params: Tree) -> optax.EmptyState:
        factors(params)  # a wrong prefix is told before anything is compiled
        return optax.EmptyState()

    def scale(updates: Tree, state: Any, params: Tree | None = None) -> tuple[Tree, Any]:
        del params
        return jax.tree.map(lambda update, factor: update * factor, updates, factors(updates)), state

    return optax.GradientTransformation(init, scale) if scales else optax.identity()


def _frozen(until: Pairs) -> optax.GradientTransformation:
    """Stops the updates of frozen parts until their step has come."""

    def begins(params: Tree) -> Tree:
        return by_prefix(until, params, 0, 'optimizer.freeze')

    def init(params: Tree) -> jax.Array:
        begins(params)
        return jnp.zeros((), jnp.int32)

    def hold(updates: Tree, step: jax.Array, params: Tree | None = None) -> tuple[Tree, jax.Array]:
        del params
        # -0.0 is what leaves every number as it is; 0.0 would turn -0.0.
        held = jax.tree.map(
            lambda update, begin: jnp.where(step < begin, -0.0, update).astype(update.dtype), updates, begins(updates)
        )
        return held, step + 1

    return optax.GradientTransformation(init, hold) if until else optax.identity()


def stop_gradients(config: ConfigDict, to_steps: Callable[[str], int], total_steps: int) -> Callable[[Tree], Tree]:
    """A function of parameters that cuts off those that `config.optimizer.freeze` holds to the end of the training.

    The loss is taken of what it returns: gradients that nobody needs are not computed, nor counted in their norm.
    """
    until = _until(config, to_steps)

    def stop(params: Tree) -> Tree:
        begins = by_prefix(until, params, 0, 'optimizer.freeze')
        return jax.tree.map(lambda p, begin: jax.lax.stop_gradient(p) if begin >= total_steps else p, params, begins)

    return stop


def _until(config: ConfigDict, to_steps: Callable[[str], int]) -> Pairs:
    return [(prefix, to_steps(duration)) for prefix, duration in pairs(config.optimizer.freeze, 'optimizer.freeze')]


def by_prefix(values: Pairs, params: Tree, otherwise: Any, key: str) -> Tree:
    """A value for every parameter: that of the longest prefix of its name (whole words, as 'backbone.stem').

    Raises:
      UsageError: a prefix is not that of any parameter; `key` names the config value.
    """
    names = jax.tree.map_with_path(lambda path, _: jax.tree_util.keystr(path, simple=True, separator='.'), params)
    ordered = sorted(values, key=lambda pair: len(pair[0]), reverse=True)
    for prefix, _ in ordered:
        if not any(_begins(name, prefix) for name in jax.tree.leaves(names)):
            known = ', '.join(jax.tree.leaves(names))
            raise UsageError(f'config.{key}: no parameter begins with {prefix!r}; there are {known}')
    return jax.tree.map(
        lambda name: next((value for prefix, value in ordered if _begins(name, prefix)), otherwise), names
    )


def _begins(name: str, prefix: str) -> bool:
    return f'{name}.'.startswith(f'{prefix}.')


def is_kernel(params: Tree) -> Tree:
    """True for weights that multiply (two axes and more), which decay; False for biases and scales."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
