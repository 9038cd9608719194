"""Reads the tensors of a PyTorch file without PyTorch, and nothing else: a file cannot make it run anything."""

import collections
import dataclasses
import math
import pathlib
import pickle
import struct
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from common.errors import DataError

# The only names that a file may use besides `OrderedDict` and `_rebuild_tensor_v2`: the types of its numbers.
STORAGES: dict[str, np.dtype] = {
    'DoubleStorage': np.dtype(np.float64),
    'FloatStorage': np.dtype(np.float32),
    'HalfStorage': np.dtype(np.float16),
    'BFloat16Storage': np.dtype(jnp.bfloat16),
    'LongStorage': np.dtype(np.int64),
    'IntStorage': np.dtype(np.int32),
    'ShortStorage': np.dtype(np.int16),
    'CharStorage': np.dtype(np.int8),
    'ByteStorage': np.dtype(np.uint8),
    'BoolStorage': np.dtype(np.bool_),
}
MAGIC = 0x1950A86A20F9469CFC6C  # how such files begin


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    size: int


@dataclasses.dataclass(frozen=True)
class _View:
    """A tensor that is still to be cut out of its storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def cut(self, numbers: np.ndarray, name: str) -> np.ndarray:
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        outside = min((self.offset, *self.strides, *self.shape)) < 0 or last >= len(numbers)
        if math.prod(self.shape) and (outside or math.prod(self.shape) > len(numbers)):
            raise ValueError(f'tensor {name!r} reaches outside of its storage')
        steps = [step * numbers.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, steps).copy()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ('collections', 'OrderedDict'):
            return collections.OrderedDict
        if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
            # Made anew each time: a file can set attributes of what it is given.
            return lambda storage, offset, shape, strides, *_: _View(storage, offset, shape, strides)
        if module == 'torch' and name in STORAGES:
            return STORAGES[name]
        raise DataError(f'it asks for {module}.{name}, which is no tensor. It may be meant to run a program: delete it')

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, size, *_ = pid
        if kind != 'storage' or not isinstance(dtype, np.dtype):
            raise ValueError(f'unknown reference {pid!r}')
        return _Storage(key, dtype, size)


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors by name of a file that `torch.save(state_dict, path)` wrote before PyTorch 1.6; later ones are zips.

    Raises:
      DataError: naming the file: it is missing or damaged, holds something else than tensors by name, or its pickle
        asks for anything beyond them, which is refused unseen.
    """
    try:
        with path.open('rb') as file:
            return _read(file)
    except DataError as error:
        raise DataError(f'{path} is refused: {error}.') from error
    except OSError as error:
        raise DataError(f'{path} cannot be read ({error.strerror}).') from error
    except Exception as error:  # on garbage, pickle raises whatever it runs into
        raise DataError(f'{path} is no file of PyTorch tensors, or damaged ({error}).') from error


def _read(file: BinaryIO) -> dict[str, np.ndarray]:
    """Pickles of a magic number, a version, the machine, the tensors and the storages' keys; then the storages."""
    if _Unpickler(file).load() != MAGIC:
        raise ValueError('it does not begin as one')
    _Unpickler(file).load()
    if not _Unpickler(file).load()['little_endian']:
        raise ValueError('its numbers begin with their highest byte')
    views = _Unpickler(file).load()
    if not isinstance(views, dict) or not all(isinstance(view, _View) for view in views.values()):
        raise ValueError('it holds something else than tensors by name')
    storages = {view.storage.key: view.storage for view in views.values()}
    numbers = {}
    for key in _Unpickler(file).load():
        storage, (size,) = storages[key], struct.unpack('<q', file.read(8))
        numbers[key] = np.frombuffer(file.read(storage.size * storage.dtype.itemsize), storage.dtype)
        if not size == storage.size == len(numbers[key]):
            raise ValueError(f'storage {key} has {len(numbers[key])} of {size} numbers instead of {storage.size}')
    return {name: view.cut(numbers[view.storage.key], name) for name, view in views.items()}
