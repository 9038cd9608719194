"""Faces of your own in one folder per class, with or without folders train/ and test/ above; variants as in fer2013."""

from ml_collections import ConfigDict

from common.classification import image_dataset
from expressions.configs import fer2013


def get_config(variant: str = 'cpu') -> ConfigDict:
    """The FER2013 recipe. Where people appear in several images, config.dataset.group_by keeps each in one split."""
    config = fer2013.get_config(variant)
    config.dataset = image_dataset('folders', (48, 48), channels=1)
    return config
