"""Measures how fast a config trains on this machine, part by part, and beside the same model elsewhere.

python -m experiments.benchmark --config=lesion/configs/demo.py [--batch_size=64,256] [--output=bench.json]
                                [--peers=torch,keras --peer_python=torch=PATH,keras=PATH]
"""

import contextlib
import functools
import itertools
import json
import math
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from common import runtime
from common.benchmark.machine import machine
from common.benchmark.measure import Peers, against_peers, own_rows, profile, scaling_rows, start_rows
from common.benchmark.tables import as_text
from common.errors import UsageError
from common.training.dispatch import cpu_devices
from common.training.setup import check_devices, make_training
from experiments import launch

PARTS = ('rates', 'start', 'scaling')
PEERS = {name: pathlib.Path(__file__).parent / 'peers' / f'{name}_peer.py' for name in ('torch', 'keras')}

_CONFIG = launch.define_config()
_DATA_DIR = flags.DEFINE_string('data_dir', None, launch.DATA_DIR_HELP)
_BATCH_SIZE = flags.DEFINE_list('batch_size', [], "Batch sizes, e.g. 64,256. Default: the config's.")
_DEVICES = flags.DEFINE_list('devices', ['0'], 'Numbers of devices, e.g. 1,2,4; 0: all.')
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file for the results.')
_MEASURE = flags.DEFINE_list(
    'measure',
    ['rates', 'start'],
    'Any of: rates of loader, step and end to end; start: seconds to the first step; scaling with the size of the '
    'data set and the number of models. Empty: nothing but the peers.',
)
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Turns in which every rate is measured.', lower_bound=1)
_PROFILE = flags.DEFINE_string('profile', None, 'Folder for a JAX profiler trace of a few steps.')
_PEERS = flags.DEFINE_list('peers', [], f'Frameworks to compare with: {", ".join(PEERS)}.')
_PEER_PYTHON = flags.DEFINE_list('peer_python', [], 'Their interpreters: torch=PATH,keras=PATH. Default: this one.')


def main() -> None:
    config, data_dir, peers = _CONFIG.value, launch.data_dir(_DATA_DIR), _peers()
    if unknown := set(_MEASURE.value) - set(PARTS):
        raise UsageError(f'--measure: there is no {", ".join(sorted(unknown))}; choose from {", ".join(PARTS)}')
    output = launch.path(_OUTPUT.value) if _OUTPUT.value else None
    if output:
        with _writing(_OUTPUT):
            output.parent.mkdir(parents=True, exist_ok=True)
            output.open('a').close()
    if _PROFILE.value:
        with _writing(_PROFILE):
            launch.path(_PROFILE.value).mkdir(parents=True, exist_ok=True)
    sizes = _sizes(config.batch_size)
    runtime.start(cpu_devices=cpu_devices(config.cpu_devices, math.gcd(*sizes[1])))
    jax.config.update('jax_enable_compilation_cache', False)  # a compile time is to be the time of a compile
    launch.prepare_if_needed(config, data_dir)
    results: dict[str, Any] = {'machine': machine(), 'rows': [], 'ratios': []}
    try:
        _measure(config, data_dir, peers, sizes, results)
    finally:  # an error in the end takes away nothing that was measured before
        if results['rows']:
            print(as_text(results))
        if output and results['rows']:
            output.write_text(json.dumps(results, indent=2) + '\n', encoding='utf-8')


def _measure(
    config: ConfigDict,
    data_dir: pathlib.Path,
    peers: Peers,
    sizes: tuple[list[int], list[int]],
    results: dict[str, Any],
) -> None:
    """Adds to `results` what the flags ask for, of every number of devices with every batch size."""
    rows, repeats = results['rows'], _REPEATS.value
    for devices in sizes[0]:
        check_devices(devices)  # all, before the first is measured for minutes
    for number, (devices, batch_size) in enumerate(itertools.product(*sizes)):
        config.batch_size = batch_size
        training = make_training(config, data_dir, devices)
        if 'rates' in _MEASURE.value:
            rows += own_rows(training, repeats)
        if 'scaling' in _MEASURE.value:
            rows += scaling_rows(training, repeats)
        if 'start' in _MEASURE.value and number == 0:
            rows += start_rows(training, _train_command(data_dir, batch_size, devices))
        if _PROFILE.value and number == 0:
            profile(training, launch.path(_PROFILE.value))
        more, ratios, versions = against_peers(training, peers, repeats, functools.partial(print, flush=True))
        rows += more
        results['ratios'] += ratios
        results['machine']['versions'] |= versions


@contextlib.contextmanager
def _writing(flag: flags.FlagHolder[str | None]) -> Iterator[None]:
    """Names the flag where what it asks for cannot be written, now and not after minutes."""
    try:
        yield
    except OSError as error:
        raise UsageError(f'--{flag.name}={flag.value} cannot be written ({error.strerror})') from error


def _sizes(batch_size: int) -> tuple[list[int], list[int]]:
    """The numbers of devices and the batch sizes that the flags ask for."""
    try:
        return [int(text) for text in _DEVICES.value] or [0], [int(text) for text in _BATCH_SIZE.value] or [batch_size]
    except ValueError as error:
        raise UsageError(f'--devices and --batch_size take numbers: {error}') from error


def _peers() -> Peers:
    """Script and interpreter of every peer asked for."""
    pythons = dict(item.split('=', 1) for item in _PEER_PYTHON.value if '=' in item)
    unknown = (set(_PEERS.value) | set(pythons)) - set(PEERS)
    if unknown or len(pythons) < len(_PEER_PYTHON.value):
        raise UsageError(
            f'--peers may name {", ".join(PEERS)}, and --peer_python is written torch=PATH,keras=PATH; '
            f'not {",".join(_PEERS.value)} and {",".join(_PEER_PYTHON.value)}'
        )
    return {name: (PEERS[name], os.path.expanduser(pythons.get(name, sys.executable))) for name in _PEERS.value}


def _train_command(data_dir: pathlib.Path, batch_size: int, devices: int) -> list[str]:
    """The command that trains the same config."""
    flag = flags.FLAGS['config']
    overrides = [f'--config.{key}={value}' for key, value in config_flags.get_override_values(flag).items()]
    command = [sys.executable, '-m', 'experiments.train', f'--config={config_flags.get_config_filename(flag)}']
    return [*command, *overrides, f'--config.batch_size={batch_size}', f'--data_dir={data_dir}', f'--devices={devices}']


if __name__ == '__main__':
    flags.mark_flag_as_required('config')
    launch.run(main)
