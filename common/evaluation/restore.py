"""A trained model back from its run: everything but the weights comes from config.json.

run = restore('runs/demo')                                    # or checkpoint='latest', or a step
outputs = run.model.apply(run.variables, inputs, train=False)
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from common.checkpoint import Checkpoints
from common.config import RunRecord, load_run
from common.members import Members, members_of
from common.nn.convolutions.choices import settle
from common.task import Task, task_class
from common.types import Tree


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A restored run; `variables` is what `model.apply` takes, stacked over members where there are several."""

    workdir: pathlib.Path
    record: RunRecord
    task: Task
    model: Any
    members: Members
    variables: Tree
    step: int


def restore(workdir: str | os.PathLike[str], checkpoint: str | int = 'best') -> Run:
    """The model of a run as it was at `checkpoint`: 'best', 'latest' or a step.

    Raises:
      UserError: if `workdir` holds no run.
      CheckpointError: if the checkpoint is missing, damaged or of another model.
    """
    workdir = pathlib.Path(workdir)
    record = load_run(workdir)
    config = record.config
    settle(record.environment.get('convolutions', {}))
    task = task_class(config.task)(config, record.info)
    model = task.model()
    members = members_of(config, record.groups)
    inputs = example_inputs(task, record.columns, record.tables)
    init = functools.partial(model.init, train=False)
    init = jax.vmap(init, in_axes=(0, None)) if members.count else init
    abstract = jax.eval_shape(init, members.keys(), inputs)
    checkpoints = Checkpoints(workdir, config.monitor.mode)
    step = checkpoints.find(str(checkpoint))
    variables = checkpoints.restore_variables(abstract, step)
    checkpoints.close()
    return Run(workdir, record, task, model, members, variables, step)


def example_inputs(task: Task, columns: Mapping[str, Any], tables: Mapping[str, Any]) -> Tree:
    """Zeros of the shape and dtype that the model will see for one example.

    Of the columns and tables only `shape` and `dtype` are read.
    """
    rows = {name: jax.ShapeDtypeStruct((1, *column.shape[1:]), column.dtype) for name, column in columns.items()}
    rows |= {'index': jax.ShapeDtypeStruct((1,), jnp.int32), 'mask': jax.ShapeDtypeStruct((1,), jnp.float32)}
    shapes = jax.eval_shape(lambda batch, tables: task.preprocess(batch, tables, None)['inputs'], rows, dict(tables))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
