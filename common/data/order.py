"""Which examples make up which step: pure functions of the seed and the step, over the global batch."""

import functools
from collections.abc import Sequence

import numpy as np

from common.errors import DataError, UsageError


class Order:
    """The examples of every training step.

    An epoch is a permutation of the examples, cut into whole batches (what is left over is other examples in
    every epoch). Balanced, an epoch has the same length but draws every class equally often: small classes
    repeat, each time through a new permutation, and large ones show another part of themselves.
    """

    def __init__(self, num_examples: int, batch_size: int, seed: int, classes: np.ndarray | None = None):
        """`classes` int32 [examples] asks for balanced sampling.

        Raises:
          DataError: where there are fewer examples than one batch.
        """
        if num_examples < batch_size:
            raise DataError(
                f'{num_examples} training examples are fewer than one batch of {batch_size}: '
                'lower config.batch_size or bring more data'
            )
        self.num_examples, self.batch_size, self.seed = num_examples, batch_size, seed
        self.steps_per_epoch = num_examples // batch_size
        self._members = None if classes is None else [np.flatnonzero(classes == c) for c in np.unique(classes)]
        self._epoch = functools.lru_cache(maxsize=4)(self._make_epoch)  # reader threads straddle two epochs

    def __call__(self, step: int) -> np.ndarray:
        """int32 [batch_size], rows of the training split."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[position * self.batch_size : (position + 1) * self.batch_size]

    def _make_epoch(self, epoch: int) -> np.ndarray:
        random = np.random.Generator(np.random.Philox(key=(self.seed, epoch)))
        if self._members is None:
            return random.permutation(self.num_examples).astype(np.int32)
        length = self.steps_per_epoch * self.batch_size
        shares = np.full(len(self._members), length // len(self._members))
        shares[random.permutation(len(shares))[: length % len(shares)]] += 1
        drawn = [_repeat_permuted(random, rows, share) for rows, share in zip(self._members, shares, strict=True)]
        return random.permutation(np.concatenate(drawn)).astype(np.int32)


def _repeat_permuted(random: np.random.Generator, rows: np.ndarray, length: int) -> np.ndarray:
    rounds = -(-length // len(rows))
    return np.concatenate([random.permutation(rows) for _ in range(rounds)])[:length]


def training_order(num_examples: int, batch_size: int, seed: int, sampling: str, classes: np.ndarray | None) -> Order:
    """The order that `config.data.sampling` names."""
    if sampling == 'uniform':
        return Order(num_examples, batch_size, seed)
    if sampling != 'balanced':
        raise UsageError(f'config.data.sampling is {sampling!r}; it may be uniform or balanced')
    if classes is None:
        raise UsageError('config.data.sampling is balanced, but the examples of this task have no classes')
    return Order(num_examples, batch_size, seed, classes)


def once(rows: Sequence[np.ndarray], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Each member's `rows`, int [examples of the member], exactly once and in order.

    Returns:
      index: int32 [batches, members, batch_size], filled up with row 0, also for a member without rows.
      mask: float32 of the same shape; 0 where filled up.
    """
    batches = -(-max(map(len, rows)) // batch_size)
    index = np.zeros((len(rows), batches * batch_size), np.int32)
    mask = np.zeros(index.shape, np.float32)
    for member, chosen in enumerate(rows):
        index[member, : len(chosen)], mask[member, : len(chosen)] = chosen, 1
    shape = (len(rows), batches, batch_size)
    return index.reshape(shape).swapaxes(0, 1), mask.reshape(shape).swapaxes(0, 1)


def spread(rows: np.ndarray, devices: int) -> np.ndarray:
    """[members, batch] -> [devices * members * batch / devices], a part of every member for every device."""
    return rows.reshape(len(rows), devices, -1).swapaxes(0, 1).reshape(-1)
