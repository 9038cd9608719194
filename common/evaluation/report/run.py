"""Sections that the frame adds to any task's report: how runs were trained, averages over views, walks forward."""

from collections.abc import Mapping, Sequence
from typing import Any

from common.evaluation import plots
from common.evaluation.report.page import cell_text, headline_names, label
from common.evaluation.restore import Run
from common.findings import Cell, Part, Plot, Report, Section, Table
from common.history import read_history

_BALANCED = (
    ' Training drew all classes equally often, and validation has them as they come: the distance between the curves '
    'is not overfitting alone, and a distance of zero does not rule it out.'
)


def run_section(run: Run, number: int) -> Section:
    """Learning curves, and what the run's config.json says of how it was trained; `number` counts the runs from 1."""
    config, name = run.record.config, run.workdir.resolve().name
    parts: list[Part] = []
    history = [record for record in read_history(run.workdir) if 'epoch' in record]
    if history:
        metric = config.monitor.metric
        parts.append(
            Plot(
                name='learning_curves' if number == 1 else f'learning_curves_{number}',
                figure=plots.learning_curves(history, metric, larger_is_better=config.monitor.mode == 'max'),
                caption='Training beside validation, at every evaluation. Where validation turns while training still '
                f'improves, the model begins to learn its examples by heart. The best checkpoint is chosen by '
                f'validation {label(metric).lower()}.' + (_BALANCED if config.data.sampling == 'balanced' else ''),
            )
        )
    environment = run.record.environment
    rows = {
        'data set': config.dataset.name,
        'model': str(config.model.get('name', type(run.model).__name__)),
        'length': f'{config.duration} in batches of {config.batch_size}',
        'optimizer': f'{config.optimizer.name}, learning rate {config.optimizer.learning_rate:g}, '
        f'weight decay {config.optimizer.weight_decay:g}',
        'seed': str(config.seed),
        'checkpoint judged': f'step {run.step:,}',
        'devices': ', '.join(environment.get('devices', [])),
        'versions': ', '.join(f'{package} {version}' for package, version in environment.get('versions', {}).items()),
    }
    caption = 'All settings are in config.json of the run.'
    parts.append(Table(columns=('setting', 'value'), rows=list(rows.items()), caption=caption, words=True))
    return Section(f'How {name} was trained', parts)


def averaged_section(views: str, plain: Report, averaged: Report) -> Section:
    """Headlines as the model says them, beside those averaged over views of every example."""
    rows: list[tuple[Cell, ...]] = [
        (label(name), _with_interval(plain.metrics, name), _with_interval(averaged.metrics, name))
        for name in headline_names(plain)
    ]
    table = Table(
        columns=('figure', 'as it is', f'averaged over {views}'),
        rows=rows,
        caption=f'Every example seen in the views of {views!r}, the predictions averaged; with 95% intervals. All else '
        f'on this page is without; the same page with it lies in the folder {views}.',
    )
    return Section('Averaged over views', [table])


def periods_section(results: Sequence[Mapping[str, Any]]) -> Section:
    """Examples and scalar figures of every period of a walk forward; each of `results` is a metrics.json."""
    names = ['examples', *(name for name, value in results[0].items() if isinstance(value, float))]
    table = Table(
        columns=('figure', *(f'period {number}' for number in range(1, len(results) + 1))),
        rows=[(label(name), *(_with_interval(result, name) for result in results)) for name in names],
        caption='Each period was judged by a model that was trained on what came before it; in brackets, 95% intervals.'
        ' A figure that changes its side from period to period is no finding.',
    )
    return Section('Period by period', [table])


def _with_interval(metrics: Mapping[str, Any], name: str) -> str:
    ends = metrics.get('intervals_95', {}).get(name)
    return cell_text(metrics[name]) + (f' ({cell_text(ends[0])} to {cell_text(ends[1])})' if ends else '')
