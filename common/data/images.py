"""Encoded images to uint8 arrays: the one decoder of prepare, training and predict, and its decode-once cache."""

import contextlib
import dataclasses
import errno
import fcntl
import io
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict
from PIL import ExifTags, Image, ImageOps
from tqdm.contrib.concurrent import thread_map

from common.errors import DataError, UsageError
from common.processor import cores

VERSION = 1  # part of the cache's name: raise it when `decode_image` gives other pixels for the same bytes
RESIZES = ('stretch', 'crop', 'pad')
CHUNK = 64  # images that a thread reads and decodes at a time
_RESAMPLING = Image.Resampling.BICUBIC  # Pillow widens it by the scale when it reduces, i.e. antialiases


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """What every image becomes."""

    height: int
    width: int
    # 'stretch' ignores the aspect ratio, 'crop' keeps it and cuts the longer side's ends off, 'pad' keeps it and
    # adds black bars
    resize: str
    channels: int  # 1 (grey) or 3 (RGB)

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise UsageError(f'config.dataset.image_size is {(self.height, self.width)}; it must be positive.')
        if self.resize not in RESIZES:
            raise UsageError(f'config.dataset.resize is {self.resize!r}; it must be one of {", ".join(RESIZES)}.')
        if self.channels not in (1, 3):
            raise UsageError(f'config.dataset.channels is {self.channels}; it must be 1 or 3.')

    @classmethod
    def of(cls, dataset: ConfigDict) -> 'Decoding':
        """From `config.dataset`, whose `image_size` is (height, width)."""
        try:
            height, width = dataset.image_size
        except (TypeError, ValueError):
            raise UsageError(f'config.dataset.image_size is {dataset.image_size}; write (height, width)') from None
        return cls(height=height, width=width, resize=dataset.resize, channels=dataset.channels)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels

    def __str__(self) -> str:
        return f'{self.height}x{self.width}x{self.channels}-{self.resize}-v{VERSION}'


def decode_image(encoded: bytes, decoding: Decoding, name: str) -> np.ndarray:
    """Decodes, turns upright as EXIF says, converts and resizes with antialiasing.

    Transparency is dropped, 16-bit grey keeps its upper byte, of an animation the first frame is taken. Signed pixels
    and those of 32 bits, integers or floats, are refused: nothing says which of their values are black and white.

    Returns:
      uint8 [height, width, channels].

    Raises:
      DataError: naming the file, where the bytes are no complete image, its pixels are refused, or it has more than
        `PIL.Image.MAX_IMAGE_PIXELS` (about 89 million) of them: a decompression bomb.
    """
    if not encoded:
        raise DataError(f'{name}: the file is empty.')
    try:
        pixels = _decode(encoded, decoding)
    except Exception as error:  # on garbage, Pillow's parsers raise whatever they run into
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = 'no known image format' if unknown else str(error) or type(error).__name__
        raise DataError(f'{name}: not a readable image: {reason}.') from error
    return pixels.reshape(decoding.shape)


def _decode(encoded: bytes, decoding: Decoding) -> np.ndarray:
    size = decoding.width, decoding.height
    with Image.open(io.BytesIO(encoded)) as image:
        # Pillow itself only warns up to twice this size.
        if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError(f'{image.width} x {image.height} pixels, a decompression bomb')
        if image.mode in ('I', 'F'):
            raise ValueError('signed pixels or of 32 bits; convert them to 8 or 16 bits without sign')
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        # JPEG can decode at 1/2, 1/4, 1/8: faithful as long as twice the final size is left for the resampling.
        draft = size[::-1] if orientation > 4 else size
        image.draft(None, (2 * draft[0], 2 * draft[1]))
        upright: Image.Image = ImageOps.exif_transpose(image) if orientation > 1 else image
        if upright.mode.startswith('I;16'):
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        upright = upright.convert('L' if decoding.channels == 1 else 'RGB')
    if decoding.resize == 'stretch':
        upright = upright.resize(size, _RESAMPLING)
    elif decoding.resize == 'crop':
        upright = ImageOps.fit(upright, size, _RESAMPLING)
    else:
        upright = ImageOps.pad(upright, size, _RESAMPLING)
    return np.asarray(upright)


class Records(Protocol):
    """A random-access source of records with `image` and `name`, both bytes, e.g. a TFDS data source."""

    def __len__(self) -> int: ...

    def __getitems__(self, rows: Sequence[int]) -> Sequence[Mapping[str, Any]]: ...


def decoded_split(records: Records, path: pathlib.Path, decoding: Decoding) -> np.ndarray:
    """The images of a split, decoded once and kept on disk.

    Args:
      records: read only where `path` is not there yet.
      path: the .npy file that keeps the array; its folder should be named after `str(decoding)`.

    Returns:
      uint8 [examples, height, width, channels], memory-mapped, read-only.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(path.parent):
            if not path.exists():  # another process may have written it meanwhile
                partial = path.with_suffix('.partial')
                _write_decoded(records, partial, decoding)
                partial.rename(path)
    return np.load(path, mmap_mode='r')


def _write_decoded(records: Records, path: pathlib.Path, decoding: Decoding) -> None:
    pixels = np.lib.format.open_memmap(path, 'w+', np.uint8, (len(records), *decoding.shape))
    _reserve(path)

    def fill(rows: range) -> None:
        for row, record in zip(rows, records.__getitems__(rows), strict=True):
            pixels[row] = decode_image(record['image'], decoding, record['name'].decode())

    chunks = [range(i, min(i + CHUNK, len(records))) for i in range(0, len(records), CHUNK)]
    in_threads(fill, chunks, 'decoding images')
    pixels.flush()


def _reserve(path: pathlib.Path) -> None:
    """Takes the file's room on the disk before it is written: a mapped page without any kills the process."""
    if not hasattr(os, 'posix_fallocate'):
        return
    size = path.stat().st_size
    try:
        with path.open('r+b') as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        path.unlink()
        raise DataError(
            f'{path.parent}: no room for {size / 2**20:,.0f} MiB of decoded images ({error.strerror})'
        ) from error


def in_threads[T, R](function: Callable[[T], R], items: Sequence[T], title: str) -> list[R]:
    """`map` in threads (Pillow and hashlib release the interpreter lock), with a progress bar on a terminal."""
    return thread_map(function, items, max_workers=cores(), desc=title, disable=None, leave=False)


@contextlib.contextmanager
def exclusive(directory: pathlib.Path) -> Iterator[None]:
    """Keeps other processes out; the lock goes with the process, however it ends.

    Where nothing can be written there is no lock, and nothing to keep others from.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(directory / '.lock', 'w'))
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES):
                raise
        else:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
