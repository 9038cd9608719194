"""CK+48, faces of the Extended Cohn-Kanade set in one folder per class; variants as in fer2013."""

from ml_collections import ConfigDict

from common.classification import image_dataset
from expressions.configs import fer2013


def get_config(variant: str = 'cpu') -> ConfigDict:
    """The FER2013 recipe. No person has images in two splits: a file `S010_004_00000019.png` is of person S010.

    The set holds the last three frames of every sequence: split by image, near-copies would be on both sides.
    """
    config = fer2013.get_config(variant)
    config.dataset = image_dataset('ckplus', (48, 48), channels=1, group_by='^S[0-9]+')
    return config
