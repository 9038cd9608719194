"""Checkpoints of a run through Orbax: the state and how far the training is, the latest and the best kept."""

import math
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from common.errors import CheckpointError
from common.state import TrainState
from common.types import Tree

MONITORED = 'monitored'
FOLDER = 'checkpoints'
BESIDE = 2**20  # bytes, of what is written beside the arrays


def has_checkpoints(workdir: pathlib.Path) -> bool:
    """Whether `workdir` holds a run that has learnt something."""
    return any(path.name.isdigit() for path in (workdir / FOLDER).glob('*'))


class Checkpoints:
    """The folder `checkpoints/` of a run, one sub-folder a step.

    Saving is asynchronous: it returns when the device may go on. A save that was interrupted leaves nothing that
    counts as a checkpoint.
    """

    def __init__(self, workdir: pathlib.Path, mode: str = 'min'):
        """`mode` says whether the monitored metric is better when 'min' or 'max'.

        Raises:
          CheckpointError: where files that Orbax reads at once are damaged.
        """
        self.directory = workdir.absolute() / FOLDER
        self._sign = 1.0 if mode == 'max' else -1.0
        policies = checkpoint_managers
        keep = policies.AnyPreservationPolicy(
            [
                policies.LatestN(1),
                policies.BestN(get_metric_fn=self._rank, n=1),
            ]
        )
        # Without `best_fn`, Orbax does not write the metrics, and a resumed run would not know its best.
        options = ocp.CheckpointManagerOptions(preservation_policy=keep, best_fn=self._rank, create=True)
        handlers = {'state': ocp.PyTreeCheckpointHandler(), 'progress': ocp.JsonCheckpointHandler()}
        try:
            self._manager = _Manager(self.directory, options=options, item_handlers=handlers)
        except ValueError as error:
            raise CheckpointError(
                f'{self.directory} cannot be read, the metrics of a checkpoint in it are damaged ({error}). '
                'Remove that checkpoint to go on from another.'
            ) from error

    def save(self, state: TrainState, progress: dict[str, Any], step: int, monitored: float | None = None) -> None:
        """Starts writing `step`. A step without `monitored`, saved between evaluations, can be latest, never best.

        Raises:
          CheckpointError: where the disk has no room for it.
        """
        if step in self._manager.all_steps():
            return  # an interruption right at an evaluation
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + BESIDE
        free = shutil.disk_usage(self.directory).free
        if free < needed:  # Orbax would tell it in hundreds of lines
            raise CheckpointError(
                f'the checkpoint of step {step} may take {needed / 2**20:,.1f} MiB, and {self.directory} has '
                f'{free / 2**20:,.1f} left. Make room, and give the same command again.'
            )
        if monitored is not None and not math.isfinite(monitored):
            raise ValueError(f'a monitored metric of {monitored} would count as best')
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), progress=ocp.args.JsonSave(progress))
        metrics = {MONITORED: None if monitored is None else float(monitored), 'step': step}
        self._manager.save(step, args=items, metrics=metrics, force=True)

    def find(self, which: str = 'latest') -> int:
        """The step of 'latest', 'best' (the latest where none was evaluated) or a number.

        Raises:
          CheckpointError: where there is none, saying which there are.
        """
        steps = self._steps()
        if not steps:
            raise CheckpointError(f'there is no checkpoint in {self.directory}: train into this folder first')
        if which == 'latest':
            return steps[-1]
        if which == 'best':
            return max(steps, key=lambda step: self._rank(self._manager.metrics(step)))
        if which.isdigit() and int(which) in steps:
            return int(which)
        raise CheckpointError(f'no checkpoint {which!r} in {self.directory}; there are: best, latest, {steps}')

    def _rank(self, metrics: Mapping[str, Any]) -> tuple[float, int]:
        """Grows with how good a checkpoint is; of equally good ones the first is best, as the loop counts."""
        if metrics[MONITORED] is None:
            return -math.inf, metrics['step']
        return self._sign * metrics[MONITORED], -metrics['step']

    def is_empty(self) -> bool:
        return not self._steps()

    def _steps(self) -> list[int]:
        """In order; without those that a kill left behind while they were being deleted."""
        return sorted(step for step in self._manager.all_steps() if self._manager.metrics(step) is not None)

    def remove_remains(self) -> None:
        """Of checkpoints whose deletion was cut short. For the process that trains."""
        for step in set(self._manager.all_steps()) - set(self._steps()):
            self._manager.delete(step)

    def restore(self, abstract: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        """State and progress of `step`; `abstract` says shape, dtype and sharding of every leaf.

        Raises:
          CheckpointError: if the files are damaged or belong to another model.
        """
        self._check(step, abstract, self._metadata(step))
        found = self._restore(step, abstract, progress=ocp.args.JsonRestore())
        return found['state'], found['progress']

    def restore_variables(self, abstract: Tree, step: int) -> Tree:
        """Only what evaluation needs, {'params': ..., 'batch_stats': ...}; the moving average where there is one."""
        metadata = self._metadata(step)
        params = 'average' if metadata.get('average') else 'params'
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract)
        collections = {name: tree for name, tree in wanted.items() if name != 'params'}
        wanted = {params: wanted['params'], 'collections': collections}
        self._check(step, wanted, {name: metadata[name] for name in wanted})
        state = self._restore(step, wanted, partial=True)['state']
        return {'params': state[params], **state['collections']}

    def _metadata(self, step: int) -> dict[str, Any]:
        """The state's tree as it was saved, with shape and dtype of every leaf."""
        try:
            return dict(self._manager.item_metadata(step)['state'].tree)
        except Exception as error:
            raise self._damaged(step, error) from error

    def _restore(self, step: int, state: Tree, partial: bool = False, **others: Any) -> Any:
        restore_args = ocp.checkpoint_utils.construct_restore_args(state)
        args = ocp.args.PyTreeRestore(state, restore_args=restore_args, partial_restore=partial)
        try:
            return self._manager.restore(step, args=ocp.args.Composite(state=args, **others))
        except Exception as error:  # Orbax and TensorStore raise many types for one thing
            raise self._damaged(step, error) from error

    def _check(self, step: int, wanted: Tree, saved: Tree) -> None:
        """A leaf of another shape or dtype is padded, cut or cast in silence, a missing one left out; refuse them."""
        here, there = _leaves(wanted), _leaves(saved)
        for name in sorted(here.keys() | there.keys()):
            if here.get(name) != there.get(name):
                raise CheckpointError(
                    f'checkpoint {step} in {self.directory} belongs to another model: {name} is '
                    f'{there.get(name, "absent")} there, {here.get(name, "absent")} here'
                )

    def _damaged(self, step: int, error: Exception) -> CheckpointError:
        reason = str(error).strip().split('\n')[0][:300]
        return CheckpointError(
            f'checkpoint {step} in {self.directory} cannot be restored, it is damaged '
            f'({type(error).__name__}: {reason}). Remove the folder {step} to go on from an older one.'
        )

    def close(self) -> None:
        """Waits for saves under way."""
        self._manager.wait_until_finished()
        self._manager.close()


class _Manager(ocp.CheckpointManager):
    """Orbax's own, less its questions whether the cluster ends the run.

    It asks for its log alone, at numbers of its own, from which jax would settle on a boundary that the loop has passed
    (see `interruption.asked_of_all`).
    """

    def reached_preemption(self, step: int) -> bool:
        del step
        return False


def _leaves(tree: Tree) -> dict[str, str]:
    """Shape and dtype of every leaf, by its path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator='.'): f'{leaf.dtype}{list(leaf.shape)}'
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
