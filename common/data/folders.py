"""Image sets with one folder per class, with or without folders for the publisher's splits above them."""

import functools

from common.data.audit import Audit
from common.data.raw import ImageSource, RawFiles, RawImage, RawImages, image_names
from common.errors import DataError

SPLITS = {
    'train': 'train',
    'training': 'train',
    'validation': 'validation',
    'valid': 'validation',
    'val': 'validation',
    'test': 'test',
    'testing': 'test',
}


def read_folders(raw: RawFiles, audit: Audit) -> RawImages:
    """Reads `<class>/*` or `<split>/<class>/*`, e.g. `Train/melanoma/a.jpg`; deeper folders belong to the class.

    Class names are the folders' names in alphabetical order. Every image is a group of its own. Images in no class
    folder, such as the unlabelled ones of a flat `test/`, are left out and named in the audit.

    Raises:
      DataError: where no image lies in a class folder, or only one class is there.
    """
    names = image_names(raw)
    tops = {name.split('/')[0].lower() for name in names if '/' in name}
    splits_on_top = tops <= SPLITS.keys() and any(name.count('/') >= 2 for name in names)
    images, homeless = [], []
    for name in names:
        split, _, rest = name.partition('/') if splits_on_top else (None, '', name)
        label, slash, _ = rest.partition('/')
        if slash:
            images.append(
                RawImage(
                    name=name,
                    path=name,
                    read=functools.partial(raw.read, name),
                    label=label,
                    group=name,
                    split=SPLITS[split.lower()] if split else None,
                )
            )
        else:
            homeless.append(name)
    class_names = sorted({image.label for image in images})
    if len(class_names) < 2:
        raise DataError(
            f'{raw.path} holds images of {len(class_names)} classes; expected folders <class>/*.jpg or '
            f'train/<class>/*.jpg for at least two classes.'
        )
    audit.add('images_without_class', 'images outside of a class folder, left out', homeless)
    audit.add('other_files', 'files whose ending is not that of an image', sorted({*raw.names} - {*names}))
    return RawImages(class_names, images)


FOLDERS = ImageSource(
    title='Images in one folder per class',
    where='your own',
    licence='your own',
    read=read_folders,
)
