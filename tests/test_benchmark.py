"""The benchmark's arithmetic, its FLOPs, its peers' protocol, and the script from end to end."""

import json
import pathlib
import subprocess
import sys
import textwrap
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from common.benchmark import measure, peak, peers, rates
from common.benchmark.measure import against_peers, own_rows, scaling_rows
from common.benchmark.peers import Peer, PeerUnavailableError, specification
from common.benchmark.program import LEAD, Program, forget, reconfigured, streamed
from common.benchmark.rates import Contestant, bottleneck, ratio, spread, take_turns
from common.benchmark.startup import first_step
from common.benchmark.tables import as_text
from common.errors import UserError
from common.flops import flops
from common.nn import lstm, lstm_kernel
from common.process import SWITCH
from common.training.setup import Training, make_training, num_parameters
from lesion.configs import demo
from stocks.configs import demo as prices
from stocks.task import Stocks
from tests.conftest import Ended, Trained

PEERS = pathlib.Path(__file__).parents[1] / 'experiments' / 'peers'
# Speaks the protocol, trains nothing: `quick` takes a thousandth of a second a step, `slow` two, `broken` fails; with a
# thread a core all is twice as fast.
FAKE = """
    import os
    import sys
    sys.path.insert(0, {peers!r})
    from protocol import fewer_threads, serve, threads

    class Fake:
        settings = ['slow', 'quick', 'broken']
        versions = {{'fake': '1.0'}}

        def __init__(self, spec):
            print('libraries chatter')
            self.num_parameters = {num_parameters}
            self.environments = fewer_threads(spec)
            self.speed = 8 / threads(spec)

        def run(self, setting, steps):
            if setting == 'broken':
                raise RuntimeError('no compiler')
            return steps * {{'slow': 0.002, 'quick': 0.001}}[setting] / self.speed

    serve(Fake)
"""


@pytest.fixture(scope='module')
def training(trained: Trained) -> Training:
    config = demo.get_config()
    config.batch_size = 16
    config.model.widths, config.model.dense = (8,), (8,)
    config.dataset.image_size = (16, 16)
    config.schedule.warmup = '2steps'
    config.steps_per_dispatch = 1
    return make_training(config, trained.data_dir, devices=1)


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, 'SECONDS', 0.01)


def fake_peer(folder: pathlib.Path, num_parameters: int) -> pathlib.Path:
    script = folder / 'fake_peer.py'
    script.write_text(textwrap.dedent(FAKE).format(peers=str(PEERS), num_parameters=num_parameters))
    return script


@pytest.mark.parametrize(
    ('backend', 'switch', 'expected'), [('cpu', '', 'ours 1'), ('cpu', 'off', 'ours '), ('gpu', '', 'ours ')]
)
def test_peers_have_the_settings_of_memory_that_we_have(backend, switch, expected, training, tmp_path, monkeypatch):
    script = fake_peer(tmp_path, parameters_of(training))
    said = "' '.join(os.environ.get(name, '') for name in ('GLIBC_TUNABLES', 'THP_MEM_ALLOC_ENABLE'))"
    script.write_text(script.read_text().replace("'1.0'", said))
    for name, value in (('GLIBC_TUNABLES', 'ours'), ('THP_MEM_ALLOC_ENABLE', ''), (SWITCH, switch)):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    with Peer('fake', script, sys.executable, training) as peer:
        assert peer.versions == {'fake': expected}


def parameters_of(training: Training) -> int:
    return num_parameters(training.abstract_state().params)


def test_spread_is_median_and_extremes() -> None:
    assert spread([3.0, 1.0, 2.0, 10.0]) == {'median': 2.5, 'low': 1.0, 'high': 10.0}


def test_ratio_is_taken_turn_by_turn() -> None:
    # A machine that slows down to a tenth slows both sides down; the ratio does not see it.
    assert ratio([20.0, 2.0, 18.0], [10.0, 1.0, 12.0]) == {'median': 2.0, 'low': 1.5, 'high': 2.0}


def test_the_peak_is_that_of_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    times = np.cumsum([[0.0, seconds] for seconds in (1.0, 4.0, 3.0, 2.0, 5.0, 6.0)])  # the first one compiles
    monkeypatch.setattr(peak, 'time', types.SimpleNamespace(perf_counter=iter(times).__next__))
    assert peak.measured_peak(np.dtype('float32'), 4) == 2 * 2048**3 / 2.0


@pytest.mark.parametrize(
    ('kind', 'dtype', 'devices', 'expected'),
    [
        ('NVIDIA H200', 'bfloat16', 1, 989e12),
        ('NVIDIA H200', 'float32', 2, 990e12),
        ('TPU v4', 'float32', 1, None),
        ('cpu', 'float32', 1, None),
    ],
)
def test_the_data_sheet_has_a_peak_for_each_dtype(
    kind: str, dtype: str, devices: int, expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, 'devices', lambda: [types.SimpleNamespace(device_kind=kind)])
    assert peak.datasheet_peak(np.dtype(dtype), devices) == expected


def test_costs_and_shares_follow_from_the_rates(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {'loader': 50.0, 'step': 100.0}
    monkeypatch.setattr(
        measure, 'take_turns', lambda names, repeats: {name: [said.get(name[1], 40.0)] for name in names}
    )
    asked = []
    monkeypatch.setattr(measure, 'device_memory', lambda *_: asked.append('memory'))
    monkeypatch.setattr(measure, 'measured_peak', lambda *_: asked.append('peak') or 1e8)
    monkeypatch.setattr(measure, 'datasheet_peak', lambda dtype, devices: 4e8)
    one, two = (own_rows(streamed(reconfigured(training, {'steps_per_dispatch': steps})), 1) for steps in (1, 2))
    for rows in (one, two):
        step = next(row for row in rows if row['kind'] == 'step')
        whole = next(row for row in rows if row['kind'] == 'end to end')
        assert step['flops_per_step'] == pytest.approx(one[1]['flops_per_step'])
        assert step['flops_per_second'] == pytest.approx(step['flops_per_step'] * 100.0 / 16)
        assert step['mfu_measured'] == pytest.approx(step['flops_per_second'] / 1e8)
        assert step['mfu_datasheet'] == pytest.approx(step['flops_per_second'] / 4e8)
        assert asked[:2] == ['memory', 'peak']  # whose product takes memory of its own
        assert (whole['share_of_step'], whole['bottleneck'][:35]) == (0.4, 'the loader: it delivers 50% of what')


class Slow:
    """What a device is still at work on."""

    shape = (1, 1)

    def block_until_ready(self) -> None:
        time.sleep(0.1)


def test_the_clock_stops_when_the_device_has_done_its_work(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program(training)
    monkeypatch.setattr(program, 'compiled', lambda state, shared, batch: (state, {'loss': Slow()}))
    assert program.step(3) > 0.1
    monkeypatch.setattr(program._data, 'batches', lambda plan: ({'mask': Slow()} for _ in range(len(plan))))
    assert program.loader(3) > 0.3


def test_contestants_take_turns() -> None:
    played = []

    def go(name: str, seconds: float) -> Callable[[int], float]:
        return lambda count: played.append((name, count)) or count * seconds

    contestants = {'a': Contestant(go('a', 0.002), 64), 'b': Contestant(go('b', 1.0), 10)}
    samples = take_turns(contestants, repeats=3)
    assert played[-12:] == [('a', 3), ('a', 5), ('b', 1), ('b', 1)] * 3
    assert samples == {'a': pytest.approx([32_000.0] * 3), 'b': pytest.approx([10.0] * 3)}


def test_slow_first_steps_make_no_turn_shorter() -> None:
    played = []

    def go(count: int) -> float:  # the first two steps take ten times as long
        played.append(count)
        return count * (0.02 if sum(played) <= 2 else 0.002)

    assert take_turns({'a': Contestant(go, 64)}, repeats=2) == {'a': pytest.approx([32_000.0] * 2)}
    assert played == [1, 1, 1, 16, 3, 5, 3, 5]


@pytest.mark.parametrize(
    ('loader', 'together', 'words'),
    [
        (10.0, [0.98, 0.9, 1.0], 'the step'),
        (0.5, [0.49], 'delivers 50%'),
        (2.0, [0.6, 0.5, 0.7], 'reach 60%'),
        (300.0, [0.92, 1.11, 0.70, 0.82, 0.82], 'not clear: turn by turn, 70% to 111%'),
    ],
)
def test_bottleneck_in_words(loader: float, together: list[float], words: str) -> None:
    assert words in bottleneck(loader, spread(together))


def test_costs_say_of_how_many_devices_they_are() -> None:
    row = {
        'side': 'triptych', 'setting': 'resident', 'kind': 'step', 'dtype': 'float32', 'batch_size': 64, 'unit': 'e/s',
        **spread([1.0]), 'compile_seconds': 1.0, 'parameters': 1, 'flops_per_step': 1.0, 'flops_per_second': 1.0,
        'measured_peak': 2.0, 'mfu_measured': 0.5, 'mfu_datasheet': None, 'device_memory': 0, 'host_memory': 0,
        'bottleneck': 'the step',
    }  # fmt: skip
    machine = {'processor': {'model': 'some', 'features': ''}, 'devices': ['cpu'], 'cores': 2}
    text = as_text({'machine': machine, 'rows': [row | {'devices': count} for count in (1, 2)], 'ratios': []})
    assert 'resident, batch 64: compiled' in text
    assert 'resident, batch 64, 2 devices: compiled' in text
    assert 'batch 64, 2 devices: bottleneck' in text


def test_too_many_devices_are_refused_before_anything_is_measured(
    trained: Trained, script: Callable[..., Ended]
) -> None:
    ended = script('benchmark', *trained.arguments, '--devices=1,9', '--measure=rates', '--repeats=1')
    assert ended.status == 2
    assert 'triptych' not in ended.stdout
    assert '--devices=9: there are' in ended.stderr


def test_flops_of_products_and_loops_have_a_closed_form() -> None:
    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        return lax.scan(lambda carry, _: (jnp.tanh(carry @ w), None), x, None, length=10)[0].sum()

    w, x = jnp.ones((64, 64)), jnp.ones((32, 64))
    product = 2 * 32 * 64 * 64
    assert flops(loss, w, x) == 10 * product
    assert flops(jax.jit(jax.grad(loss)), w, x) == pytest.approx(3 * 10 * product, rel=0.1)


def test_flops_of_a_kernel_are_those_of_the_loop_that_it_stands_for() -> None:
    projected, kernel = jnp.ones((5, 48, 64)), jnp.ones((16, 64))
    expected = 2 * 5 * 48 * 16 * 64
    assert flops(lstm_kernel.forward, projected, kernel) == flops(lstm._steps_forward, projected, kernel) == expected
    assert flops(jax.vmap(lstm_kernel.forward), projected[None], kernel[None]) == expected


def test_flops_of_convolutions_agree_with_xla() -> None:
    """XLA leaves out what multiplies padding, so here there is none."""

    def loss(kernels: list[jax.Array], x: jax.Array) -> jax.Array:
        for kernel, groups in zip(kernels, (1, 16), strict=True):
            dimensions = ('NHWC', 'HWIO', 'NHWC')
            x = lax.conv_general_dilated(
                x, kernel, (1, 1), 'VALID', dimension_numbers=dimensions, feature_group_count=groups
            )
        return x.sum()

    kernels, x = [jnp.ones((3, 3, 8, 16)), jnp.ones((5, 5, 1, 16))], jnp.ones((4, 20, 24, 8))
    counted = jax.jit(loss).lower(kernels, x).compile().cost_analysis()['flops']
    assert flops(loss, kernels, x) == pytest.approx(counted, rel=0.05)


def test_flops_of_a_step_are_counted_over_all_devices(training: Training, trained: Trained) -> None:
    one = Program(training)
    four = make_training(training.config, trained.data_dir, devices=4)
    batch = four.parallel.put(four.transport('train').host_batch(*four.plan.dispatches([(0, 1)])[0]))
    state, shared = four.abstract_state(), four.transport('train').shared
    alone = flops(training.train_step, training.abstract_state(), training.transport('train').shared, one.batch)
    assert flops(four.train_step, state, shared, batch) == pytest.approx(alone, rel=0.02)


def test_the_step_that_is_timed_is_the_loops_own(training: Training) -> None:
    """Dispatches of the benchmark leave the weights that as many steps of the training leave."""
    program = Program(streamed(training))
    state = training.init_state()
    data = training.transport('train')
    step, _ = training.compile(state, training.parallel.put(data.host_batch(*training.plan.dispatches([(0, 1)])[0])))
    for batch in data.batches(training.plan.dispatches([(number, 1) for number in range(LEAD + 3)])):
        state, _ = step(state, data.shared, batch)
    program.end_to_end(3)
    assert int(program.state.step) == LEAD + 3
    jax.tree.map(np.testing.assert_array_equal, program.state.params, state.params)


def test_files_can_be_forgotten_and_read_again(training: Training) -> None:
    image = training.train_split.columns['image']
    before = np.array(image)
    forget(training.train_split)
    assert isinstance(image, np.memmap)
    np.testing.assert_array_equal(image, before)


def test_specification_tells_what_the_model_is(training: Training) -> None:
    spec = json.loads(json.dumps(specification(training)))
    assert spec['model'] | {'name': 'CNN', 'widths': [8], 'depth': 1, 'dense': [8], 'dropout': 0.3} == spec['model']
    assert (spec['input_shape'], spec['num_outputs'], spec['loss']) == ([16, 16, 3], 7, 'cross_entropy')
    assert (spec['dtype'], spec['batch_size'], spec['models']) == ('float32', 16, 1)
    assert spec['optimizer']['name'] == 'adamw'


def test_best_setting_and_environment_of_a_peer_count(
    training: Training, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, 'cores', lambda: 8)
    monkeypatch.setattr(peers, 'physical_cores', lambda: 4)
    script, said = fake_peer(tmp_path, parameters_of(training)), []
    rows, ratios, versions = against_peers(training, {'fake': (script, sys.executable)}, 3, said.append)
    theirs = [row for row in rows if row['side'] == 'fake' and row['kind'] == 'step']
    ours = [row for row in rows if row['side'] == 'triptych']
    best = 'quick, PEER_THREADS=4'
    assert [row['median'] for row in theirs] == [pytest.approx(32_000)]
    assert [row['setting'] for row in rows if row['kind'] == 'step, trial'] == [
        'slow',
        'quick',
        'slow, PEER_THREADS=4',
        best,
    ]
    assert [(r['peer'], r['setting'], r['dtype'], r['kind']) for r in ratios] == [('fake', best, 'float32', 'step')]
    assert ratios[0]['median'] == pytest.approx(ours[0]['median'] / 32_000)
    assert 'fake, broken: not available: RuntimeError: no compiler' in said
    assert versions == {'fake': {'fake': '1.0'}}


def test_peers_meet_our_step_without_what_they_do_not_have(
    training: Training, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met = []
    monkeypatch.setattr(measure, 'Program', lambda training: met.append(training) or Program(training))
    script = fake_peer(tmp_path, parameters_of(training))
    whole = reconfigured(training, {'accumulate_steps': 4, 'ema_decay': 0.9, 'optimizer.freeze': (('Conv_0', '100%'),)})
    assert whole.config.augment
    against_peers(whole, {'fake': (script, sys.executable)}, 1, lambda text: None)
    [ours] = met
    assert (dict(ours.config.augment), ours.config.ema_decay, ours.accumulate_steps) == ({}, 0.0, 1)
    assert ours.abstract_state().average is None
    assert dict(ours.task.config.augment) == {}
    assert not ours.config.optimizer.freeze
    assert whole.config.optimizer.freeze


def test_examples_are_those_of_all_models_together(tmp_path: pathlib.Path) -> None:
    config = prices.get_config('per_ticker')
    config.model.hidden_size, config.batch_size, config.steps_per_dispatch = 4, 8, 2
    Stocks.prepare(config, None, tmp_path, skip_bad=False)
    four = make_training(config, tmp_path, devices=1)
    program = Program(four)
    assert program.examples == 2 * 4 * 8
    with Peer('fake', fake_peer(tmp_path, program.num_parameters), sys.executable, four) as peer:
        assert peer.contestant('slow').examples == 4 * 8


def test_a_model_of_another_size_is_an_error(training: Training, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match='17 parameters'):
        Peer('fake', fake_peer(tmp_path, 17), sys.executable, training)


@pytest.mark.parametrize('name', ['torch', 'keras'])
def test_an_absent_peer_says_so(training: Training, name: str) -> None:
    said: list[str] = []
    assert against_peers(training, {name: (PEERS / f'{name}_peer.py', '/no/python')}, 1, said.append) == ([], [], {})
    assert said == [f'{name}: not available with /no/python: /no/python does not start: No such file or directory']


def test_a_peer_without_its_library_says_which(training: Training, tmp_path: pathlib.Path) -> None:
    script = tmp_path / 'peer.py'
    script.write_text('import a_library_that_nobody_has\n')
    with pytest.raises(PeerUnavailableError, match='a_library_that_nobody_has'):
        Peer('peer', script, sys.executable, training)


def test_a_peer_that_ended_before_it_was_asked_says_which_too(
    monkeypatch: pytest.MonkeyPatch, training: Training, tmp_path: pathlib.Path
) -> None:
    script = tmp_path / 'peer.py'
    script.write_text('import a_library_that_nobody_has\n')
    start = subprocess.Popen

    def started_and_ended(*args: Any, **options: Any) -> Any:
        process = start(*args, **options)
        process.wait()
        return process

    monkeypatch.setattr(subprocess, 'Popen', started_and_ended)
    with pytest.raises(PeerUnavailableError, match='a_library_that_nobody_has'):
        Peer('peer', script, sys.executable, training)


def test_scaling_takes_parts_of_data_and_models(tmp_path: pathlib.Path) -> None:
    config = prices.get_config('per_ticker')
    config.model.hidden_size, config.batch_size, config.steps_per_dispatch = 4, 8, 1
    Stocks.prepare(config, None, tmp_path, skip_bad=False)
    rows = scaling_rows(make_training(config, tmp_path, devices=1), repeats=1)
    sizes = [row['dataset_size'] for row in rows if row['kind'] == 'end to end']
    assert sizes == sorted(sizes)
    assert sizes[0] == pytest.approx(sizes[-1] / 8, abs=1)
    assert [row['models'] for row in rows if row['kind'] == 'step'] == [2, 4]


def test_time_to_the_first_step_is_taken_from_the_training_itself(tmp_path: pathlib.Path) -> None:
    """A training that takes a third of a second when it finds what the first one compiled, longer otherwise."""
    script = tmp_path / 'train.py'
    script.write_text(
        textwrap.dedent("""
        import os, pathlib, sys, time
        workdir = pathlib.Path(next(a for a in sys.argv if a.startswith('--workdir='))[10:])
        cache = pathlib.Path(os.environ['TRIPTYCH_COMPILE_CACHE'])
        print('data: resident')
        time.sleep(0.3 if cache.exists() else 1.3)
        cache.mkdir(exist_ok=True)
        print('compiled in a moment')
        time.sleep(0.2)
        workdir.mkdir()
        (workdir / 'metrics.jsonl').write_text('{"step": 1}')
        time.sleep(60)
        """)
    )
    cold, warm = first_step([sys.executable, str(script)]).values()
    assert cold['step'] > 1.5
    assert 0.5 < warm['step'] < cold['step'] - 0.5
    for reached in (cold, warm):
        assert list(reached) == ['data', 'compiled', 'step']
    assert cold['data'] < cold['compiled'] - 1.0
    assert cold['compiled'] < cold['step'] - 0.1
    with pytest.raises(UserError, match='no such training'):
        first_step([sys.executable, '-c', 'raise SystemExit("no such training")'])


@pytest.fixture
def restored_cache() -> Iterator[None]:
    """The script turns the compile cache off, which the other tests want."""
    yield
    jax.config.update('jax_enable_compilation_cache', True)


@pytest.mark.usefixtures('restored_cache')
def test_script_prints_a_table_and_writes_its_rows(
    trained: Trained, tmp_path: pathlib.Path, script: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('HOME', str(tmp_path))
    output, nowhere = tmp_path / 'new/bench.json', tmp_path / 'nowhere'
    ended = script(
        'benchmark',
        *trained.arguments,
        '--batch_size=8,16',
        '--devices=1',
        '--repeats=1',
        '--measure=rates',
        '--peers=torch',
        '--peer_python=torch=~/nowhere',
        '--profile=~/trace',
        f'--output={output}',
    )
    assert ended.status == 0, ended.stderr
    assert ended.stdout.count(f'torch: not available with {nowhere}') == 2
    assert not jax.config.jax_enable_compilation_cache  # a time to compile is none of reading what was compiled
    assert 'GFLOP a step' in ended.stdout
    assert 'bottleneck is' in ended.stdout
    assert list((tmp_path / 'trace').rglob('*.xplane.pb'))
    results = json.loads(output.read_text())
    assert results['machine']['cores'] >= 1
    kinds = {(row['batch_size'], row['transport'], row['kind']) for row in results['rows']}
    for size in (8, 16):
        for transport in ('streaming', 'resident'):
            assert {(size, transport, kind) for kind in ('loader', 'step', 'end to end')} <= kinds
    assert all(row['low'] <= row['median'] <= row['high'] for row in results['rows'])
    assert all(min(row['samples']) == row['low'] for row in results['rows'])
    assert all(row['mfu_measured'] > 0 for row in results['rows'] if row['kind'] == 'step')


@pytest.mark.parametrize(
    ('argument', 'word'),
    [
        ('--peers=caffe', 'torch, keras'),
        ('--measure=rates,nothing', 'nothing'),
        ('--batch_size=many', 'many'),
        ('--devices=-1', '--devices=-1: there are 4 (cpu)'),
        ('--output=/', '--output=/ cannot be written'),
        ('--profile=/dev/null', '--profile=/dev/null cannot be written'),
    ],
)
def test_script_explains_a_wrong_flag(trained: Trained, script: Callable[..., Ended], argument: str, word: str) -> None:
    ended = script('benchmark', *trained.arguments, argument)
    assert ended.status == 2
    assert word in ended.stderr
