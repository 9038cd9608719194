"""What is measured of a training, as rows: our own rates and costs, those of the same model elsewhere, and scaling."""

import contextlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from common.benchmark.machine import device_memory, host_memory
from common.benchmark.peak import datasheet_peak, measured_peak
from common.benchmark.peers import Peer, PeerUnavailableError, dtype
from common.benchmark.program import Program, reconfigured, streamed, with_examples, with_members
from common.benchmark.rates import Contestant, Row, bottleneck, ratio, spread, take_turns, trial
from common.benchmark.startup import first_step
from common.flops import flops
from common.training.setup import Training

PARTS = (8, 4, 2, 1)  # an eighth of the data set, or of the models trained together, and so on
PROFILED = 5  # dispatches in a trace
# What peers do not mirror: they train on ready inputs, and every parameter.
UNMIRRORED: Mapping[str, Any] = {'augment': ConfigDict(), 'ema_decay': 0.0, 'optimizer.freeze': ()}

type Peers = Mapping[str, tuple[pathlib.Path, str]]  # by name: script and interpreter


def own_rows(training: Training, repeats: int) -> list[Row]:
    """Loader, step and end to end over every transport that fits, all in turns; the step's row holds the costs."""
    both = training.config.data.transport == 'auto' and training.transport_choice.kind != 'streaming'
    trainings = [streamed(training), training] if both else [training]
    programs = {one.transport_choice.kind: Program(one) for one in trainings}
    contestants = {
        (name, kind): contestant
        for name, program in programs.items()
        for kind, contestant in program.contestants().items()
    }
    rates = take_turns(contestants, repeats)
    rows = []
    for (name, kind), samples in rates.items():
        row = _row(training, name, kind, samples)
        step = rates[name, 'step']
        if kind == 'step':
            row |= _costs(programs[name], row['median'])
        if kind.startswith('end to end'):
            shares = ratio(samples, step)
            row['share_of_step'] = shares['median']
            row['bottleneck'] = bottleneck(ratio(rates[name, 'loader'], step)['median'], shares)
        rows.append(row)
    return rows


def _costs(program: Program, rate: float) -> Row:
    """What a step costs: time to compile, operations, memory."""
    training, devices = program.training, len(program.training.parallel)
    plain = reconfigured(training, {'convolution': 'direct'})
    shared = training.transport('train').shared
    asked = flops(plain.train_step, plain.abstract_state(), shared, program.batch) / program.steps
    achieved = asked * rate * program.steps / program.examples
    kind = np.dtype(dtype(training))
    memory = device_memory(training.parallel.devices[0], program.compiled)  # before the peak's product takes some too
    measured, promised = measured_peak(kind, devices), datasheet_peak(kind, devices)
    return {
        'parameters': program.num_parameters,
        'steps_per_dispatch': program.steps,
        'compile_seconds': program.compile_seconds,
        'flops_per_step': asked,
        'compiled_flops_per_dispatch': (program.compiled.cost_analysis() or {}).get('flops'),
        'flops_per_second': achieved,
        'measured_peak': measured,
        'mfu_measured': achieved / measured,
        'datasheet_peak': promised,
        'mfu_datasheet': achieved / promised if promised else None,
        'device_memory': memory,
        'host_memory': host_memory(),
    }


def profile(training: Training, directory: pathlib.Path) -> None:
    """Writes a JAX profiler trace of a few dispatches, the fetching of their batches included."""
    program = Program(training)
    program.end_to_end(1)
    with jax.profiler.trace(str(directory)):
        program.end_to_end(PROFILED)


def scaling_rows(training: Training, repeats: int) -> list[Row]:
    """End to end on parts of the data set, and the step of some of the models that are trained together."""
    transport, models = training.transport_choice.kind, training.members.count or 1
    sized = {part: with_examples(training, part) for part in PARTS}
    rates = take_turns({part: Program(smaller).contestants()['end to end'] for part, smaller in sized.items()}, repeats)
    rows = [
        _row(smaller, transport, 'end to end', rates[part]) | {'dataset_size': len(smaller.train_split)}
        for part, smaller in sized.items()
    ]
    counts = sorted({max(models // part, 2) for part in PARTS}) if models > 1 else []
    some = {count: with_members(training, count) for count in counts}
    rates = take_turns({count: Program(fewer).contestants()['step'] for count, fewer in some.items()}, repeats)
    return rows + [_row(fewer, transport, 'step', rates[count]) for count, fewer in some.items()]


def start_rows(training: Training, train: Sequence[str]) -> list[Row]:
    """Seconds from the start of `train`, the command of such a training, to the end of its first step."""
    transport = training.transport_choice.kind
    return [
        _row(training, transport, f'first step, {cache} compile cache', [reached['step']])
        | {'unit': 's', 'reached': reached}
        for cache, reached in first_step(train).items()
    ]


def against_peers(
    training: Training, peers: Peers, repeats: int, say: Callable[[str], None]
) -> tuple[list[Row], list[Row], dict[str, Any]]:
    """Rows of both sides, measured in turns, our ratio to each peer's best setting, and the peers' versions.

    Ours is the very step of `training`, but without what peers do not mirror.
    """
    whole = min(training.config.accumulate_steps, 1)  # nor batches cut to save memory
    mirrored = reconfigured(training, {**UNMIRRORED, 'accumulate_steps': whole})
    rows, ratios, versions = [], [], {}
    with contextlib.ExitStack() as stack:
        best = {}
        for name, (script, python) in peers.items():
            try:
                first = stack.enter_context(Peer(name, script, python, mirrored))
                more = [Peer(name, script, python, mirrored, variables) for variables in first.environments]
            except PeerUnavailableError as error:
                say(f'{name}: not available with {python}: {error}')
                continue
            versions[name] = dict(first.versions)
            tried: dict[str, tuple[float, Contestant]] = {}
            for peer in [first, *map(stack.enter_context, more)]:
                tried |= _try_settings(peer, say)
            rows += [_row(mirrored, label, 'step, trial', [rate], name) for label, (rate, _) in tried.items()]
            if tried:
                label = max(tried, key=lambda label: tried[label][0])
                best[name, label] = tried[label][1]
        if best:
            program = Program(mirrored)
            rates = take_turns({('triptych', ''): program.contestants()['step'], **best}, repeats)
            ours = rates.pop(('triptych', ''))
            rows.append(_row(mirrored, program.transport, 'step', ours) | {'augmentation': False})
            for (name, setting), theirs in rates.items():
                row = _row(mirrored, setting, 'step', theirs, name)
                rows.append(row)
                ratios.append(
                    {'peer': name}
                    | {key: row[key] for key in ('setting', 'dtype', 'kind', 'batch_size', 'model', 'models')}
                    | ratio(ours, theirs)
                )
    return rows, ratios, versions


def _try_settings(peer: Peer, say: Callable[[str], None]) -> dict[str, tuple[float, Contestant]]:
    """A short trial of every setting: examples a second and the contestant of those that run."""
    tried = {}
    for setting in peer.settings:
        label = ', '.join([setting, *(f'{key}={value}' for key, value in peer.environment.items())])
        try:
            contestant = peer.contestant(setting)
            tried[label] = trial(contestant), contestant
            say(f'{peer.name}, {label}: {tried[label][0]:,.0f} examples/s')
        except PeerUnavailableError as error:
            say(f'{peer.name}, {label}: not available: {error}')
    return tried


def _row(training: Training, setting: str, kind: str, samples: list[float], peer: str = '') -> Row:
    """Of ours, whose setting is the transport, or of a peer."""
    return {
        'side': peer or 'triptych',
        'setting': setting,
        'kind': kind,
        'transport': None if peer else setting,
        'model': type(training.model).__name__,
        'dtype': dtype(training),
        'batch_size': training.config.batch_size,
        'devices': 1 if peer else len(training.parallel),
        'models': training.members.count or 1,
        **spread(samples),
        'unit': 'examples/s',
        'repeats': len(samples),
        'samples': samples,
    }
