"""Our side of a benchmark: the data, transport and compiled step of a training, as its loop runs them."""

import dataclasses
import functools
import mmap
import operator
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from common.benchmark.rates import Contestant
from common.data.dataset import Split
from common.data.transport import Choice
from common.members import Members
from common.training.plan import TrainingPlan
from common.training.setup import Training, num_parameters

LEAD = 2  # dispatches before the clock runs
AHEAD = 8  # dispatches after it has stopped, so that reading ahead goes on to the end, as in a long training


class Program:
    """A training's step, compiled, with a state and one batch on the device.

    Attributes:
      training: whose step it is.
      transport: 'streaming', or how it is resident.
      examples: in one dispatch, of all members together.
      compile_seconds: tracing included.
      compiled: as `Training.compile` gives it.
      num_parameters: of one model.
    """

    def __init__(self, training: Training):
        self.training = training
        self.transport = training.transport_choice.kind
        self.steps = training.steps_per_dispatch
        models = training.members.count or 1
        self.examples = self.steps * training.plan.batch_size * models
        self._data = training.transport('train')
        host = self._data.host_batch(*training.plan.dispatches([(0, self.steps)])[0])
        self.batch = training.parallel.put(host)
        self.state: Any = training.init_state()
        self.num_parameters = num_parameters(self.state.params) // models
        begin = time.perf_counter()
        compiled, _ = training.compile(self.state, self.batch)
        self.compiled: Any = compiled
        self.compile_seconds = time.perf_counter() - begin

    def contestants(self) -> dict[str, Contestant]:
        """Loader, step and end to end, by the kind of their rates."""
        kinds = {'loader': self.loader, 'step': self.step, 'end to end': self.end_to_end}
        if self.transport == 'streaming' and _mapped(self.training.train_split):
            kinds['end to end, files not in memory'] = self.end_to_end_cold
        return {kind: Contestant(go, self.examples) for kind, go in kinds.items()}

    def step(self, count: int) -> float:
        """Seconds of `count` dispatches of the step alone, on the same batch."""
        begin = time.perf_counter()
        for _ in range(count):
            self.state, metrics = self.compiled(self.state, self._data.shared, self.batch)
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - begin

    def loader(self, count: int) -> float:
        """Seconds until `count` dispatches more have arrived on the device, with no step in their way."""
        return self._deliver(count, train=False)

    def end_to_end(self, count: int) -> float:
        """Seconds of `count` dispatches as in training, each with data of its own."""
        return self._deliver(count, train=True)

    def end_to_end_cold(self, count: int) -> float:
        """The same, after the system has dropped the files from memory."""
        forget(self.training.train_split)
        return self._deliver(count, train=True)

    def _deliver(self, count: int, train: bool) -> float:
        parts = [(number * self.steps, self.steps) for number in range(LEAD + count + AHEAD)]
        batches = iter(self._data.batches(self.training.plan.dispatches(parts)))
        for number in range(LEAD + count):
            if number == LEAD:
                jax.block_until_ready(self.state)
                begin = time.perf_counter()
            batch = next(batches)
            if train:
                self.state, _ = self.compiled(self.state, self._data.shared, batch)
            else:
                jax.block_until_ready(batch)
        jax.block_until_ready(self.state)
        return time.perf_counter() - begin


def _mapped(split: Split) -> list[np.memmap]:
    return [column for column in split.columns.values() if isinstance(column, np.memmap)]


def forget(split: Split) -> None:
    """Asks the system to drop the split's files from memory, so that they are read from disk again."""
    for column in _mapped(split):
        mapping: Any = column.base
        while not isinstance(mapping, mmap.mmap):
            mapping = mapping.base
        mapping.madvise(mmap.MADV_DONTNEED)
        with open(str(column.filename), 'rb') as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def reconfigured(training: Training, values: Mapping[str, Any]) -> Training:
    """The same training with other config values, of those that neither data nor order depend on."""
    config = training.config.copy_and_resolve_references()
    for key, value in values.items():
        *parts, name = key.split('.')
        functools.reduce(operator.getitem, parts, config)[name] = value
    task = type(training.task)(config, training.dataset.info)
    return dataclasses.replace(training, config=config, task=task, model=task.model())


def streamed(training: Training) -> Training:
    """The same training over the streaming transport."""
    return dataclasses.replace(training, transport_choice=Choice('streaming', 'for the benchmark'))


def with_examples(training: Training, stride: int) -> Training:
    """The same training on every `stride`th example of its training split, so that all classes and groups remain."""
    train = training.train_split
    columns = {name: column[::stride] for name, column in train.columns.items()}
    smaller = Split(name=train.name, columns=columns, records=train.records.iloc[::stride])
    dataset = dataclasses.replace(training.dataset, splits={**training.dataset.splits, 'train': smaller})
    return _with_plan(dataclasses.replace(training, dataset=dataset), training.members)


def with_members(training: Training, count: int) -> Training:
    """The same training of its first `count` models alone."""
    members = Members(training.members.seeds[:count], training.members.by_group)
    return _with_plan(training, members)


def _with_plan(training: Training, members: Members) -> Training:
    train, task = training.train_split, training.task
    rows = members.rows(task, train)[: len(members.seeds)]
    plan = TrainingPlan(training.config, task.class_of(train), members, rows, len(training.parallel))
    return dataclasses.replace(training, members=members, plan=plan)
