"""Points near planes, one plane a group: `points.csv`, given or drawn, into three splits."""

import pathlib

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from common.data.audit import Audit
from common.data.dataset import Dataset, Split
from common.errors import DataError

GROUPS = 3
ROWS = {'train': 96, 'validation': 41, 'test': 30}


def draw() -> pd.DataFrame:
    random = np.random.default_rng(0)
    size = sum(ROWS.values())
    table = pd.DataFrame(random.normal(size=(size, 3)), columns=['x0', 'x1', 'x2'])
    table['group'] = np.arange(size) % GROUPS
    slopes = random.normal(size=(GROUPS, 3))[table.group]
    table['y'] = (table[['x0', 'x1', 'x2']].to_numpy() * slopes).sum(1) + random.normal(size=size) / 10
    table['split'] = np.repeat(list(ROWS), list(ROWS.values()))
    return table


def prepare(raw_dir: pathlib.Path | None, data_dir: pathlib.Path, skip_bad: bool) -> Audit:
    table = draw() if raw_dir is None else pd.read_csv(raw_dir / 'points.csv')
    audit = Audit('points near planes')
    bad = table.index[table.y.isna()]
    audit.add('no_target', 'rows without a target', [f'points.csv line {row + 2}' for row in bad], fatal=True)
    if not skip_bad:
        audit.refuse_bad()
    path = prepared_file(data_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    table.drop(bad).to_csv(path.with_suffix('.partial'), index=False)
    path.with_suffix('.partial').rename(path)
    return audit


def prepared_file(data_dir: pathlib.Path) -> pathlib.Path:
    return data_dir / 'toy' / 'points.csv'


def load(dataset: ConfigDict, data_dir: pathlib.Path) -> Dataset:
    if not prepared_file(data_dir).exists():
        raise DataError(f'there is no {prepared_file(data_dir)}: run experiments.prepare')
    table = pd.read_csv(prepared_file(data_dir))
    if dataset.only_group >= 0:
        table = table[table.group == dataset.only_group]
    splits = {name: split_of(name, rows) for name, rows in table.groupby('split')}
    return Dataset(splits=splits, info={'spread': float(np.std(splits['train'].columns['target']))})


def split_of(name: str, rows: pd.DataFrame) -> Split:
    columns = {'x': rows[['x0', 'x1', 'x2']].to_numpy(np.float32), 'group': rows.group.to_numpy(np.int32)}
    if 'y' in rows:
        columns['target'] = rows.y.to_numpy(np.float32)
    return Split(name=name, columns=columns, records=rows.reset_index(drop=True))
