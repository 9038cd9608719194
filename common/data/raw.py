"""Raw image sets as published: the files of a folder or a zip, and what a reader makes of them."""

import contextlib
import dataclasses
import hashlib
import io
import os
import pathlib
import re
import threading
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from common.data.audit import Audit
from common.errors import DataError

ARCHIVES = ('.zip', '.tar', '.gz', '.tgz', '.7z', '.rar')
IMAGE_SUFFIXES = frozenset(('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.gif'))
TABLE_SUFFIXES = frozenset(('.csv', '.tab', '.tsv', '.txt', ''))


@dataclasses.dataclass(frozen=True)
class RawFiles:
    """Files under relative POSIX names, sorted; a single folder around everything is looked through."""

    path: pathlib.Path  # the folder or the zip
    sizes: Mapping[str, int]  # bytes of each file, by name
    _read: Callable[[str], bytes]

    @property
    def names(self) -> Sequence[str]:
        return list(self.sizes)

    def read(self, name: str) -> bytes:
        """The content of one file; any thread may call it.

        Raises:
          DataError: where the file cannot be read, e.g. from a damaged zip.
        """
        try:
            return self._read(name)
        # zipfile raises RuntimeError on encryption, NotImplementedError on an unknown compression.
        except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f'{name} in {self.path} cannot be read: {error}') from error

    def signature(self) -> str:
        """A digest of names, sizes and the content of tables, where a corrected label may keep the size.

        It changes when files are added, taken away or replaced, unless by an image of as many bytes.
        """
        digest = hashlib.sha256(repr(list(self.sizes.items())).encode())
        for name in self.names:
            if pathlib.PurePosixPath(name).suffix.lower() in TABLE_SUFFIXES or name.lower().endswith('.csv.gz'):
                digest.update(self.read(name))
        return digest.hexdigest()[:16]


@contextlib.contextmanager
def open_raw(path: pathlib.Path, beside: Collection[str] = ()) -> Iterator[RawFiles]:
    """The files of a folder or of a .zip; a lone .csv stands for a folder with it and what is named `beside` it.

    Links are followed, to files and to folders.

    Raises:
      DataError: where there is nothing, no file in it, a name that is not in UTF-8, or no folder and no sound zip.
    """
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        try:
            found = {os.path.relpath(file.path, path): file.stat().st_size for file in _files_below(str(path))}
        except OSError as error:
            raise DataError(f'{path} cannot be read: {error}') from error
        yield _files(path, found, lambda name: (path / name).read_bytes())
    elif path.is_file() and path.suffix.lower() == '.csv':
        found = {p.name: p.stat().st_size for p in (path, *map(path.with_name, beside)) if p.is_file()}
        yield _files(path, found, lambda name: path.with_name(name).read_bytes())
    elif path.is_file():
        try:
            archive = zipfile.ZipFile(path)
        except (OSError, NotImplementedError, zipfile.BadZipFile) as error:
            raise DataError(
                f'{path} is neither a folder nor a zip file, or the zip is truncated or damaged ({error}). Unpack '
                'other archives, and point --raw_dir to the folder.'
            ) from error
        with archive:
            found = {entry.filename: entry.file_size for entry in archive.infolist() if not entry.is_dir()}
            lock = threading.Lock()

            def read(name: str) -> bytes:
                with lock:
                    return archive.read(name)

            yield _files(path, found, read)
    else:
        raise DataError(f'There is no {path}. Point --raw_dir to the folder or the zip with the raw files.')


def _files_below(folder: str, inside: Collection[str] = ()) -> Iterator[os.DirEntry[str]]:
    """All files, through links too; a link to itself, or to a folder around it, one of `inside`, leads nowhere."""
    here = os.path.realpath(folder)
    if here in inside:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if os.path.isdir(entry.path) and not _is_litter(entry.name):
                yield from _files_below(entry.path, (*inside, here))
            elif os.path.isfile(entry.path):  # entry's own method raises on a link to itself
                yield entry


def _files(path: pathlib.Path, found: Mapping[str, int], read: Callable[[str], bytes]) -> RawFiles:
    names = sorted(name for name in found if not any(map(_is_litter, name.split('/'))))
    if not names:
        raise DataError(f'{path} is empty. Point --raw_dir to the folder or the zip with the raw files.')
    if foreign := [name for name in names if re.search('[\ud800-\udfff]', name)]:  # how Python shows stray bytes
        raise DataError(f'{path}: the name {foreign[0]!r} is not written in UTF-8. Rename the file or its folder.')
    tops = {name.partition('/')[0] if '/' in name else '' for name in names}
    prefix = f'{tops.pop()}/' if len(tops) == 1 and '' not in tops else ''
    return RawFiles(
        path,
        {name.removeprefix(prefix): found[name] for name in names},
        lambda name: read(prefix + name),
    )


def _is_litter(name: str) -> bool:
    """Whether file managers leave it behind; it is not part of anybody's data set."""
    return name.startswith('.') or name in ('__MACOSX', 'Thumbs.db')


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawImage:
    """One labelled image before preparation."""

    name: str  # what the data set calls it; unique
    path: str  # where it is, for messages: a file or a row of a table
    read: Callable[[], bytes]  # gives the encoded bytes (JPEG, PNG, ...)
    label: str  # one of the class names
    group: str  # images of one group (a lesion, a person) never go to different splits
    split: str | None = None  # the publisher's own split, where there is one
    in_class: str = ''  # what of the name stands below the folder of its class, where there is such a folder
    # JSON-able scalars, the same keys for every image, None where unknown: age, sex, site
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class RawImages:
    """What a reader found: the class names in the publisher's order, and the images that have a label."""

    class_names: Sequence[str]
    images: Sequence[RawImage]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSource:
    """A published image set, or an own one in the same layout."""

    title: str  # its full name, with the paper
    # lists images and labels, and adds to the audit what does not fit together
    read: Callable[[RawFiles, Audit], RawImages]
    where: str = ''  # where a person gets it, for sets that are not drawn
    beside: Collection[str] = ()  # names of files that count where they lie beside a lone table
    # writes the raw layout into an empty folder, for sets that are drawn instead of downloaded
    synthesize: Callable[[pathlib.Path], None] | None = None


def image_names(raw: RawFiles) -> list[str]:
    """The files whose ending is that of an image."""
    return [name for name in raw.names if pathlib.PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]


def some_image_names(raw: RawFiles) -> list[str]:
    """The same; raises DataError where there is none."""
    names = image_names(raw)
    if not names:
        raise DataError(f'{raw.path} holds no image: no file ends in {", ".join(sorted(IMAGE_SUFFIXES))}.')
    return names


def unpack_hint(raw: RawFiles) -> str:
    """A sentence on the archives among the files, which are not looked into; nothing where there are none."""
    archives = [name for name in raw.names if name.lower().endswith(ARCHIVES)]
    return f' Unpack {", ".join(archives)}.' if archives else ''


def contents(path: pathlib.Path, choose: Callable[[RawFiles], Sequence[str]]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of a file, or of those in a folder or zip that `choose` names, which may raise.

    Raises:
      DataError: where a file cannot be read.
    """
    if path.is_dir() or path.suffix.lower() == '.zip':
        with open_raw(path) as raw:
            for name in choose(raw):
                yield f'{path}/{name}', raw.read(name)
        return
    try:
        yield str(path), path.read_bytes()
    except OSError as error:
        raise DataError(f'{path} cannot be read: {error.strerror}') from error


def tell_skipped(skipped: Sequence[str], everything: bool) -> None:
    """Prints which inputs are left out and why; raises DataError where that is `everything`."""
    lines = ''.join(f'\n  {line}' for line in skipped)
    if everything:
        raise DataError(f'nothing can be predicted from these inputs:{lines}')
    if skipped:
        print(f'not predicted, {len(skipped)}:{lines}')


def images_by_stem(raw: RawFiles, audit: Audit) -> dict[str, str]:
    """Image files by their name without folder and ending, as tables refer to them."""
    paths: dict[str, str] = {}
    repeated = []
    for name in image_names(raw):
        stem = pathlib.PurePosixPath(name).stem
        if paths.setdefault(stem, name) != name:
            repeated.append(f'{name} (used: {paths[stem]})')
    audit.add('repeated_files', 'image files with the name of another; the first is used', repeated)
    return paths


def read_table(raw: RawFiles, path: str, columns: Sequence[str]) -> pd.DataFrame:
    """A table of the raw files, of commas or tabs, every value a string, empty where there is none.

    Line 2 is row 0; lines without anything are left out.

    Raises:
      DataError: where it is no table, or lacks one of the `columns`.
    """
    content = raw.read(path)
    separator = '\t' if b'\t' in content.partition(b'\n')[0] else ','
    try:
        table = pd.read_csv(
            io.BytesIO(content), sep=separator, dtype=str, keep_default_na=False, skip_blank_lines=False
        )
    except ValueError as error:  # pandas' own errors and UnicodeDecodeError are ValueErrors
        raise DataError(f'{path} in {raw.path} is not a CSV table: {error}') from error
    table = table[(table != '').any(axis=1)]
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise DataError(
            f'{path} in {raw.path} lacks the column(s) {", ".join(missing)}; '
            f'it has {", ".join(map(str, table.columns))}.'
        )
    return table


def base_name(path: str) -> str:
    """The name of a raw file without its folders."""
    return path.rpartition('/')[2]
