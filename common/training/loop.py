"""The training loop.

At every step boundary, in this order and no other: evaluate the state as it is, save it, and only then take the
next batch, step, and log. So a checkpoint always stands for exactly the steps before it; a run that was stopped
and goes on takes the same batches, draws the same random numbers and ends with the same bits.
"""

import collections
import dataclasses
import math
import pathlib
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from common.checkpoint import Checkpoints
from common.errors import TrainingDivergedError
from common.state import TrainState
from common.training.interruption import asked_of_all, interruption
from common.training.journal import Clock, Journal, duration_text
from common.training.plan import chunks
from common.training.setup import Training
from common.types import Array

VALIDATION = 'validation'


@dataclasses.dataclass
class Progress:
    """What a checkpoint keeps beside the state, as JSON."""

    seconds: float = 0.0  # spent training
    evaluated_at: int = 0  # the step of the last evaluation
    best: float | None = None  # the best monitored metric, None before the first evaluation, reached at `best_step`
    best_step: int = 0
    stale: int = 0  # evaluations since then
    stale_since_drop: int = 0  # evaluations since the best or since the plateau schedule last lowered the rate
    steps: int = 0  # since the last evaluation
    sums: dict[str, float] = dataclasses.field(default_factory=dict)  # of every training metric over these steps


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a training ended: 'complete', 'stopped early' or 'interrupted'; the last with an exit status that tells."""

    ended: str
    step: int
    progress: Progress
    exit_status: int = 0


def train(
    training: Training, state: TrainState, progress: Progress, checkpoints: Checkpoints, workdir: pathlib.Path
) -> Outcome:
    """Trains from `state` to the end of the config's duration, or until stopped early or interrupted.

    Raises:
      TrainingDivergedError: if a loss or the monitored metric becomes NaN or infinite; checkpoints stay as they were.
    """
    with interruption() as asked_to_stop:
        return _Loop(training, state, progress, checkpoints, workdir).run(asked_to_stop)


class _Loop:
    def __init__(
        self,
        training: Training,
        state: TrainState,
        progress: Progress,
        checkpoints: Checkpoints,
        workdir: pathlib.Path,
    ):
        self._training, self._checkpoints, self._progress = training, checkpoints, progress
        self._state = state
        self._step = int(np.max(state.step))
        self._scale = float(np.mean(state.learning_rate_scale))
        # All at once, since a rate that is asked for while the device is at work would wait for it.
        self._rates = np.asarray(jax.vmap(training.schedule)(np.arange(training.total_steps)))
        self._chief = jax.process_index() == 0
        self._line = tqdm(bar_format='{desc}', disable=None, leave=False)  # for the person watching a terminal
        self._clock = Clock(progress.seconds)
        config = training.config
        self._evaluate_every = training.to_steps(config.evaluate_every)
        self._log_every = training.to_steps(config.log_every)
        self._pending: collections.deque[tuple[int, Any]] = collections.deque()  # metrics not yet fetched
        self._latest: dict[str, float] = {}
        self._due: dict[int, dict[str, float]] = {}  # rates to be recorded beside the metrics of their step
        self._logged = self._step
        self._timed = (self._step, self._clock.seconds)  # a step that was waited for, and when
        self._journal = Journal(workdir, self._step, active=self._chief)

    def run(self, asked_to_stop: Sequence[int]) -> Outcome:
        training, compiled = self._training, {}
        try:
            parts = chunks(self._step, training.total_steps, self._evaluate_every, training.steps_per_dispatch)
            transport = training.transport('train')
            batches = iter(transport.batches(training.plan.dispatches(parts)))
            boundary = 0
            while True:
                self._evaluate_and_save()
                if self._is_over():
                    return Outcome(self._is_over(), self._step, self._progress)
                if asked_to_stop or asked_of_all(boundary):
                    return self._interrupted(asked_to_stop[0] if asked_to_stop else signal.SIGTERM)
                boundary += 1
                batch = next(batches)
                count = batch['mask'].shape[1]
                if count not in compiled:
                    self._clock.pause()
                    self._line.set_description_str('compiling the step')
                    compiled[count], cost = training.compile(self._state, batch)
                    self._say(cost)
                self._clock.resume()
                self._state, metrics = compiled[count](self._state, transport.shared, batch)
                self._step += count
                self._pending.append((self._step, metrics))
                self._log()
        finally:
            self._line.close()
            self._journal.close()

    def _evaluate_and_save(self) -> None:
        step, training = self._step, self._training
        due = step > 0 and (step % self._evaluate_every == 0 or step == training.total_steps)
        if not due or step == self._progress.evaluated_at:
            return
        self._fetch(keep=0)
        self._clock.pause()
        predictions = training.evaluate(self._state, VALIDATION)
        loss = float(np.mean(predictions['loss']))
        if not math.isfinite(loss):
            raise self._diverged(f'validation loss is {loss}', step)
        metrics = {'loss': loss, **training.task.metrics(predictions, training.dataset.splits[VALIDATION])}
        metric = training.config.monitor.metric
        monitored = metrics[metric]
        if not math.isfinite(monitored):
            raise TrainingDivergedError(
                f'the validation {metric} is {monitored} at step {step}: give another config.monitor.metric'
            )
        self._note(monitored)
        progress = self._progress
        record = {f'train/{name}': total / progress.steps for name, total in progress.sums.items()}
        record |= {f'validation/{name}': value for name, value in metrics.items()}
        progress.steps, progress.sums = 0, {}
        epoch = step / training.plan.steps_per_epoch
        self._journal.write(step, {'epoch': epoch, 'seconds': progress.seconds, **record})
        self._say(_evaluation_line(epoch, step, record, metric, progress.stale == 0))
        self._checkpoints.save(self._state, dataclasses.asdict(progress), step, monitored)

    def _note(self, monitored: float) -> None:
        """Books the monitored metric: best so far, patience, plateau."""
        config, progress = self._training.config, self._progress
        sign = 1 if config.monitor.mode == 'max' else -1
        better = progress.best is None or sign * monitored > sign * progress.best
        progress.seconds, progress.evaluated_at = self._clock.seconds, self._step
        progress.stale = 0 if better else progress.stale + 1
        progress.stale_since_drop = 0 if better else progress.stale_since_drop + 1
        if better:
            progress.best, progress.best_step = monitored, self._step
        if config.schedule.name == 'plateau' and progress.stale_since_drop >= config.schedule.patience:
            progress.stale_since_drop = 0
            scale = self._state.learning_rate_scale * config.schedule.factor
            self._state = self._state.replace(learning_rate_scale=scale)
            self._scale = float(np.mean(scale))

    def _is_over(self) -> str:
        patience = self._training.config.monitor.patience
        if patience and self._progress.stale >= patience and self._step == self._progress.evaluated_at:
            return 'stopped early'
        return 'complete' if self._step >= self._training.total_steps else ''

    def _interrupted(self, signal_number: int) -> Outcome:
        self._fetch(keep=0)
        self._progress.seconds = self._clock.seconds
        if self._step > 0:
            self._checkpoints.save(self._state, dataclasses.asdict(self._progress), self._step)
        return Outcome('interrupted', self._step, self._progress, 128 + signal_number)

    def _log(self) -> None:
        if self._step // self._log_every == self._logged // self._log_every:
            return
        self._logged = self._step
        figures = self._due[self._step] = {'learning_rate': float(self._rates[self._step - 1]) * self._scale}
        if len(self._pending) < 2:
            return  # no step has been waited for, only called
        done, (before, seconds) = self._pending[-2][0], self._timed
        self._fetch(keep=1)  # the newest metrics are still being computed: waiting for them would idle the device
        now = self._clock.seconds
        self._timed = (done, now)
        step_time = (now - seconds) / (done - before)
        rate = self._training.plan.batch_size * (self._training.members.count or 1) / step_time
        figures['examples_per_second'] = rate
        left = (self._training.total_steps - self._step) * step_time
        self._line.set_description_str(
            f'step {self._step}/{self._training.total_steps}  loss {self._latest["loss"]:.4f}  {rate:,.0f} examples/s  '
            f'{1e3 * step_time:.1f} ms a step  {duration_text(left)} to go'
        )

    def _fetch(self, keep: int) -> None:
        """Brings metrics to the host, all but the newest `keep` dispatches, and records those of steps that are due.

        Stops a training that has diverged.
        """
        while len(self._pending) > keep:
            step, metrics = self._pending.popleft()
            host = mean_over_members(metrics)
            for i, objective in enumerate(host['objective']):
                if not math.isfinite(objective):
                    at = step - len(host['objective']) + i + 1
                    raise self._diverged(f'training loss became {objective}', at)
                self._latest = {name: float(value[i]) for name, value in host.items()}
                self._progress.steps += 1
                for name, value in self._latest.items():
                    self._progress.sums[name] = self._progress.sums.get(name, 0.0) + value
            if step in self._due:
                figures = {'step_loss': self._latest['loss'], 'gradient_norm': self._latest['gradient_norm']}
                self._journal.write(step, figures | self._due.pop(step))

    def _diverged(self, what: str, step: int) -> TrainingDivergedError:
        kept = '' if self._checkpoints.is_empty() else ', in another --workdir; the last good checkpoint stays best'
        remedy = f'lower config.optimizer.learning_rate or set config.optimizer.gradient_clip{kept}'
        return TrainingDivergedError(f'the {what} at step {step}: {remedy}')

    def _say(self, text: str) -> None:
        self._line.clear()
        if self._chief:
            print(text, flush=True)


def _evaluation_line(epoch: float, step: int, record: Mapping[str, float], monitored: str, is_best: bool) -> str:
    """'epoch 3.0 (step 27)  loss 1.49 train 1.28 validation  ...', for what both sides have and what is monitored."""
    words = [f'epoch {epoch:.1f} (step {step})']
    for name in dict.fromkeys(['loss', 'accuracy', monitored]):
        sides = [
            f'{record[f"{side}/{name}"]:.4f} {side}' for side in ('train', VALIDATION) if f'{side}/{name}' in record
        ]
        words += [f'{name} {", ".join(sides)}'] if sides else []
    return '  '.join(words) + ('  (best)' if is_best else '')


def mean_over_members(metrics: Mapping[str, Array]) -> dict[str, np.ndarray]:
    """Metrics [steps] or [steps, members] -> float64 [steps]."""
    return {name: np.asarray(value, np.float64).reshape(len(value), -1).mean(axis=1) for name, value in metrics.items()}
