"""The records that a training leaves in its run's metrics.jsonl."""

import json
import pathlib
from typing import Any

METRICS_FILE = 'metrics.jsonl'


def read_history(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; a last line cut short by a kill is left out."""
    path = workdir / METRICS_FILE
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding='utf-8').splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
