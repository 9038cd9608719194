"""The two ways in which examples reach the device, behind one contract, delivering the same batches bit for bit.

Streaming reads the rows of every batch on the host, ahead of time, in grain's threads. Resident puts all columns
into device memory once; what crosses then are row numbers. In both, the device ends with the same columns:

    for batch in transport.batches(plan):      # leaves [local devices, steps, batch / devices, ...]
        state, metrics = step(state, transport.shared, batch)

    # inside the step, on one device's part of one step's batch:
    batch = complete(batch, shared)
"""

import collections
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import grain
import jax
import numpy as np

from common.config import choose
from common.data.dataset import Split
from common.runtime import DataParallel
from common.types import Array, Batch, Tree

IN_FLIGHT = 2  # batches on their way to the device while a step runs


class Plan(Protocol):
    """What to deliver: element i is (index int32, mask float32), both [steps, batch] over the global batch."""

    def __len__(self) -> int: ...

    def __getitem__(self, item: int) -> tuple[np.ndarray, np.ndarray]: ...


class Transport:
    """A split on its way to the devices.

    Attributes:
      shared: device arrays that every step reads, {'columns': ..., 'tables': ...}; `columns` is empty when
        streaming.
    """

    def __init__(
        self,
        split: Split,
        tables: Mapping[str, np.ndarray],
        parallel: DataParallel,
        *,
        resident: bool,
        threads: int = 2,
    ):
        self._streamed = {} if resident else dict(split.columns)
        self._parallel, self._threads = parallel, threads
        columns = dict(split.columns) if resident else {}
        self.shared: Tree = parallel.replicate({'columns': columns, 'tables': dict(tables)})

    def host_batch(self, index: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        """This process's rows, [local devices, steps, batch / devices, ...]."""
        index, mask = self._parallel.local_part(index), self._parallel.local_part(mask)
        return {'index': index, 'mask': mask} | {name: column[index] for name, column in self._streamed.items()}

    def batches(self, plan: Plan) -> Iterator[Batch]:
        """The planned batches on the devices, a few ahead of their use."""
        reader = grain.MapDataset.range(len(plan)).map(lambda i: self.host_batch(*plan[i]))
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=2 * max(self._threads, 1))
        in_flight: collections.deque[Batch] = collections.deque()
        for batch in reader.to_iter_dataset(options):
            in_flight.append(self._parallel.put(batch))
            if len(in_flight) > IN_FLIGHT:
                yield in_flight.popleft()
        yield from in_flight


def complete(batch: Batch, shared: Tree) -> dict[str, Array]:
    """Adds to a batch the columns that are resident, gathered by `index`; on the device, inside jit."""
    return {name: column[batch['index']] for name, column in shared['columns'].items()} | dict(batch)


def is_resident(transport: str, num_bytes: int, parallel: DataParallel) -> tuple[bool, str]:
    """What `config.data.transport` means for a data set of `num_bytes`, and why, in words.

    'auto' chooses resident where the data take at most half of one device's memory, or on CPU devices, which
    share the host's, at most a quarter of it together.
    """
    decide: Callable[[], tuple[bool, str]] = choose(
        {
            'resident': lambda: (True, 'as config.data.transport says'),
            'streaming': lambda: (False, 'as config.data.transport says'),
            'auto': lambda: _fits(num_bytes, parallel),
        },
        transport,
        'data.transport',
    )
    resident, why = decide()
    return resident, f'{"resident" if resident else "streaming"}, {why}'


def _fits(num_bytes: int, parallel: DataParallel) -> tuple[bool, str]:
    limit = room_for_data(parallel.devices[0], len(parallel))
    resident = num_bytes <= limit
    return (
        resident,
        f'{num_bytes / 2**20:,.0f} MiB {"fit" if resident else "do not fit"} into {limit / 2**20:,.0f} MiB',
    )


def room_for_data(device: jax.Device, num_devices: int) -> int:
    """Bytes of one device's memory that a resident data set may take."""
    statistics = device.memory_stats() if device.platform != 'cpu' else None
    if statistics and 'bytes_limit' in statistics:
        return statistics['bytes_limit'] // 2
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // 4 // num_devices
