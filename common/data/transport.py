"""The two ways in which examples reach the device, behind one contract, delivering the same batches bit for bit.

Streaming reads the rows of every batch on the host, ahead of time, in grain's threads. Resident puts all columns
into device memory once; what crosses then are row numbers. Where they do not fit into one device, each keeps a part,
and the devices hand one another the rows. In all, the device ends with the same columns:

    for batch in transport.batches(plan):      # leaves [local devices, steps, batch / devices, ...]
        state, metrics = step(state, transport.shared, batch)

    # inside the step, on one device's part of one step's batch:
    batch = complete(batch, shared)
"""

import collections
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple, Protocol

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from common.config import choose
from common.data.dataset import Split
from common.processor import memory
from common.runtime import AXIS, DataParallel
from common.types import Array, Batch, Tree

IN_FLIGHT = 2  # batches on their way to the device while a step runs


class Plan(Protocol):
    """What to deliver: element i is (index int32, mask float32), both [steps, batch] over the global batch."""

    def __len__(self) -> int: ...

    def __getitem__(self, item: int) -> tuple[np.ndarray, np.ndarray]: ...


Kind = Literal['streaming', 'resident', 'resident in parts']


class Choice(NamedTuple):
    """A transport and, in words, why it was chosen."""

    kind: Kind
    why: str

    def __str__(self) -> str:
        return f'{self.kind}, {self.why}'


class Transport:
    """A split on its way to the devices.

    Attributes:
      shared: device arrays that every step reads, {'columns': ..., 'parts': ..., 'tables': ...}. Columns are resident
        on every device under `columns`, in parts [local devices, rows, ...] under `parts`, or not at all.
    """

    def __init__(
        self,
        split: Split,
        tables: Mapping[str, np.ndarray],
        parallel: DataParallel,
        kind: Kind,
        threads: int = 2,
    ):
        self._streamed = dict(split.columns) if kind == 'streaming' else {}
        self._parallel, self._threads = parallel, threads
        columns = dict(split.columns) if kind == 'resident' else {}
        in_parts = split.columns if kind == 'resident in parts' else {}
        parts = {name: parallel.parted(column) for name, column in in_parts.items()}
        replicated = parallel.replicate({'columns': columns, 'tables': dict(tables)})
        self.shared: Tree = {**replicated, 'parts': parallel.put(parts)}

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
    columns = {name: column[batch['index']] for name, column in shared['columns'].items()}
    parts = {name: _from_parts(part, batch['index']) for name, part in shared['parts'].items()}
    return columns | parts | dict(batch)


def _from_parts(part: Array, index: Array) -> Array:
    """Rows of a column of which every device has a part: each sends what it has, to whom it is due, and zeros."""
    # As whole numbers, adding zeros changes no bit.
    bits = part if jnp.issubdtype(part.dtype, jnp.integer) else part.view(f'uint{8 * part.dtype.itemsize}')
    place = lax.all_gather(index, AXIS) - lax.axis_index(AXIS) * len(part)  # [devices, batch / devices]
    mine = (place >= 0) & (place < len(part))
    sent = bits[jnp.where(mine, place, 0)] * mine.reshape(*mine.shape, *(1,) * (part.ndim - 1)).astype(bits.dtype)
    return lax.psum_scatter(sent, AXIS).view(part.dtype)


def choose_transport(transport: str, num_bytes: int, parallel: DataParallel) -> Choice:
    """What `config.data.transport` means for a data set of `num_bytes`.

    'auto' chooses resident where the data take at most half of one device's memory, or of every device's in parts;
    on CPU devices, which share the host's, at most a quarter of it together.
    """
    limit, devices = room_for_data(parallel.devices[0], len(parallel)), len(parallel)
    size, room = f'{num_bytes / 2**20:,.0f} MiB', f'{limit / 2**20:,.0f} MiB'
    whole = num_bytes <= limit
    resident: Kind = 'resident' if whole or devices == 1 else 'resident in parts'
    where = f'fit into {room}' if whole else f'fit into {room} on each of {devices} devices'
    fits = num_bytes <= limit * devices
    asked = 'as config.data.transport says'
    choices = {
        'resident': Choice(resident, asked),
        'streaming': Choice('streaming', asked),
        'auto': Choice(resident, f'{size} {where}')
        if fits
        else Choice('streaming', f'{size} do not fit into {room} on each device'),
    }
    return choose(choices, transport, 'data.transport')


def room_for_data(device: jax.Device, num_devices: int) -> int:
    """Bytes of one device's memory that a resident data set may take."""
    statistics = device.memory_stats() if device.platform != 'cpu' else None
    if statistics and 'bytes_limit' in statistics:
        return statistics['bytes_limit'] // 2
    return memory() // 4 // num_devices
