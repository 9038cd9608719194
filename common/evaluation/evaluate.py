"""Exact evaluation: every example of a split once, padding masked, what the model said gathered on the host."""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from common.data.order import once, spread
from common.data.transport import IN_FLIGHT, Transport, complete
from common.members import for_each
from common.nn.convolutions import bfloat16
from common.runtime import AXIS, DataParallel
from common.task import Task
from common.types import Array, Batch, Predictions, Tree


class Evaluator:
    """Runs a model over splits; compiled once per batch shape.

    With `members`, the variables have a leading axis [members], and each member sees its own rows. With `views`,
    predictions are averaged over what `Task.views` makes of every example, and have no `loss`.
    """

    def __init__(
        self,
        task: Task,
        model: Any,
        parallel: DataParallel,
        *,
        members: int | None = None,
        views: str | None = None,
    ):
        self._parallel, self._members = parallel, members
        options = bfloat16.options(task.config.precision, task.config.convolution)
        self._call = {
            labelled: parallel.lift(_per_device(task, model, members, labelled, views), options=options)
            for labelled in (True, False)
        }

    def __call__(
        self,
        variables: Tree,
        transport: Transport,
        rows: Sequence[np.ndarray],
        batch_size: int,
        *,
        labelled: bool = True,
    ) -> list[Predictions]:
        """What each member says of its `rows` (int [examples of the member]), in their order.

        Returns:
          One `Predictions` a member (one altogether without members): what `Task.outputs` gives and, where the
          split is labelled, `loss`, each [rows, ...].
        """
        devices = len(self._parallel)
        per_member = -(-min(batch_size, max(map(len, rows))) // devices) * devices
        in_flight: collections.deque[Any] = collections.deque()
        host: list[dict[str, np.ndarray]] = []
        for batch in transport.batches(_plan(rows, per_member, devices)):
            in_flight.append(self._call[labelled](variables, transport.shared, batch))
            if len(in_flight) > IN_FLIGHT:  # the device stays busy, its memory bounded
                host.append(jax.tree.map(np.asarray, in_flight.popleft()))
        host += [jax.tree.map(np.asarray, part) for part in in_flight]
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *host)  # [members, examples, ...]
        return [
            {name: leaf[member, : len(chosen)] for name, leaf in joined.items()} for member, chosen in enumerate(rows)
        ]


def _plan(rows: Sequence[np.ndarray], batch_size: int, devices: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every member's rows once, as a `transport.Plan`."""
    batches = zip(*once(rows, batch_size), strict=True)
    return [(spread(index, devices)[None], spread(mask, devices)[None]) for index, mask in batches]


def _per_device(task: Task, model: Any, members: int | None, labelled: bool, views: str | None) -> Callable:
    def see(variables: Tree, tables: Tree, batch: Batch) -> dict[str, Array]:
        batch = task.preprocess(batch, tables, None)
        outputs = model.apply(variables, batch['inputs'], train=False)
        loss = {'loss': task.loss(outputs, batch, train=False)} if labelled and not views else {}
        return task.outputs(outputs, batch) | loss

    def one(variables: Tree, shared: Tree, batch: Batch) -> dict[str, Array]:
        batch = complete(batch, shared)
        if not views:
            return see(variables, shared['tables'], batch)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *task.views(views, batch))
        return task.average(lax.map(lambda view: see(variables, shared['tables'], view), stacked))

    def call(variables: Tree, shared: Tree, batch: Batch) -> dict[str, Array]:
        batch = jax.tree.map(lambda x: x.reshape(members or 1, -1, *x.shape[2:]), batch)
        if members:
            result = for_each(one)(variables, shared, batch)
        else:
            result = jax.tree.map(lambda x: x[None], one(variables, shared, jax.tree.map(lambda x: x[0], batch)))
        return lax.all_gather(result, AXIS, axis=1, tiled=True)

    return call
