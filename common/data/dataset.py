"""What a task gives the frame to train on: splits made of columns, tables they share, and facts about them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """The examples of one split, in a fixed order."""

    name: str  # 'train', 'validation', 'test', or what the task calls it
    # Arrays with one row per example, e.g. `image` uint8 [examples, height, width, channels] (often memory-mapped) and
    # `label` int32 [examples]. Their rows make up the batches that cross to the device.
    columns: Mapping[str, np.ndarray]
    records: pd.DataFrame  # facts that stay on the host, one row per example: file name, group, age, date

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self.columns.items()} | {'records': len(self.records)}
        if len(set(lengths.values())) != 1:
            raise ValueError(f'columns of split {self.name!r} differ in length: {lengths}')

    def __len__(self) -> int:
        return len(self.records)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """All splits of a data set."""

    splits: Mapping[str, Split]
    # JSON-able facts that models and evaluation need and that a run keeps in its config.json: class names, image shape,
    # fitted scalers
    info: Mapping[str, Any]
    # arrays that every example may read and that live on the device, e.g. prices float32 [tickers, days, features];
    # empty for images
    tables: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
