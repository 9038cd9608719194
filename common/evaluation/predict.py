"""What a run, or several runs together, say of examples, and what in the image made them say it."""

import functools
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from common.data.dataset import Split
from common.data.transport import Transport
from common.errors import UsageError
from common.evaluation.evaluate import Evaluator
from common.evaluation.restore import Run, restore
from common.nn.grad_cam import grad_cam
from common.runtime import DataParallel
from common.types import Array, Batch, Predictions, Tree


def restore_all(workdirs: Sequence[pathlib.Path], checkpoint: str) -> list[Run]:
    """The runs of an ensemble, or a single one.

    Raises:
      UserError: as `restore`.
      UsageError: if the runs predict different things: other tasks, other classes, other scalers.
    """
    runs = [restore(workdir, checkpoint) for workdir in workdirs]
    first = runs[0]
    for run in runs[1:]:
        if type(run.task) is not type(first.task) or run.task.meaning() != first.task.meaning():
            raise UsageError(
                f'--workdir: {run.workdir} and {first.workdir} do not go together, their predictions mean different '
                f'things ({_difference(first, run)}). Give runs of one task, trained on the same data.'
            )
    return runs


def _difference(first: Run, other: Run) -> str:
    names = [run.record.config.task for run in (first, other)]
    if names[0] != names[1]:
        return f'tasks {names[0]} and {names[1]}'
    here, there = first.task.meaning(), other.task.meaning()
    return f'they differ in {", ".join(key for key in here if here[key] != there.get(key))}'


def predict(
    run: Run,
    split: Split,
    tables: Mapping[str, np.ndarray] | None = None,
    batch_size: int = 0,
    views: str | None = None,
) -> Predictions:
    """What the run's model, or all members together, say of every example of `split`, in its order."""
    parallel, evaluator, variables = _evaluator(run, views)
    config, members = run.record.config, run.members
    transport = Transport(split, tables or {}, parallel, 'streaming', threads=config.data.threads)
    rows = members.rows(run.task, split)
    labelled = 'label' in split.columns or 'target' in split.columns
    parts = evaluator(variables, transport, rows, batch_size or config.batch_size, labelled=labelled)
    return members.combine(run.task, parts, rows)


@functools.lru_cache(maxsize=32)
def _evaluator(run: Run, views: str | None) -> tuple[DataParallel, Evaluator, Tree]:
    """Kept for the next split, so that the program is compiled once and the weights are on the devices once."""
    parallel = DataParallel()
    evaluator = Evaluator(run.task, run.model, parallel, members=run.members.count, views=views)
    return parallel, evaluator, parallel.replicate(run.variables)


def explain(
    run: Run, split: Split, tables: Mapping[str, np.ndarray], rows: np.ndarray, classes: np.ndarray
) -> list[np.ndarray]:
    """Grad-CAM's heat maps float32 [rows, height, width] in 0..1 for the class of each row, one array a member.

    Empty for models that mark no feature map (`common.nn.grad_cam.feature_map`).
    """
    columns = {name: np.asarray(column[rows]) for name, column in split.columns.items()}
    batch = columns | {'index': rows.astype(np.int32), 'mask': np.ones(len(rows), np.float32)}
    variables = run.variables if run.members.count else jax.tree.map(lambda leaf: leaf[None], run.variables)

    @jax.jit
    def maps(variables: Tree, batch: Batch, tables: Tree, classes: Array) -> Array | None:
        inputs = run.task.preprocess(batch, tables, None)['inputs']
        return jax.lax.map(lambda member: grad_cam(run.model, member, inputs, classes), variables)

    found = maps(variables, batch, dict(tables), classes)
    return [] if found is None else list(np.asarray(found))
