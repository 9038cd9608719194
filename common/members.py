"""Who is trained: one model, or many in one program: one for every group of examples (a ticker), or for every seed."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from common.data.dataset import Split
from common.errors import UsageError
from common.task import Task
from common.types import Array, Batch, Predictions, Tree


@dataclasses.dataclass(frozen=True)
class Members:
    """Who is trained: a single model, or several whose states are stacked."""

    seeds: Sequence[int]  # of weights, order, augmentation and dropout, one a member
    by_group: bool  # whether every member has examples of its own, as `Task.members` parts them; otherwise each has all

    @property
    def count(self) -> int | None:
        """None for a single model, whose state has no member axis."""
        return len(self.seeds) if self.by_group or len(self.seeds) > 1 else None

    def keys(self) -> Array:
        """PRNG keys, [members], or a single one."""
        keys = [jax.random.key(seed) for seed in self.seeds]
        return jax.numpy.stack(keys) if self.count else keys[0]

    def rows(self, task: Task, split: Split) -> list[np.ndarray]:
        """The rows of the split that each member sees."""
        groups = task.members(split) if self.by_group else None
        return groups if groups is not None else [np.arange(len(split), dtype=np.int32)] * len(self.seeds)

    def combine(self, task: Task, parts: Sequence[Predictions], rows: Sequence[np.ndarray]) -> Predictions:
        """One prediction an example: the responsible member's, or the average over seeds."""
        if not self.by_group:
            return average(task, parts)
        place = np.argsort(np.concatenate(rows), kind='stable')
        return {name: np.concatenate([part[name] for part in parts])[place] for name in parts[0]}


def for_each[Result](function: Callable[[Tree, Tree, Batch], Result]) -> Callable[[Tree, Tree, Batch], Result]:
    """`function(state, shared, batch)` for every member of stacked states and batches, with one `shared` for all."""

    def mapped(state: Tree, shared: Tree, batch: Batch) -> Result:
        if jax.default_backend() == 'cpu':
            # A CPU has no idle lanes for the members to fill; one after the other, each finds its state in cache, and
            # a convolution does not become a grouped one.
            return lax.map(lambda member: function(member[0], shared, member[1]), (state, batch))
        return jax.vmap(function, in_axes=(0, None, 0))(state, shared, batch)

    return mapped


def average(task: Task, said: Sequence[Predictions]) -> Predictions:
    """What several models say together: the average as the task takes it, and the mean of their losses.

    What a single one says stays as it is.
    """
    if len(said) == 1:
        return said[0]
    stacked = {name: np.stack([one[name] for one in said]) for name in said[0]}
    loss = {'loss': stacked.pop('loss').mean(0)} if 'loss' in stacked else {}
    return {name: np.asarray(output) for name, output in task.average(stacked).items()} | loss


def members_of(config: ConfigDict, groups: int | None) -> Members:
    """Who is trained under `config.ensemble` seeds, where the task parts its examples into `groups` (or not).

    Raises:
      UsageError: if both are asked for.
    """
    if groups is None:
        return Members([config.seed + number for number in range(config.ensemble)], by_group=False)
    if config.ensemble > 1:
        raise UsageError('config.ensemble and one model for every group cannot be had together; set ensemble to 1')
    return Members([config.seed] * groups, by_group=True)
