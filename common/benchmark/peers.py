"""The same model in other frameworks: programs of their own, in interpreters of their own, that answer line by line.

A peer reads one JSON object a line and answers with one. First comes the specification of `specification`; it answers
{'settings': [...], 'environments': [{...}, ...], 'num_parameters': ..., 'versions': {...}}. Then comes
{'setting': ..., 'steps': ...}, as often as one likes; it takes the steps and answers {'seconds': ...}, or
{'unavailable': why} where this setting cannot be had.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import tempfile
from collections.abc import Mapping
from typing import Any, Self

import jax
import numpy as np

from common.benchmark.rates import Contestant
from common.config import plain
from common.errors import UserError
from common.evaluation.restore import example_inputs
from common.process import switched_off
from common.processor import cores, physical_cores
from common.training.setup import Training, num_parameters

# PyTorch's own word for huge pages; ours of memory it inherits.
ENVIRONMENT = {'THP_MEM_ALLOC_ENABLE': '1'}
# XLA_FLAGS are ours, and another library's XLA would stop at those it does not know.
PRIVATE = ('XLA_FLAGS', 'PYTHONPATH')


class PeerUnavailableError(Exception):
    """This peer, or this setting of it, cannot run here; the text says why."""


def specification(training: Training) -> dict[str, Any]:
    """What a peer must know to build and train the same model, JSON-able.

    `model` is the Linen module's class name and its attributes; `input_shape` and `num_outputs` are those of one
    example; `models` is how many are trained, one after the other.

    Raises:
      PeerUnavailableError: for a model of several inputs.
    """
    model = training.model
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    inputs = example_inputs(training.task, training.train_split.columns, training.dataset.tables)
    if not isinstance(inputs, jax.Array):
        raise PeerUnavailableError(f'peers mirror models of one input, not of {", ".join(inputs)}')
    outputs = jax.eval_shape(lambda key: model.init_with_output(key, inputs, train=False)[0], jax.random.key(0))
    settings = {name: value for name, value in fields.items() if isinstance(value, int | float | str | tuple | list)}
    return {
        'model': {'name': type(model).__name__} | settings,
        'input_shape': inputs.shape[1:],
        'num_outputs': outputs.shape[-1],
        'loss': training.config.loss.get('name', 'cross_entropy'),
        'optimizer': plain(training.config)['optimizer'],
        'batch_size': training.config.batch_size,
        'models': training.members.count or 1,
        'dtype': dtype(training),
        'threads': cores(),
        'physical_cores': physical_cores(),
    }


def dtype(training: Training) -> str:
    """The dtype in which the model computes."""
    return str(np.dtype(getattr(training.model, 'dtype', None) or 'float32'))


class Peer:
    """A peer's process, for one specification.

    Attributes:
      name: e.g. 'torch'.
      settings: that it knows, e.g. 'channels_last'.
      environments: variables under which another process of it is worth a trial too.
      versions: of its libraries.

    Raises:
      PeerUnavailableError: where it does not start.
      UserError: where its model has another number of parameters, so that nothing could be compared.
    """

    def __init__(
        self,
        name: str,
        script: pathlib.Path,
        python: str,
        training: Training,
        environment: Mapping[str, str] | None = None,
    ):
        self.name, self.environment = name, environment or {}
        self._examples = training.config.batch_size * (training.members.count or 1)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        inherited = {key: value for key, value in os.environ.items() if key not in PRIVATE}
        settings = ENVIRONMENT if jax.default_backend() == 'cpu' and not switched_off(os.environ) else {}
        try:
            self._process = subprocess.Popen(
                [python, str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
                env={**inherited, **settings, **self.environment},
            )
        except OSError as error:
            self._stderr.close()
            raise PeerUnavailableError(f'{python} does not start: {error.strerror}') from error
        try:
            answer = self._ask(specification(training))
            self._compare(answer['num_parameters'], training)
        except BaseException:
            self.close()
            raise
        self.settings: list[str] = answer['settings']
        self.environments: list[dict[str, str]] = answer['environments']
        self.versions: Mapping[str, str] = answer['versions']

    def contestant(self, setting: str) -> Contestant:
        return Contestant(lambda steps: self._ask({'setting': setting, 'steps': steps})['seconds'], self._examples)

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with contextlib.suppress(BrokenPipeError):  # what one that has ended was never told
                    stream.close()
        self._process.kill()
        self._process.wait()
        self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + '\n')
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; why, it says on its other channel
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._stderr.seek(0)
            last = self._stderr.read().decode(errors='replace').strip().splitlines()[-1:]
            raise PeerUnavailableError(last[0] if last else f'it ended with status {self._process.returncode}')
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise PeerUnavailableError(f'it answers {line.strip()[:80]!r}, which is no JSON') from error
        if 'unavailable' in answer:
            raise PeerUnavailableError(answer['unavailable'])
        return answer

    def _compare(self, theirs: int, training: Training) -> None:
        models = training.members.count or 1
        ours = num_parameters(training.abstract_state().params) // models
        if theirs != ours:
            raise UserError(
                f'the {self.name} model has {theirs:,} parameters, ours has {ours:,}: the two are not the same. '
                f'Make {self.name}_peer.py build what config.model says.'
            )
