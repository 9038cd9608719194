"""A restored run against a split: predictions, the task's report, and metrics.json."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from common.data.dataset import Dataset, Split
from common.data.transport import Transport
from common.errors import DataError, UsageError
from common.evaluation.evaluate import Evaluator
from common.evaluation.restore import Run, restore
from common.runtime import DataParallel
from common.types import Predictions

CALIBRATION = 'validation'


def judge(
    workdir: pathlib.Path,
    split: str,
    checkpoint: str,
    data_dir: pathlib.Path | None,
    batch_size: int = 0,
    views: str | None = None,
) -> tuple[pathlib.Path, list[str]]:
    """Evaluates a run on `split` and writes metrics.json and the task's own files.

    With `views`, a second evaluation averages over these views (`Task.views`); its report goes beside the plain one,
    in metrics.json under 'test_time_augmentation', and its files into a folder of the views' name.

    Returns:
      The folder `workdir/evaluation/split` and the headline figures as lines to print.

    Raises:
      UserError: if there is no such run, checkpoint or split, or the data are others than trained on.
    """
    run = restore(workdir, checkpoint)
    dataset = type(run.task).load(run.record.config, data_dir or pathlib.Path(run.record.data_dir))
    if json.loads(json.dumps(dataset.info)) != run.record.info:
        raise DataError(f'the data set is not the one that {workdir} was trained on: {_difference(dataset.info, run)}')
    if split not in dataset.splits:
        raise UsageError(f'--split={split}: there is none of that name, only {", ".join(dataset.splits)}')
    directory = workdir / 'evaluation' / split
    directory.mkdir(parents=True, exist_ok=True)
    report = _report(run, dataset, split, directory, batch_size, None)
    result = {'split': split, 'examples': len(dataset.splits[split]), 'step': run.step, **report}
    lines = headlines(result)
    if views:
        (directory / views).mkdir(exist_ok=True)
        averaged = _report(run, dataset, split, directory / views, batch_size, views)
        result['test_time_augmentation'] = {'views': views, **averaged}
        lines += ['', f'averaged over views ({views}):', *headlines(averaged)]
    (directory / 'metrics.json').write_text(json.dumps(result, indent=2, allow_nan=False) + '\n', encoding='utf-8')
    return directory, lines


def _report(
    run: Run, dataset: Dataset, split: str, directory: pathlib.Path, batch_size: int, views: str | None
) -> dict[str, Any]:
    names = [split] if split == CALIBRATION or CALIBRATION not in dataset.splits else [split, CALIBRATION]
    said = {name: predict(run, dataset.splits[name], dataset.tables, batch_size, views) for name in names}
    calibration = (said[CALIBRATION], dataset.splits[CALIBRATION]) if len(names) > 1 else None
    return run.task.report(said[split], dataset.splits[split], directory, calibration)


def predict(
    run: Run,
    split: Split,
    tables: Mapping[str, np.ndarray] | None = None,
    batch_size: int = 0,
    views: str | None = None,
) -> Predictions:
    """What the run's model, or all members together, say of every example of `split`, in its order."""
    parallel = DataParallel()
    config, members = run.record.config, run.members
    transport = Transport(split, tables or {}, parallel, resident=False, threads=config.data.threads)
    rows = members.rows(run.task, split)
    evaluator = Evaluator(run.task, run.model, parallel, members=members.count, views=views)
    labelled = 'label' in split.columns or 'target' in split.columns
    variables = parallel.replicate(run.variables)
    parts = evaluator(variables, transport, rows, batch_size or config.batch_size, labelled=labelled)
    return members.combine(parts, rows) if members.count else parts[0]


def headlines(result: Mapping[str, Any]) -> list[str]:
    """The scalar figures, with their intervals where there are any."""
    intervals = result.get('intervals_95', {})
    lines = []
    for name, value in result.items():
        if isinstance(value, float):
            low_high = intervals.get(name)
            note = f'  [{low_high[0]:.4f}, {low_high[1]:.4f}]' if low_high else ''
            lines.append(f'{name:28} {value:.4f}{note}')
    return lines


def _difference(info: Mapping[str, Any], run: Run) -> str:
    keys = [key for key in {**info, **run.record.info} if info.get(key) != run.record.info.get(key)]
    return f'{", ".join(keys)} differ. Prepare it again with the config of the run.'
