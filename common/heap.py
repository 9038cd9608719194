"""The C library's heap after XLA has compiled: its holes are kept out of the way of the steps that follow."""

import contextlib
import ctypes
import os
from collections.abc import Iterator

from common.process import TUNABLES

_HEADER = 8  # bytes that glibc adds to every piece
_HOLES = range(14, 20)  # powers of two, in bytes; smaller ones are found at once, larger ones are few
_held: list[int] = []


class _Mallinfo(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_size_t) for name in ('arena', 'ordblks', 'smblks', 'hblks', 'hblkhd')),
        *((name, ctypes.c_size_t) for name in ('usmblks', 'fsmblks', 'uordblks', 'fordblks', 'keepcost')),
    ]


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Around a compilation, which may use the holes that earlier ones left; afterwards they are filled.

    Where memory stays with the process, in one heap for all threads, a compilation leaves thousands of free pieces of
    all sizes scattered through it. XLA's matrix products ask for thousands of small arrays a step, each of which
    searches these pieces, while the other thread waits for the heap. Filled means allocated and not used: the pages are
    the process's in any case. Elsewhere nothing happens.
    """
    while _held:
        _libc().free(_held.pop())
    try:
        yield
    finally:
        if os.environ.get('GLIBC_TUNABLES') == TUNABLES and hasattr(_libc(), 'mallinfo2'):
            _fill()


def _fill() -> None:
    """Takes every free piece below the heap's end, and gives those back that are larger than a hole."""
    libc = _libc()
    info = libc.mallinfo2()
    end, left = libc.sbrk(0) - info.keepcost, info.fordblks - info.keepcost  # the heap grows from `end` on
    large: list[int] = []
    for power in range(left.bit_length(), _HOLES.start - 1, -1):
        while left > 0:
            piece = libc.malloc(2**power - _HEADER)
            if not piece or piece >= end:
                libc.free(piece)
                break
            left -= 2**power
            (_held if power in _HOLES else large).append(piece)
    for piece in large:
        libc.free(piece)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.sbrk.restype, libc.sbrk.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]
    if hasattr(libc, 'mallinfo2'):
        libc.mallinfo2.restype, libc.mallinfo2.argtypes = _Mallinfo, []
    return libc
