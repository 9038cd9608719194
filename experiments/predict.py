"""Restores a run and applies it to files of your own.

python -m experiments.predict --workdir=RUN[,RUN...] --inputs='photos/*.jpg' --output=predictions.csv
                              [--checkpoint=best|latest|STEP] [--views=flip|ten_crop|dihedral]
"""

import glob
import json
import os
import pathlib
from collections.abc import Sequence

from absl import flags

from common import runtime
from common.config import plain
from common.data.dataset import Split
from common.errors import DataError, UsageError
from common.evaluation.predict import predict, restore_all
from common.evaluation.restore import Run
from common.evaluation.views import VIEWS
from common.members import average
from experiments import launch

_WORKDIR = flags.DEFINE_list('workdir', None, 'Folder of the run, or of several to average.', required=True)
_INPUTS = flags.DEFINE_list(
    'inputs', None, "Files, folders, zips, or patterns of them in quotes: 'photos/*.jpg'.", required=True
)
_OUTPUT = flags.DEFINE_string(
    'output', 'predictions.csv', "Table to write; beside it, for an ISIC challenge's classes, submission.csv."
)
_CHECKPOINT = flags.DEFINE_string('checkpoint', 'best', 'best, latest, or a step.')
_VIEWS = flags.DEFINE_enum('views', None, list(VIEWS), 'Views of every image to average over.')


def main() -> None:
    found = {pattern: _matches(str(launch.path(pattern))) for pattern in _INPUTS.value}
    # A pattern with ** matches the files of a folder beside the folder itself.
    paths = [path for pattern, matches in found.items() for path in matches if '**' not in pattern or path.is_file()]
    missing = [pattern for pattern, matches in found.items() if not matches]
    if missing or not paths:
        raise DataError(f'no file matches --inputs={",".join(missing or _INPUTS.value)}')
    output = launch.path(_OUTPUT.value)
    _check_writable(output)
    workdirs = launch.workdirs(_WORKDIR)
    runtime.start()
    runs = restore_all(workdirs, _CHECKPOINT.value)
    splits = _inputs(runs, paths)
    said = [predict(run, split, views=_VIEWS.value) for run, split in zip(runs, splits, strict=True)]
    task = runs[0].task
    task.write_predictions(average(task, said), splits[0], output)
    print(f'{len(splits[0])} predictions: {output}')


def _matches(pattern: str) -> list[pathlib.Path]:
    """What is there by that very name, or else what the pattern matches."""
    literal = pathlib.Path(pattern)
    return [literal] if literal.exists() else [*map(pathlib.Path, sorted(glob.glob(pattern, recursive=True)))]


def _inputs(runs: Sequence[Run], paths: Sequence[pathlib.Path]) -> list[Split]:
    """The files as the model of each run wants them; read once for runs that differ in nothing but their seed."""
    recipes = [json.dumps([{**plain(run.record.config), 'seed': None}, run.record.info]) for run in runs]
    read = {recipe: run.task.read_inputs(paths) for recipe, run in dict(zip(recipes, runs, strict=True)).items()}
    splits = [read[recipe] for recipe in recipes]
    for run, split in zip(runs, splits, strict=True):
        if not split.records.equals(splits[0].records):
            raise UsageError(
                f'--workdir: {run.workdir} and {runs[0].workdir} cannot be averaged, they leave out other parts of '
                f'--inputs ({len(split)} and {len(splits[0])} are left). Give inputs of which both can say something.'
            )
    return splits


def _check_writable(output: pathlib.Path) -> None:
    """Before the work is done: makes the folder of `output`, or says why nothing can be written there."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f'--output={output}: its folder cannot be made ({error.strerror})') from error
    if output.is_dir() or not os.access(output if output.exists() else output.parent, os.W_OK):
        raise UsageError(f'--output={output} cannot be written; give the name of a file')


if __name__ == '__main__':
    launch.run(main)
