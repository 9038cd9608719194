"""Modules that take long to import and are not always needed."""

import importlib
from typing import Any


class _Lazy:
    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


def lazy(name: str) -> Any:
    """The module `name`, imported when something of it is used: `sk = lazy('sklearn.metrics')`."""
    return _Lazy(name)
