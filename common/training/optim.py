"""Optimizers and learning-rate schedules by name, from optax."""

from collections.abc import Callable

import jax
import optax
from ml_collections import ConfigDict

from common.config import choose
from common.errors import UsageError
from common.types import Tree


def make_schedule(config: ConfigDict, total_steps: int, to_steps: Callable[[str], int]) -> optax.Schedule:
    """The learning rate at every step as `config.schedule` says; `to_steps` converts durations.

    A plateau schedule is constant here: what it lowers is `TrainState.learning_rate_scale`.
    """
    peak, schedule = config.optimizer.learning_rate, config.schedule
    warmup = to_steps(schedule.warmup)
    if warmup >= total_steps:
        raise UsageError(f'config.schedule.warmup takes {warmup} of {total_steps} steps; make it shorter')
    after = total_steps - warmup
    shapes = {
        'constant': lambda: optax.constant_schedule(peak),
        'plateau': lambda: optax.constant_schedule(peak),
        'cosine': lambda: optax.cosine_decay_schedule(peak, after),
        'step': lambda: optax.piecewise_constant_schedule(
            peak, {max(to_steps(milestone) - warmup, 0): schedule.factor for milestone in schedule.milestones}
        ),
    }
    decay = choose(shapes, schedule.name, 'schedule.name')()
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def make_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer of `config.optimizer`; weight decay is decoupled and spares biases and normalisation."""
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
    clip = [optax.clip_by_global_norm(settings.gradient_clip)] if settings.gradient_clip else []
    return optax.chain(*clip, *rule, optax.scale_by_learning_rate(schedule))


def is_kernel(params: Tree) -> Tree:
    """True for weights that multiply (two axes and more), which decay; False for biases and scales."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
