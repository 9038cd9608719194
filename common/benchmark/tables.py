"""Results as a person reads them in a terminal: tables of rates and ratios, and a few lines of costs."""

from collections.abc import Mapping, Sequence
from typing import Any

from common.benchmark.rates import Row


def as_text(results: Mapping[str, Any]) -> str:
    """`results` as the JSON file holds them."""
    machine, rows, ratios = results['machine'], results['rows'], results['ratios']
    processor, devices = machine['processor'], ', '.join(machine['devices'])
    features = f' with {processor["features"].replace(" ", ", ")}' if processor['features'] else ''
    parts = [f'{processor["model"]}, {machine["cores"]} cores{features}; devices: {devices}']
    parts.append(_table(['side', 'setting', 'kind', 'dtype', 'batch', 'median', 'low .. high', ''], map(_cells, rows)))
    parts += [_costs(row) for row in rows if 'flops_per_step' in row]
    parts += [
        f'{row["setting"]}, {row["kind"]}, {_of(row)}: bottleneck is {row["bottleneck"]}'
        for row in rows
        if 'bottleneck' in row
    ]
    if ratios:
        header = ['ours over', 'its best setting', 'kind', 'dtype', 'batch', 'median', 'low .. high']
        parts.append(_table(header, [_ratio_cells(row) for row in ratios]))
    return '\n\n'.join(parts)


def _cells(row: Row) -> list[str]:
    seconds = row['unit'] == 's'
    number = (lambda value: f'{value:,.2f} s') if seconds else (lambda value: f'{value:,.0f}/s')
    counted = {'models': 'models', 'devices': 'devices', 'dataset_size': 'examples'}
    notes = [f'{row[key]:,} {words}' for key, words in counted.items() if row.get(key, 1) > 1]
    if 'share_of_step' in row:
        notes.append(f'{row["share_of_step"]:.2f} of the step')
    notes += [f'{stage} after {when:.1f}' for stage, when in row.get('reached', {}).items() if stage != 'step']
    if row.get('augmentation') is False:
        notes.append('no augmentation')
    names = [row[key] for key in ('side', 'setting', 'kind', 'dtype')]
    extent = f'{number(row["low"])} .. {number(row["high"])}'
    return [*names, str(row['batch_size']), number(row['median']), extent, ', '.join(notes)]


def _ratio_cells(row: Row) -> list[str]:
    names = [row[key] for key in ('peer', 'setting', 'kind', 'dtype')]
    return [*names, str(row['batch_size']), f'{row["median"]:.2f}', f'{row["low"]:.2f} .. {row["high"]:.2f}']


def _costs(row: Row) -> str:
    """One sentence on what a step costs."""
    peak = f'{row["mfu_measured"]:.0%} of the {row["measured_peak"] / 1e9:,.0f} that a large product reaches'
    if row['mfu_measured'] > 1:
        peak += ' (fast convolutions multiply less than the model asks for, which is what is counted)'
    if row['mfu_datasheet']:
        peak += f', {row["mfu_datasheet"]:.0%} of the data sheet'
    memory = f'{row["device_memory"] / 2**20:,.0f}' if row['device_memory'] else 'unknown'
    return (
        f'{row["setting"]}, {_of(row)}: compiled in {row["compile_seconds"]:.1f} s; '
        f'{row["parameters"]:,} parameters; {row["flops_per_step"] / 1e9:,.2f} GFLOP a step, '
        f'{row["flops_per_second"] / 1e9:,.0f} GFLOP/s: {peak}; '
        f'{memory} MiB on a device, {row["host_memory"] / 2**20:,.0f} MiB on the host'
    )


def _of(row: Row) -> str:
    return f'batch {row["batch_size"]}' + (f', {row["devices"]} devices' if row['devices'] > 1 else '')


def _table(header: Sequence[str], rows: Any) -> str:
    lines = [list(header), *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(1, ['-' * width for width in widths])
    return '\n'.join('  '.join(map(str.ljust, line, widths)).rstrip() for line in lines)
