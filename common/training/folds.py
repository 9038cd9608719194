"""Walk-forward evaluation: the same recipe trained anew for each of several consecutive periods, and judged on it."""

import json
import pathlib
from typing import Any

from common.config import load_run
from common.errors import UserError
from common.evaluation.judge import judge
from common.evaluation.report.page import write_page
from common.evaluation.report.run import periods_section
from common.findings import Report
from common.task import task_class
from common.training.interruption import alone
from common.training.loop import train
from common.training.setup import make_training
from common.training.start import begin


def walk_forward(workdir: pathlib.Path, data_dir: pathlib.Path | None, folds: int) -> tuple[pathlib.Path, list[str]]:
    """Trains and judges the run's config on `folds` periods, each a run of its own in workdir/walk_forward/K/.

    What an interrupted call has finished is kept: called again, it goes on.

    Returns:
      The folder workdir/walk_forward, whose metrics.json and report.html list every period, and a line for each to
      print.

    Raises:
      UserError: if `workdir` holds no run, its task has no order in time, or a period is too short.
    """
    record, home = load_run(workdir), workdir / 'walk_forward'
    kind = task_class(record.config.task)
    data_dir = data_dir or pathlib.Path(record.data_dir)
    results: list[dict[str, Any]] = []
    for number, config in enumerate(kind.walk_forward(record.config, data_dir, folds), 1):
        fold = home / f'{number}-of-{folds}'
        training = make_training(config, data_dir)
        with alone(fold):
            state, progress, checkpoints, _ = begin(training, fold, data_dir)
            try:
                outcome = train(training, state, progress, checkpoints, fold)
            finally:
                checkpoints.close()
        if outcome.ended == 'interrupted':
            raise UserError(f'interrupted in period {number} of {folds}; the same command goes on from there')
        directory, _ = judge([fold], 'test', 'best', data_dir)
        results.append(json.loads((directory / 'metrics.json').read_text(encoding='utf-8')))
    (home / 'metrics.json').write_text(json.dumps(results, indent=2) + '\n', encoding='utf-8')
    write_page(
        Report(metrics={}, sections=[periods_section(results)]),
        home,
        title=f'{record.config.task.capitalize()}: {record.config.dataset.name}, walk-forward',
        subtitle=f'{workdir.resolve().name} trained anew and judged on {folds} consecutive periods',
        notice=kind.notice,
    )
    lines = [_line(number, result) for number, result in enumerate(results, 1)]
    return home, [f'walk-forward over {folds} periods', *lines]


def _line(number: int, result: dict[str, Any]) -> str:
    """The scalar figures of one period."""
    figures = [f'{name} {value:.4f}' for name, value in result.items() if isinstance(value, float)]
    return f'  {number}: ' + '  '.join(figures)
