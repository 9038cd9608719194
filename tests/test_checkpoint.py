"""Checkpoints: what was saved comes back bit for bit, latest and best are kept, and damage is named."""

import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.checkpoint import Checkpoints
from common.errors import CheckpointError
from common.state import TrainState


def state_of(seed: int, *, width: int = 5, average: bool = False) -> TrainState:
    random = np.random.default_rng(seed)
    params = {'dense': {'kernel': jnp.asarray(random.normal(size=(3, width)), jnp.float32), 'bias': jnp.ones(width)}}
    return TrainState(
        step=jnp.int32(seed),
        params=params,
        collections={'batch_stats': {'mean': jnp.asarray(random.normal(size=4), jnp.float32)}},
        opt_state=({'count': jnp.int32(7)}, jax.tree.map(lambda leaf: leaf * 3, params)),
        average=jax.tree.map(lambda leaf: leaf / 7, params) if average else None,
        key=jnp.asarray([0, 123456789], jnp.uint32),
        learning_rate_scale=jnp.float32(0.1),
    )


def abstract(state: TrainState) -> TrainState:
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state)


def variables(state: TrainState):
    return {'params': state.params, **state.collections}


def assert_identical(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def saved(workdir, values, mode='min', **kwargs) -> Checkpoints:
    """Checkpoints with one step for each monitored value, at 10, 20, ..., all on disk."""
    checkpoints = Checkpoints(workdir, mode)
    for number, value in enumerate(values, 1):
        checkpoints.save(state_of(10 * number, **kwargs), {'seconds': float(number)}, 10 * number, value)
    checkpoints.close()
    return Checkpoints(workdir, mode)


def steps_on_disk(workdir):
    return sorted(int(path.name) for path in (workdir / 'checkpoints').iterdir())


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, [1.0])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=2**20))
    with pytest.raises(CheckpointError, match=r'step 20 may take 1\.0 MiB, and .*checkpoints has 1\.0 left'):
        checkpoints.save(state_of(20), {}, 20, 0.5)
    checkpoints.close()
    assert steps_on_disk(tmp_path) == [10]


@pytest.mark.parametrize('average', [False, True])
def test_a_state_comes_back_bit_for_bit(tmp_path, average):
    checkpoints = saved(tmp_path, [0.5], average=average)
    state = state_of(10, average=average)
    restored, progress = checkpoints.restore(abstract(state), 10)
    assert_identical(restored, state)
    assert progress == {'seconds': 1.0}
    place = abstract(state)
    assert_identical(checkpoints.restore_variables(variables(place), 10), state.variables)


def test_a_save_is_not_disturbed_by_the_steps_after_it(tmp_path):
    """The state's memory is given to the next step while the save is still under way."""
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    state = state_of(1).replace(params={'dense': jnp.arange(4_000_000.0)})
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, {}, 1, 0.5)
    expected = abstract(state)
    overwrite(state.params['dense']).block_until_ready()
    checkpoints.close()
    restored, _ = Checkpoints(tmp_path).restore(expected, 1)
    np.testing.assert_array_equal(restored.params['dense'], np.arange(4_000_000, dtype=np.float32))


@pytest.mark.parametrize(
    ('mode', 'values', 'best', 'kept'),
    [
        ('min', [0.5, 0.3, 0.4, 0.6], 20, [20, 40]),
        ('max', [0.5, 0.3, 0.4, 0.2], 10, [10, 40]),
        ('min', [0.5, 0.4, 0.3], 30, [30]),
        ('max', [0.1, 0.3, None], 20, [20, 30]),
        ('max', [0.3, 0.3, 0.2], 10, [10, 30]),
        ('min', [None, 0.3, 0.4, None], 20, [20, 40]),
    ],
)
def test_best_and_latest_are_kept_and_only_these(tmp_path, mode, values, best, kept):
    checkpoints = saved(tmp_path, values, mode)
    assert steps_on_disk(tmp_path) == kept
    assert checkpoints.find('best') == best
    assert checkpoints.find('latest') == kept[-1]
    assert checkpoints.find(str(best)) == best


def test_best_is_the_latest_where_none_was_evaluated(tmp_path):
    assert saved(tmp_path, [None]).find('best') == 10


def test_a_missing_checkpoint_is_named_with_those_that_exist(tmp_path):
    with pytest.raises(CheckpointError, match=f'there is no checkpoint in {tmp_path}.*train into this folder first'):
        Checkpoints(tmp_path).find('best')
    checkpoints = saved(tmp_path, [0.1, 0.2])
    for which in ('15', 'newest'):
        with pytest.raises(
            CheckpointError, match=rf"no checkpoint '{which}' in .*; there are: best, latest, \[10, 20\]"
        ):
            checkpoints.find(which)


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_a_metric_that_is_not_finite_never_counts(tmp_path, value):
    with pytest.raises(ValueError, match='would count as best'):
        Checkpoints(tmp_path).save(state_of(1), {}, 1, value)


def test_a_save_left_incomplete_does_not_count(tmp_path):
    saved(tmp_path, [0.5, 0.4])
    shutil.copytree(tmp_path / 'checkpoints' / '20', tmp_path / 'checkpoints' / '30.orbax-checkpoint-tmp-0')
    assert Checkpoints(tmp_path).find('latest') == 20


def test_what_a_kill_left_of_a_deletion_does_not_count_and_can_be_removed(tmp_path):
    saved(tmp_path, [0.4, 0.5])
    shutil.copytree(tmp_path / 'checkpoints' / '20', tmp_path / 'checkpoints' / '5')
    shutil.rmtree(tmp_path / 'checkpoints' / '5' / 'metrics')
    checkpoints = Checkpoints(tmp_path)
    assert (checkpoints.find('best'), checkpoints.find('latest')) == (10, 20)
    with pytest.raises(CheckpointError, match=r'there are: best, latest, \[10, 20\]'):
        checkpoints.find('5')
    checkpoints.remove_remains()
    checkpoints.close()
    assert steps_on_disk(tmp_path) == [10, 20]


def wider(state):
    return state.replace(params={'dense': {'kernel': jnp.zeros((3, 6)), 'bias': jnp.zeros(6)}})


def narrower(state):
    return state.replace(params={'dense': {'kernel': jnp.zeros((3, 4)), 'bias': jnp.zeros(4)}})


def other_dtype(state):
    return state.replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state.params))


def another_layer(state):
    return state.replace(params={**state.params, 'output': {'kernel': jnp.zeros((5, 2))}})


def renamed(state):
    return state.replace(params={'convolution': state.params['dense']})


@pytest.mark.parametrize('change', [wider, narrower, other_dtype, another_layer, renamed])
def test_a_checkpoint_of_another_model_is_refused(tmp_path, change):
    checkpoints, other = saved(tmp_path, [0.5]), abstract(change(state_of(10)))
    with pytest.raises(CheckpointError, match=r'checkpoint 10 in .* belongs to another model'):
        checkpoints.restore(other, 10)
    with pytest.raises(CheckpointError, match=r'checkpoint 10 in .* belongs to another model'):
        checkpoints.restore_variables(variables(other), 10)


def test_a_layer_less_is_another_model_too(tmp_path):
    checkpoints, state = saved(tmp_path, [0.5]), abstract(state_of(10))
    less = state.replace(params={'dense': {'kernel': state.params['dense']['kernel']}})
    with pytest.raises(CheckpointError, match='belongs to another model'):
        checkpoints.restore(less, 10)
    with pytest.raises(CheckpointError, match='belongs to another model'):
        checkpoints.restore_variables(variables(less), 10)


@pytest.mark.parametrize('size', [0, 0.5])
def test_truncated_files_are_noticed(tmp_path, size):
    """Every file of a checkpoint in turn: a CheckpointError, or the very state where nothing of it was lost."""
    saved(tmp_path / 'good', [0.5])
    state = state_of(10)
    step = tmp_path / 'good' / 'checkpoints' / '10'
    files = [path.relative_to(step) for path in step.rglob('*') if path.is_file()]
    refused = {}
    for number, file in enumerate(files):
        workdir = tmp_path / str(number)
        shutil.copytree(tmp_path / 'good', workdir)
        broken = workdir / 'checkpoints' / '10' / file
        broken.write_bytes(broken.read_bytes()[: int(size * broken.stat().st_size)])
        try:
            checkpoints = Checkpoints(workdir)
            which = checkpoints.find('best')
            restored, progress = checkpoints.restore(abstract(state), which)
            again = checkpoints.restore_variables(variables(abstract(state)), which)
        except CheckpointError as error:
            refused[file.parts[0]] = (str(error), str(workdir))
        else:
            assert_identical(restored, state)
            assert_identical(again, state.variables)
            assert progress == {'seconds': 1.0}
    assert {'state', 'progress', 'metrics'} <= refused.keys()
    for message, workdir in refused.values():
        assert 'damaged' in message
        assert workdir in message
