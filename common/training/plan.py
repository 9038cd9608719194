"""What a training delivers to its steps: which examples at each step, and how many steps in a dispatch."""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from common.data.order import spread, training_order
from common.members import Members


class TrainingPlan:
    """What every dispatch of a training delivers: the steps it takes and, at each, every member's examples."""

    def __init__(
        self,
        config: ConfigDict,
        classes: np.ndarray | None,
        members: Members,
        rows: Sequence[np.ndarray],
        devices: int,
    ):
        self._orders = [
            training_order(
                len(chosen),
                config.batch_size,
                seed,
                config.data.sampling,
                classes[chosen] if classes is not None else None,
            )
            for seed, chosen in zip(members.seeds, rows, strict=True)
        ]
        self._rows, self._devices = rows, devices
        self.batch_size = config.batch_size
        self.steps_per_epoch = max(order.steps_per_epoch for order in self._orders)

    def index(self, step: int) -> np.ndarray:
        """int32 [members * batch_size], rows of the training split, spread over devices."""
        chosen = [rows[order(step)] for rows, order in zip(self._rows, self._orders, strict=True)]
        return spread(np.stack(chosen).astype(np.int32), self._devices)

    def dispatches(self, chunks: Sequence[tuple[int, int]]) -> 'Dispatches':
        """The deliveries for chunks (first step, number of steps)."""
        return Dispatches(self, chunks)


class Dispatches:
    """A `transport.Plan` over chunks of training steps."""

    def __init__(self, plan: TrainingPlan, chunks: Sequence[tuple[int, int]]):
        self._plan, self._chunks = plan, chunks

    def __len__(self) -> int:
        return len(self._chunks)

    def __getitem__(self, item: int) -> tuple[np.ndarray, np.ndarray]:
        first, count = self._chunks[item]
        index = np.stack([self._plan.index(step) for step in range(first, first + count)])
        return index, np.ones(index.shape, np.float32)


def chunks(first: int, total: int, boundary: int, size: int) -> list[tuple[int, int]]:
    """(step, number of steps) of every dispatch: `size` steps where they fit before an evaluation, else one.

    A function of the absolute step alone, so that a resumed run cuts its steps where the first one did.
    """
    chunks, step = [], first
    while step < total:
        left = min((step // boundary + 1) * boundary, total) - step
        chunks.append((step, size if size <= left else 1))
        step += chunks[-1][1]
    return chunks
