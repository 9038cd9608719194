"""PyTorch's files are read as PyTorch wrote them, and one that asks for more than tensors is refused unseen."""

import os
import pathlib
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from common.errors import DataError
from common.nn import torch_file
from common.nn.torch_file import MAGIC, read_tensors

TENSORS = pathlib.Path(__file__).parent / 'fixtures' / 'tensors_old.pth'  # by PyTorch 2.13.0, in its old format
TABLE = np.arange(12, dtype=np.float32).reshape(3, 4)
EXPECTED = {
    'turned': TABLE.T,
    'part': TABLE[1:, 2:],
    'half': TABLE[0].astype(np.float16),
    'bfloat16': TABLE[1].astype(jnp.bfloat16),
    'double': TABLE[2].astype(np.float64),
    'count': np.array(7),
    'yes': TABLE[0] > 1,
    'empty': np.zeros((0, 3), np.float32),
}


def test_tensors_are_those_that_pytorch_wrote():
    tensors = read_tensors(TENSORS)
    assert list(tensors) == list(EXPECTED)
    for key, expected in EXPECTED.items():
        assert tensors[key].dtype == expected.dtype
        np.testing.assert_array_equal(tensors[key], expected)


class Calls:
    """Unpickled by anyone else, it calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def write(path, content, little_endian=True):
    """The pickle `content` where PyTorch's own tensors by name would be."""
    header = [pickle.dumps(part, protocol=2) for part in (MAGIC, 1001, {'little_endian': little_endian})]
    path.write_bytes(b''.join([*header, content, pickle.dumps([], protocol=2)]))
    return path


@pytest.mark.parametrize(
    ('function', 'arguments', 'name'),
    [
        (os.mkdir, ('harm',), 'posix.mkdir'),
        (eval, ('__import__("os").mkdir("harm")',), '__builtin__.eval'),
        (getattr, (os, 'mkdir'), '__builtin__.getattr'),
        (np.dtype, ('float32',), 'numpy.dtype'),
    ],
)
def test_whatever_is_no_tensor_is_refused_and_named(tmp_path, monkeypatch, function, arguments, name):
    monkeypatch.chdir(tmp_path)
    arguments = tuple('os' if argument is os else argument for argument in arguments)
    path = write(tmp_path / 'model.pth', pickle.dumps({'weight': Calls(function, *arguments)}, protocol=2))
    with pytest.raises(DataError, match=rf'model\.pth is refused: it asks for {name}'):
        read_tensors(path)
    assert not (tmp_path / 'harm').exists()


def test_other_torch_names_are_refused_too(tmp_path):
    path = write(tmp_path / 'model.pth', b'ctorch\nload\n(Vother.pth\ntR.')
    with pytest.raises(DataError, match=r'asks for torch\.load'):
        read_tensors(path)


def test_a_tensor_may_not_reach_outside_of_its_storage(tmp_path):
    original = TENSORS.read_bytes()
    stretched = original.replace(b'K\x04K\x03\x86', b'K\x04K\xff\x86', 1)  # (4, 3) into (4, 255)
    assert stretched != original
    (tmp_path / 'model.pth').write_bytes(stretched)
    with pytest.raises(DataError, match="'turned' reaches outside of its storage"):
        read_tensors(tmp_path / 'model.pth')


def test_numbers_in_the_other_order_of_bytes_are_refused(tmp_path):
    with pytest.raises(DataError, match='begin with their highest byte'):
        read_tensors(write(tmp_path / 'model.pth', pickle.dumps({}, protocol=2), little_endian=False))


@pytest.mark.parametrize(
    ('offset', 'shape', 'strides'), [(-1, (2,), (1,)), (3, (3,), (-1,)), (0, (9, 9), (0, 0)), (2, (3,), (1,))]
)
def test_a_view_is_no_larger_than_its_storage_and_inside(offset, shape, strides):
    view = torch_file._View(torch_file._Storage('0', np.dtype(np.float32), 4), offset, shape, strides)
    with pytest.raises(ValueError, match="tensor 'w' reaches outside"):
        view.cut(np.arange(4, dtype=np.float32), 'w')


def test_damaged_and_other_files_are_told(tmp_path):
    path = tmp_path / 'model.pth'
    with pytest.raises(DataError, match='cannot be read'):
        read_tensors(path)
    whole = TENSORS.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match='no file of PyTorch tensors, or damaged'):
            read_tensors(path)
    with pytest.raises(DataError, match='something else than tensors by name'):
        read_tensors(write(path, pickle.dumps({'epoch': 3}, protocol=2)))
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', b'')
    with pytest.raises(DataError, match='no file of PyTorch tensors'):
        read_tensors(path)
