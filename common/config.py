"""The frame's config with its defaults, durations such as '10epochs', and the config.json that a run keeps."""

import dataclasses
import functools
import json
import math
import operator
import pathlib
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from common.errors import DataError, UsageError, UserError

CONFIG_FILE = 'config.json'


def base_config() -> ConfigDict:
    """Every value that the frame itself reads; a task's configs fill in `dataset`, `model`, `loss` and `augment`.

    The result is locked: a misspelt key raises at once. Durations are strings such as '10epochs', '500steps',
    '10000examples' or '5%' of the whole training.
    """
    config = ConfigDict()
    config.task = ''  # the package that holds the task: lesion, stocks, expressions, or your own
    config.seed = 0  # of the weights, the data order, augmentation and dropout
    config.batch_size = 64  # over all devices
    config.duration = '10epochs'
    config.evaluate_every = '1epochs'  # validation, and with it a checkpoint
    config.log_every = '20steps'
    config.steps_per_dispatch = 0  # steps that run on the device in one call; 0: several where they are short
    config.accumulate_steps = 1  # parts into which a batch is cut to save memory; 0: to stay in a CPU's cache
    config.cpu_devices = 1  # that a CPU is divided into; 0: one a core, for long steps and for LSTMs
    config.precision = 'auto'  # of the computation: float32, bfloat16, or auto: what the device likes
    config.convolution = 'auto'  # on CPUs; direct: XLA's own; others by name: common/nn/conv.py
    config.ema_decay = 0.0  # 0: evaluate the weights themselves; 0.999: their moving average
    config.ensemble = 1  # models of consecutive seeds trained in one program, their predictions averaged
    config.init_from = ''  # weights to start from: a run's folder (its best), a .safetensors file, or imagenet
    config.init_names = ()  # pairs (regular expression, replacement), from names there to names here
    config.dataset = ConfigDict({'name': '', 'raw_dir': ''})
    config.data = ConfigDict(
        {
            'transport': 'auto',  # resident: the data set lives on the devices; streaming: it is read as it goes
            'sampling': 'uniform',  # or balanced: every class equally often
            'threads': 2,  # that read batches ahead
        }
    )
    config.augment = ConfigDict()
    config.model = ConfigDict()
    config.loss = ConfigDict()
    config.optimizer = ConfigDict(
        {
            'name': 'adamw',  # adam, adamw, sgd (with Nesterov momentum)
            'learning_rate': 1e-3,
            'weight_decay': 1e-4,  # on kernels only; decoupled in adamw, through the momentum in sgd
            'momentum': 0.9,
            'gradient_clip': 0.0,  # largest global norm; 0: off
            'scales': (),  # pairs (prefix of parameter names, factor of their learning rate): (('backbone', 0.1),)
            'freeze': (),  # pairs (prefix, how long they stay as they are, 100% for always): (('backbone', '2epochs'),)
        }
    )
    config.schedule = ConfigDict(
        {
            'name': 'cosine',  # constant, cosine, step, plateau
            'warmup': '0steps',
            'factor': 0.1,  # of step and plateau
            'milestones': ('50%', '75%'),  # of step
            'patience': 3,  # of plateau: evaluations without a better monitored metric
        }
    )
    config.monitor = ConfigDict(
        {
            'metric': 'loss',  # of the validation split; decides which checkpoint is best
            'mode': 'auto',  # min or max: which is better; auto: as the task says of the metric
            'patience': 0,  # evaluations without improvement before training stops early; 0: never
        }
    )
    return config.lock()


def number_of_steps(duration: str, *, steps_per_epoch: int, batch_size: int, total_steps: int | None = None) -> int:
    """Steps in a duration such as '10epochs', '500steps', '10000examples', '5%'; rounded up.

    Raises:
      UsageError: if it is none of these, or a percentage where no total is known.
    """
    match = re.fullmatch(r'\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?|examples?|%)\s*', str(duration))
    if not match:
        raise UsageError(f'{duration!r} is no duration; write 500steps, 10epochs, 10000examples or 5%')
    value, unit = float(match[1]), match[2].rstrip('s')
    if unit == '%' and total_steps is None:
        raise UsageError(f'{duration!r}: a percentage needs a training of known length')
    per_unit = {'step': 1, 'epoch': steps_per_epoch, 'example': 1 / batch_size, '%': (total_steps or 0) / 100}
    return math.ceil(round(value * per_unit[unit], 6))


def choose(options: Mapping[str, Any], name: str, key: str) -> Any:
    """`options[name]`, or a UsageError that names the config key and what it may be."""
    if name not in options:
        raise UsageError(f'config.{key} is {name!r}; it may be {", ".join(map(str, options))}')
    return options[name]


def choose_variant(options: Mapping[str, Any], name: str) -> Any:
    """`options[name]` for what follows the colon of --config=FILE:name, or a UsageError that says what it may be."""
    if name not in options:
        raise UsageError(f'there is no variant {name!r}; after --config=FILE: it may be {", ".join(options)}')
    return options[name]


def pairs(value: Sequence[Any], key: str) -> Sequence[tuple[str, Any]]:
    """`value`, or a UsageError that names the config key where it is not pairs of a text and something."""
    if not all(isinstance(pair, Sequence) and len(pair) == 2 and not isinstance(pair, str) for pair in value):
        raise UsageError(f"config.{key} is {value!r}; it must be pairs, with both brackets: (('backbone', ...),)")
    return value


def require(config: Mapping[str, Any] | ConfigDict, wanted: Mapping[str, tuple[bool, str]]) -> None:
    """Raises UsageError for the first key whose value is not right: by key, whether it is and what it must be."""
    for key, (right, must) in wanted.items():
        if not right:
            value = functools.reduce(operator.getitem, key.split('.'), config)
            raise UsageError(f'config.{key} is {value!r}; it must be {must}')


def check(config: ConfigDict) -> None:
    """Raises UsageError, naming the key, where a value of the frame's own makes no sense; warns where two clash."""
    batch, parts, optimizer = config.batch_size, config.accumulate_steps, config.optimizer
    wanted = {
        # JAX takes the lower 32 bits: 2**32 would give the weights of 0
        'seed': (0 <= config.seed < 2**32, 'from 0 to below 2**32'),
        'batch_size': (batch >= 1, 'at least 1'),
        'steps_per_dispatch': (config.steps_per_dispatch >= 0, 'at least 0'),
        'accumulate_steps': (not parts or (parts >= 1 and batch % parts == 0), f'0 or a divisor of batch_size {batch}'),
        'cpu_devices': (config.cpu_devices >= 0, 'at least 0'),
        'ensemble': (config.ensemble >= 1, 'at least 1'),
        'ema_decay': (0 <= config.ema_decay < 1, 'from 0 to below 1'),
        'optimizer.learning_rate': (optimizer.learning_rate >= 0, 'at least 0'),
        'optimizer.weight_decay': (optimizer.weight_decay >= 0, 'at least 0'),
        'optimizer.momentum': (0 <= optimizer.momentum < 1, 'from 0 to below 1'),
        'optimizer.scales': (
            all(isinstance(factor, int | float) for _, factor in pairs(optimizer.scales, 'optimizer.scales')),
            'pairs of a prefix and a number',
        ),
        'optimizer.gradient_clip': (optimizer.gradient_clip >= 0, 'at least 0'),
        'schedule.factor': (config.schedule.factor >= 0, 'at least 0'),
        'schedule.patience': (config.schedule.patience >= 1, 'at least 1'),
        'data.threads': (config.data.threads >= 0, 'at least 0'),
        'monitor.mode': (config.monitor.mode in ('auto', 'min', 'max'), 'auto, min or max'),
        'monitor.patience': (config.monitor.patience >= 0, 'at least 0'),
    }
    require(config, wanted)
    reweighted = config.loss.get('logit_adjustment') or config.loss.get('class_weights', 'none') != 'none'
    if reweighted and config.data.sampling == 'balanced':
        warnings.warn(
            'rare classes are favoured twice, by config.data.sampling=balanced and by config.loss.class_weights or '
            'logit_adjustment: give config.data.sampling=uniform, or leave those out',
            stacklevel=2,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What config.json holds: enough to rebuild the task and its model without the data set."""

    config: ConfigDict  # resolved, every value that was used
    info: Mapping[str, Any]  # the Dataset's
    # shape of one example and dtype by column, as ShapeDtypeStruct [1, ...]
    columns: Mapping[str, jax.ShapeDtypeStruct]
    tables: Mapping[str, jax.ShapeDtypeStruct]  # shape and dtype of every table
    groups: int | None  # number of groups that have a model each; None for one model
    data_dir: str  # where the prepared data were
    environment: Mapping[str, Any]  # versions, devices, the transport chosen

    def check_data(self, info: Mapping[str, Any], workdir: pathlib.Path) -> None:
        """Raises DataError where a data set of that `info` is not the one that the run in `workdir` was trained on."""
        now = json.loads(json.dumps(info))
        changed = [key for key, value in self.info.items() if value != now.get(key)]
        if changed:
            raise DataError(
                f'the data set is not the one that {workdir} was trained on: {", ".join(changed)} differ. '
                'Prepare it again from the same files with the config of the run.'
            )


def plain(config: ConfigDict) -> dict[str, Any]:
    """The config as JSON would give it back: dicts, lists, numbers and strings only."""
    return json.loads(config.to_json())


def save_run(workdir: pathlib.Path, record: RunRecord) -> None:
    content = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    content['config'] = plain(record.config)
    for name in ('columns', 'tables'):
        content[name] = {key: {'shape': leaf.shape, 'dtype': str(leaf.dtype)} for key, leaf in content[name].items()}
    partial = workdir / (CONFIG_FILE + '.partial')
    partial.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
    partial.replace(workdir / CONFIG_FILE)


def load_run(workdir: pathlib.Path) -> RunRecord:
    """Raises UserError where `workdir` is no run."""
    path = workdir / CONFIG_FILE
    if not path.is_file():
        raise UserError(f'{workdir} holds no run: there is no {CONFIG_FILE}. Train into it first.')
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        content['config'] = ConfigDict(content['config'])
        for name in ('columns', 'tables'):
            content[name] = {key: jax.ShapeDtypeStruct(**spec) for key, spec in content[name].items()}
        return RunRecord(**content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f'{path} is damaged ({error}); restore it or train anew into another folder.') from error


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """One line per value that differs, e.g. 'config.batch_size: 64 before, 32 now'."""
    before, now = _flat(plain(old)), _flat(plain(new))
    return [
        f'config.{key}: {before.get(key, "absent")} before, {now.get(key, "absent")} now'
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def _flat(tree: Any, prefix: str = '') -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {name: value for key, item in tree.items() for name, value in _flat(item, f'{prefix}{key}.').items()}
