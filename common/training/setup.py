"""Puts a training together from its config: data, model, optimizer, compiled step, fresh state."""

import dataclasses
import functools
import math
import pathlib
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from common.config import check, choose, number_of_steps
from common.data.dataset import Dataset, Split
from common.data.transport import Choice, Transport, choose_transport
from common.errors import UsageError
from common.evaluation.evaluate import Evaluator
from common.evaluation.restore import example_inputs
from common.flops import flops, has_own_convolution
from common.members import Members, members_of
from common.nn.convolutions import bfloat16
from common.nn.convolutions.choices import recorded
from common.nn.self_check import check as check_convolutions
from common.runtime import DataParallel, compile_cache
from common.state import TrainState
from common.task import Task, task_class
from common.training.dispatch import accumulate_steps, steps_per_dispatch
from common.training.optim import make_optimizer, make_schedule, stop_gradients
from common.training.plan import TrainingPlan
from common.training.steps import init_state, make_train_step
from common.types import Array, Batch, Predictions, Tree


@dataclasses.dataclass
class Training:
    """The parts of a training, before any state; the benchmark times the same parts that a run uses."""

    config: ConfigDict
    dataset: Dataset
    task: Task
    model: Any
    members: Members
    parallel: DataParallel
    plan: TrainingPlan
    total_steps: int
    transport_choice: Choice

    def __post_init__(self) -> None:
        self.schedule = make_schedule(self.config, self.total_steps, self.to_steps)
        self._optimizer = make_optimizer(self.config, self.schedule, self.to_steps)
        self.evaluator = Evaluator(self.task, self.model, self.parallel, members=self.members.count)
        self._transports: dict[str, Transport] = {}
        step = make_train_step(
            self.task,
            self.model,
            self._optimizer,
            members=self.members.count,
            accumulate=self.accumulate_steps,
            ema_decay=self.config.ema_decay,
            stop_gradients=stop_gradients(self.config, self.to_steps, self.total_steps),
        )
        options = bfloat16.options(self.config.precision, self.config.convolution)
        self.train_step = self.parallel.lift(step, donate=True, options=options)

    def to_steps(self, duration: str) -> int:
        """A duration of this training's config in steps."""
        return number_of_steps(
            duration,
            steps_per_epoch=self.plan.steps_per_epoch,
            batch_size=self.config.batch_size,
            total_steps=self.total_steps,
        )

    @property
    def accumulate_steps(self) -> int:
        """Parts into which the rows of every device are cut."""
        rows = self.config.batch_size // len(self.parallel)
        return accumulate_steps(self.config.accumulate_steps, rows, jax.default_backend())

    @functools.cached_property
    def steps_per_dispatch(self) -> int:
        """Steps that run on the devices in one call."""
        boundary = self.to_steps(self.config.evaluate_every)
        if self.config.steps_per_dispatch:
            return min(self.config.steps_per_dispatch, boundary)
        steps = steps_per_dispatch(self.flops * len(self.members.seeds), jax.default_backend(), boundary)
        return 1 if steps > 1 and self._slow_in_loops else steps

    @functools.cached_property
    def _slow_in_loops(self) -> bool:
        """Whether there are convolutions whose gradients XLA for CPUs takes up to a hundred times as long for there."""
        _ = self.convolutions  # settled before they are traced
        rows = self.config.batch_size // len(self.parallel) // self.accumulate_steps
        return jax.default_backend() == 'cpu' and has_own_convolution(*self._forward(rows))

    @property
    def train_split(self) -> Split:
        return self.dataset.splits['train']

    @functools.cached_property
    def convolutions(self) -> dict[str, str]:
        """On a CPU, the way of every convolution that has a choice, by its shape; checked, here or earlier."""
        if jax.default_backend() != 'cpu':
            return {}
        rows = self.config.batch_size // len(self.parallel)
        with recorded() as layers:
            for batch in {rows, rows // self.accumulate_steps}:  # evaluation does not accumulate
                self._abstract(batch)
        return check_convolutions(layers, compile_cache())

    @functools.cached_property
    def flops(self) -> float:
        """Floating-point operations of one step of one member: three times those of the model's forward pass."""
        return 3.0 * flops(*self._forward(self.config.batch_size))

    def _forward(self, rows: int) -> tuple[Callable, Tree, Tree]:
        """The model's forward pass, and the shapes of what it takes."""
        return functools.partial(self.model.apply, train=False), *self._abstract(rows)

    def _abstract(self, rows: int) -> tuple[Tree, Tree]:
        """Shapes of the model's variables and of a batch of so many rows of its inputs."""
        example = jax.eval_shape(lambda: example_inputs(self.task, self.train_split.columns, self.dataset.tables))
        inputs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype), example)
        return jax.eval_shape(functools.partial(self.model.init, train=False), jax.random.key(0), inputs), inputs

    def head(self) -> set[str]:
        """Names of the model's variables whose shapes follow the number of classes, as 'params.classifier.kernel'."""
        info = self.dataset.info
        if 'class_names' not in info:
            return set()
        more = type(self.task)(self.config, {**info, 'class_names': [*info['class_names'], 'one more']}).model()
        variables, inputs = self._abstract(1)
        others = jax.eval_shape(functools.partial(more.init, train=False), jax.random.key(0), inputs)
        leaves = zip(jax.tree.leaves_with_path(variables), jax.tree.leaves(others), strict=True)
        return {
            jax.tree_util.keystr(path, simple=True, separator='.')
            for (path, leaf), other in leaves
            if leaf.shape != other.shape
        }

    def transport(self, split: str) -> Transport:
        """The split's transport, made at first use."""
        if split not in self._transports:
            self._transports[split] = Transport(
                self.dataset.splits[split],
                self.dataset.tables,
                self.parallel,
                self.transport_choice.kind,
                threads=self.config.data.threads,
            )
        return self._transports[split]

    def init_state(self) -> TrainState:
        """A fresh state on every device."""
        # It runs once: optimising it would take XLA a second a parameter on a CPU, and win nothing.
        init = jax.jit(self._init, compiler_options={'xla_backend_optimization_level': 0})
        return self.parallel.replicate(init(self.members.keys()))

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state, for restoring."""
        shapes = jax.eval_shape(self._init, self.members.keys())
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.parallel.replicated),
            shapes,
        )

    def _init(self, keys: Array) -> TrainState:
        inputs = example_inputs(self.task, self.train_split.columns, self.dataset.tables)
        return init_state(self.model, self._optimizer, keys, inputs, average=self.config.ema_decay > 0)

    def compile(self, state: TrainState, batch: Batch) -> tuple[Callable, str]:
        """The train step compiled ahead of time for such a batch, and its cost in words."""
        shared = self.transport('train').shared
        _ = self.convolutions  # settled before they are traced
        counts = {
            'steps_per_dispatch': batch['mask'].shape[1],
            'accumulate_steps': self.accumulate_steps,
            'ensemble': self.members.count or 1,
        }
        loops = [f'config.{name}={count}' for name, count in counts.items() if count > 1]
        if loops and self._slow_in_loops:
            warnings.warn(
                f"in the loop of {' and '.join(loops)} the gradients of XLA's own convolutions take up to a hundred "
                "times as long on a CPU: set it to 1, or take those of common.nn.conv, with config.convolution='auto'",
                stacklevel=2,
            )
        begin = time.perf_counter()
        compiled = self.train_step.compile(state, shared, batch)
        seconds = time.perf_counter() - begin
        operations = self.flops * len(self.members.seeds) * batch['mask'].shape[1]
        memory = program_memory(compiled)
        room = '' if memory is None else f', {memory / 2**20:,.0f} MiB on each device'
        return compiled, f'compiled in {seconds:.1f} s; {operations / 1e9:.2f} GFLOP a dispatch{room}'

    def evaluate(self, state: TrainState, split: str) -> Predictions:
        """What the model, or all members together, say of a split, in its order."""
        rows = self.members.rows(self.task, self.dataset.splits[split])
        parts = self.evaluator(state.variables, self.transport(split), rows, self.config.batch_size)
        return self.members.combine(self.task, parts, rows)


def check_devices(number: int) -> None:
    """Raises UsageError where there are not so many devices."""
    if not 0 <= number <= len(jax.devices()):
        raise UsageError(f'--devices={number}: there are {len(jax.devices())} ({jax.devices()[0].platform})')


def make_training(config: ConfigDict, data_dir: pathlib.Path, devices: int = 0) -> Training:
    """Everything that `config` asks for, over the first `devices` devices (0: all).

    Raises:
      UserError: for data or config values that cannot be.
    """
    check(config)
    kind = task_class(config.task)
    dataset = kind.load(config, data_dir)
    task = kind(config, dataset.info)
    check_devices(devices)
    parallel = DataParallel(jax.devices()[: devices or None])
    train = dataset.splits['train']
    groups = task.members(train)
    members = members_of(config, None if groups is None else len(groups))
    plan = TrainingPlan(config, task.class_of(train), members, members.rows(task, train), len(parallel))
    if config.batch_size % (len(parallel) * max(config.accumulate_steps, 1)):
        parts = f' and {config.accumulate_steps} parts' if config.accumulate_steps > 1 else ''
        raise UsageError(f'config.batch_size {config.batch_size} does not divide over {len(parallel)} devices{parts}')
    total = number_of_steps(config.duration, steps_per_epoch=plan.steps_per_epoch, batch_size=config.batch_size)
    _refuse_none(config, 'duration', total)
    training = Training(
        config=config.copy_and_resolve_references(),
        dataset=dataset,
        task=task,
        model=task.model(),
        members=members,
        parallel=parallel,
        plan=plan,
        total_steps=total,
        transport_choice=choose_transport(config.data.transport, _num_bytes(dataset), parallel),
    )
    for key in ('evaluate_every', 'log_every'):
        _refuse_none(config, key, training.to_steps(config[key]))
    monitor = training.config.monitor
    better = choose({'loss': 'min', **task.better}, monitor.metric, 'monitor.metric')
    if monitor.mode == 'auto':
        monitor.mode = better
    return training


def _refuse_none(config: ConfigDict, key: str, steps: int) -> None:
    if not steps:
        raise UsageError(f'config.{key} is {config[key]!r}; it must be a step or more')


def _num_bytes(dataset: Dataset) -> int:
    arrays = [column for split in dataset.splits.values() for column in split.columns.values()]
    return sum(array.nbytes for array in [*arrays, *dataset.tables.values()])


def num_parameters(params: Tree) -> int:
    return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(params))


def program_memory(compiled: Any) -> int | None:
    """Bytes that a compiled program needs on each device; None where XLA does not say."""
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    donated = memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes - donated
