"""A restored run, or several together, against a split: predictions, the task's report, metrics.json, the page."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.data.dataset import Dataset, Split
from common.errors import UsageError
from common.evaluation.predict import explain, predict, restore_all
from common.evaluation.report.page import write_page
from common.evaluation.report.run import averaged_section, run_section
from common.evaluation.restore import Run
from common.findings import Evidence, Report, Section
from common.members import average
from common.types import Predictions

CALIBRATION = 'validation'


def judge(
    workdirs: Sequence[pathlib.Path],
    split: str,
    checkpoint: str,
    data_dir: pathlib.Path | None,
    batch_size: int = 0,
    views: str | None = None,
) -> tuple[pathlib.Path, list[str]]:
    """Evaluates a run, or several whose predictions are averaged, and writes metrics.json, report.html and tables.

    With `views`, a second evaluation averages over these views (`Task.views`); its report goes beside the plain one,
    in metrics.json under 'test_time_augmentation', and its files into a folder of the views' name.

    Returns:
      The folder evaluation/SPLIT of the first run, and the headline figures as lines to print. The folder's name says
      also which checkpoint, if not the best, and how many runs, if several: SPLIT-latest-ensemble-of-3.

    Raises:
      UserError: if there is no such run, checkpoint or split, the data are others than trained on, or the runs
        cannot be averaged.
    """
    panel = _Panel(restore_all(workdirs, checkpoint), data_dir, split, batch_size)
    which = '' if checkpoint == 'best' else f'-{checkpoint}'
    together = f'-ensemble-of-{len(workdirs)}' if len(workdirs) > 1 else ''
    directory = workdirs[0] / 'evaluation' / f'{split}{which}{together}'
    directory.mkdir(parents=True, exist_ok=True)
    report = panel.report(directory)
    result = {'split': split, 'examples': len(panel.split), **panel.origin(), **report.metrics}
    judged = [
        f'{run.workdir} after {run.step:,} steps of a training of {run.record.config.duration}' for run in panel.runs
    ]
    lines = [*judged, *headlines(result)]
    trained = [run_section(run, number) for number, run in enumerate(panel.runs, 1)]
    if views:
        (directory / views).mkdir(exist_ok=True)
        averaged = panel.report(directory / views, views)
        panel.write_page(directory / views, averaged, trained, f', averaged over views ({views})')
        result['test_time_augmentation'] = {'views': views, **averaged.metrics}
        lines += ['', f'averaged over views ({views}):', *headlines(averaged.metrics)]
        report = dataclasses.replace(report, sections=[averaged_section(views, report, averaged), *report.sections])
    panel.write_page(directory, report, trained)
    (directory / 'metrics.json').write_text(json.dumps(result, indent=2, allow_nan=False) + '\n', encoding='utf-8')
    return directory, lines


def compare(
    workdirs: Sequence[pathlib.Path],
    against: Sequence[pathlib.Path],
    split: str,
    checkpoint: str,
    data_dir: pathlib.Path | None,
    batch_size: int = 0,
    views: str | None = None,
) -> list[str]:
    """The figures of a run, or of several averaged, less those of others on the same examples, as lines to print.

    Raises:
      UserError: as `judge`, or if the runs predict other things, are of a task without comparison, or have other
        examples.
    """
    runs = restore_all([*workdirs, *against], checkpoint)
    sides = runs[: len(workdirs)], runs[len(workdirs) :]
    panels = [_Panel(side, data_dir, split, batch_size) for side in sides]
    found = runs[0].task.differences(*((panel.predict(split, views), panel.split) for panel in panels))
    title = f'less those of {", ".join(map(str, against))}, with 95% intervals of the difference:'
    return [title, *(f'{name:28} {d:+.4f}  [{low:+.4f}, {high:+.4f}]' for name, (d, low, high) in found.items())]


class _Panel:
    """The runs that judge together, each with the data set as it was trained on it."""

    def __init__(self, runs: Sequence[Run], data_dir: pathlib.Path | None, split: str, batch_size: int):
        self.runs, self._batch_size = runs, batch_size
        self._datasets = [_dataset(run, data_dir) for run in runs]
        splits = self._datasets[0].splits
        if split not in splits:
            raise UsageError(f'--split={split}: the data have none of that name; give one of {", ".join(splits)}')
        for run, dataset in zip(runs, self._datasets, strict=True):
            _check_same_examples(splits, dataset.splits, runs[0], run)
        self.split = splits[split]
        self._validation = splits[CALIBRATION] if split != CALIBRATION and CALIBRATION in splits else None

    def report(self, directory: pathlib.Path, views: str | None = None) -> Report:
        evidence = Evidence(
            predictions=self.predict(self.split.name, views),
            split=self.split,
            calibration=None if self._validation is None else (self.predict(CALIBRATION, views), self._validation),
            directory=directory,
            explain=self._explain,
        )
        return self.runs[0].task.report(evidence)

    def write_page(self, directory: pathlib.Path, report: Report, sections: Sequence[Section], how: str = '') -> None:
        """The report of the task, followed by `sections`."""
        config, split = self.runs[0].record.config, self.split
        judges = ', '.join(f'{run.workdir.resolve().name} (checkpoint of step {run.step:,})' for run in self.runs)
        write_page(
            dataclasses.replace(report, sections=[*report.sections, *sections]),
            directory,
            title=f'{config.task.capitalize()}: {config.dataset.name}, {split.name} split',
            subtitle=f'{len(split):,} examples, judged by {judges}{how}',
            notice=self.runs[0].task.notice,
        )

    def origin(self) -> dict[str, Any]:
        """For metrics.json, where the predictions are from."""
        if len(self.runs) == 1:
            return {'step': self.runs[0].step}
        return {'runs': [{'workdir': str(run.workdir), 'step': run.step} for run in self.runs]}

    def predict(self, split: str, views: str | None) -> Predictions:
        """What the runs say together of a split, averaged over `views` where given."""
        said = [
            predict(run, dataset.splits[split], dataset.tables, self._batch_size, views)
            for run, dataset in zip(self.runs, self._datasets, strict=True)
        ]
        return average(self.runs[0].task, said)

    def _explain(self, rows: np.ndarray, classes: np.ndarray) -> list[np.ndarray]:
        return [
            heat
            for run, dataset in zip(self.runs, self._datasets, strict=True)
            for heat in explain(run, dataset.splits[self.split.name], dataset.tables, rows, classes)
        ]


def _dataset(run: Run, data_dir: pathlib.Path | None) -> Dataset:
    dataset = type(run.task).load(run.record.config, data_dir or pathlib.Path(run.record.data_dir))
    run.record.check_data(dataset.info, run.workdir)
    return dataset


def _check_same_examples(here: Mapping[str, Split], there: Mapping[str, Split], first: Run, other: Run) -> None:
    """All splits, because what one run is judged on, another must not have trained on."""
    for name, split in here.items():
        if name not in there or not split.records.equals(there[name].records):
            raise UsageError(
                f'--workdir: {other.workdir} and {first.workdir} cannot be averaged, their {name} splits differ in '
                f'their examples. Give runs that were trained on the same split of the same data.'
            )


def headlines(result: Mapping[str, Any]) -> list[str]:
    """The scalar figures, with their intervals where there are any."""
    notes = {name: f'  [{low:.4f}, {high:.4f}]' for name, (low, high) in result.get('intervals_95', {}).items()}
    return [f'{name:28} {value:.4f}{notes.get(name, "")}' for name, value in result.items() if isinstance(value, float)]
