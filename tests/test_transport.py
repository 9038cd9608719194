"""Both transports deliver the same batches bit for bit, on any number of devices and threads."""

import types

import jax
import numpy as np
import pandas as pd
import pytest
from jax import lax

from common.data.dataset import Dataset, Split
from common.data.order import Order
from common.data.transport import Choice, Transport, choose_transport, complete, room_for_data
from common.errors import UsageError
from common.evaluation.evaluate import _plan as evaluation_plan
from common.runtime import AXIS, DataParallel
from common.training.plan import Dispatches
from common.training.setup import _num_bytes

RANDOM = np.random.default_rng(0)
SPLIT = Split(
    name='train',
    columns={
        'image': RANDOM.integers(0, 256, (37, 5, 4, 3), dtype=np.uint8),
        'label': RANDOM.integers(0, 7, 37).astype(np.int32),
        'value': np.append(RANDOM.normal(size=35), [np.nan, -0.0]).astype(np.float32),
        'known': RANDOM.integers(0, 2, 37).astype(bool),
    },
    records=pd.DataFrame({'name': range(37)}),
)


class Orders:
    """The part of a TrainingPlan that Dispatches reads."""

    index = Order(37, 8, 0)


def delivered(transport: Transport, plan, parallel: DataParallel) -> list[dict[str, np.ndarray]]:
    """Every batch as a step on the devices sees it, put together again as [steps, batch, ...]."""

    def on_device(state, shared, batch):
        return lax.all_gather(complete(batch, shared), AXIS, axis=1, tiled=True)

    see = parallel.lift(on_device)
    return [jax.tree.map(np.asarray, see(0.0, transport.shared, batch)) for batch in transport.batches(plan)]


@pytest.mark.parametrize('devices', [1, 4])
@pytest.mark.parametrize(
    ('kind', 'threads'),
    [('resident', 2), ('resident in parts', 2), ('streaming', 0), ('streaming', 1), ('streaming', 5)],
)
def test_batches_are_the_planned_rows_bit_for_bit(devices, kind, threads):
    parallel = DataParallel(jax.devices()[:devices])
    transport = Transport(SPLIT, {}, parallel, kind, threads)
    chunks = [(0, 3), (3, 3), (6, 1), (7, 3), (10, 1), (11, 3)]
    batches = delivered(transport, Dispatches(Orders, chunks), parallel)
    assert len(batches) == len(chunks)
    for batch, (first, count) in zip(batches, chunks, strict=True):
        rows = np.stack([Orders.index(step) for step in range(first, first + count)])
        assert set(batch) == {'index', 'mask', 'image', 'label', 'value', 'known'}
        np.testing.assert_array_equal(batch['index'], rows)
        np.testing.assert_array_equal(batch['mask'], np.ones((count, 8), np.float32))
        for name, column in SPLIT.columns.items():
            assert batch[name].dtype == column.dtype  # uint8 crosses, never float
            assert batch[name].tobytes() == column[rows].tobytes(), name


@pytest.mark.parametrize('devices', [1, 4])
@pytest.mark.parametrize('kind', ['resident', 'streaming'])
@pytest.mark.parametrize('batch_size', [4, 12, 40])
def test_evaluation_covers_every_row_once(devices, kind, batch_size):
    parallel = DataParallel(jax.devices()[:devices])
    transport = Transport(SPLIT, {}, parallel, kind)
    batches = delivered(transport, evaluation_plan([np.arange(37)], batch_size, devices), parallel)
    index, mask, label = (np.concatenate([b[name].ravel() for b in batches]) for name in ('index', 'mask', 'label'))
    np.testing.assert_array_equal(index[mask == 1], np.arange(37))
    np.testing.assert_array_equal(label[mask == 1], SPLIT.columns['label'])
    assert len(mask) == -(-37 // batch_size) * batch_size
    assert mask.sum() == 37
    assert len(SPLIT) == 37


def test_a_batch_must_divide_over_the_devices():
    with pytest.raises(UsageError, match='batch of 6 does not divide over 4 devices'):
        DataParallel().local_part(np.zeros((1, 6)))


def test_of_several_processes_each_has_what_is_due_to_its_own_devices(monkeypatch):
    parallel = DataParallel()
    parallel.devices = [types.SimpleNamespace(process_index=number // 2) for number in range(4)]
    parallel.local_count = 2
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    rows = np.arange(16).reshape(2, 8)
    np.testing.assert_array_equal(parallel.local_part(rows), [[[4, 5], [12, 13]], [[6, 7], [14, 15]]])
    np.testing.assert_array_equal(parallel.parted(np.arange(10)), [[6, 7, 8], [9, 0, 0]])


def test_in_parts_no_device_keeps_more_than_its_share():
    transport = Transport(SPLIT, {}, DataParallel(), 'resident in parts')
    for name, column in SPLIT.columns.items():
        kept = transport.shared['parts'][name].addressable_shards
        assert [shard.data.shape for shard in kept] == [(1, 10, *column.shape[1:])] * 4


def test_auto_is_resident_where_the_data_fit_and_says_so(monkeypatch):
    monkeypatch.setattr('common.data.transport.room_for_data', lambda device, count: 10 * 2**20)
    parallel, mebibyte = DataParallel(), 2**20
    alone, asked = DataParallel(jax.devices()[:1]), 'as config.data.transport says'
    assert choose_transport('auto', 10 * mebibyte, parallel) == Choice('resident', '10 MiB fit into 10 MiB')
    shared = choose_transport('auto', 40 * mebibyte, parallel)
    assert str(shared) == 'resident in parts, 40 MiB fit into 10 MiB on each of 4 devices'
    assert choose_transport('resident', 41 * mebibyte, parallel) == Choice('resident in parts', asked)
    assert choose_transport('resident', 41 * mebibyte, alone) == Choice('resident', asked)
    too_large = Choice('streaming', '1,024 MiB do not fit into 10 MiB on each device')
    assert choose_transport('auto', 1024 * mebibyte, parallel) == too_large
    assert choose_transport('auto', 1024 * mebibyte, alone) == too_large
    with pytest.raises(UsageError, match=r"config\.data\.transport is 'fast'; it may be resident, streaming, auto"):
        choose_transport('fast', 0, parallel)


def test_data_may_take_half_of_a_devices_memory_and_a_quarter_of_the_hosts(monkeypatch):
    monkeypatch.setattr('common.data.transport.memory', lambda: 800)
    cpu, gpu, silent = (
        types.SimpleNamespace(platform=platform, memory_stats=lambda statistics=statistics: statistics)
        for platform, statistics in (('cpu', {'bytes_limit': 10}), ('gpu', {'bytes_limit': 1000}), ('gpu', None))
    )
    rooms = [room_for_data(device, count) for device in (cpu, gpu, silent) for count in (1, 4)]
    assert rooms == [200, 50, 500, 500, 200, 50]


def test_all_splits_and_tables_count_as_data():
    dataset = Dataset(splits={'train': SPLIT, 'test': SPLIT}, info={}, tables={'prices': np.zeros(5)})
    assert _num_bytes(dataset) == 2 * 37 * (5 * 4 * 3 + 4 + 4 + 1) + 5 * 8
