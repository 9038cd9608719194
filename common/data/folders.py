"""Image sets with one folder per class, with or without folders for the publisher's splits above them."""

import collections
import functools
import re
from collections.abc import Sequence

from common.data.audit import Audit
from common.data.raw import ImageSource, RawFiles, RawImage, RawImages, image_names, unpack_hint
from common.errors import DataError

OWN = 'folders'  # the config.dataset.name of images of one's own, whatever the task
SPLITS = {
    'train': 'train',
    'training': 'train',
    'validation': 'validation',
    'valid': 'validation',
    'val': 'validation',
    'dev': 'validation',
    'publictest': 'validation',
    'test': 'test',
    'testing': 'test',
    'privatetest': 'test',
}
_HINTS = re.compile('train|test|val|fold|split|set')  # in names that are none of SPLITS, but may well mean one


def read_folders(raw: RawFiles, audit: Audit) -> RawImages:
    """Reads `<class>/*` or `<split>/<class>/*`, e.g. `Train/melanoma/a.jpg`; deeper folders belong to the class.

    Folders around all of these are looked through, whatever files lie beside them; names of images begin below. Splits
    go by any of SPLITS, in small or capital letters, and `set` may follow: `test_set`. Class names are the folders'
    names, without blanks around them, in alphabetical order. Every image is a group of its own. Images in no class
    folder, such as the unlabelled ones of a flat `test/`, are left out and named in the audit.

    Classes may all hold the same folders: `a/left`, `a/right`, `b/left`, `b/right`. This is refused only where a name
    on top hints at a split, as `train_part` does; a class that is called like a split must hold its images itself.

    Raises:
      DataError: where no image lies in a class folder, only one class is there, or splits cannot be told from classes.
    """
    names = _below_common_folders(image_names(raw))
    splits = _splits(raw, list(names.values()), audit)
    images, homeless = [], []
    for path, name in names.items():
        top, _, rest = name.partition('/')
        folder, _, in_class = (rest if splits else name).partition('/')
        label = folder.strip() if in_class else ''
        if label:
            images.append(
                RawImage(
                    name=name,
                    path=path,
                    read=functools.partial(raw.read, path),
                    label=label,
                    group=name,
                    split=splits.get(top),
                    in_class=in_class,
                )
            )
        else:
            homeless.append(path)
    class_names = sorted({image.label for image in images})
    if len(class_names) < 2:
        raise DataError(
            f'{raw.path} holds images of {len(class_names)} classes; expected folders <class>/*.jpg or '
            f'train/<class>/*.jpg for at least two classes.{unpack_hint(raw)}'
        )
    audit.add('images_without_class', 'images outside of a class folder, left out', homeless)
    audit.add('other_files', 'files whose ending is not that of an image', sorted({*raw.names} - {*names}))
    return RawImages(class_names, images)


def _below_common_folders(paths: Sequence[str]) -> dict[str, str]:
    """By path, what is left of it without the folders that all have in common; files beside these stay whole."""
    names = {path: path for path in paths}
    while len({name.partition('/')[0] for name in names.values() if '/' in name}) == 1:
        names = {path: name.partition('/')[2] or name for path, name in names.items()}
    return names


def _splits(raw: RawFiles, names: Sequence[str], audit: Audit) -> dict[str, str]:
    """The split of every folder on top; none, where the classes are on top.

    Raises:
      DataError: where only some of the folders that hold folders are splits, or all hold the same ones, as splits do.
    """
    below: dict[str, set[str]] = collections.defaultdict(set)
    for name in names:
        top, *deeper = name.split('/')
        if deeper:
            below[top].update(deeper[:-1][:1])
    splits = {top: SPLITS[key] for top in below if (key := _plain(top)) in SPLITS}
    others = [top for top in below if top not in splits]
    if not others:
        return splits if any(below.values()) else {}
    holding = [top for top in splits if len(below[top]) > 1]
    if holding:
        raise DataError(
            f'{raw.path} has folders for splits ({", ".join(holding)}) beside others ({", ".join(others)}). Take the '
            f'others away, or name them {", ".join(SPLITS)}; if they are the classes, put their images right into them.'
        )
    alike = min(map(len, below.values())) > 1 and len(set(map(frozenset, below.values()))) == 1
    if alike and any(_HINTS.search(top.lower()) for top in below):
        raise DataError(
            f'{raw.path}: all of {", ".join(below)} hold the same folders, {", ".join(sorted(below[others[0]]))}, so '
            f'that they look like splits. If they are, name them train, validation or test, above folders for the '
            f'classes; if they are the classes, put their images right into them.'
        )
    audit.add('alike_folders', 'folders taken for classes, though all hold the same folders', [*below] if alike else [])
    return {}


def _plain(folder: str) -> str:
    """`Test_Set` as `test`."""
    return re.sub('[^a-z]', '', folder.lower()).removesuffix('set')


FOLDERS = ImageSource(
    title='Images in one folder per class',
    where='your own',
    read=read_folders,
)
