"""ISIC 2018 Task 3, 7 classes, official splits where their ground truth is there; variants as in ham10000."""

from ml_collections import ConfigDict

from lesion.configs import ham10000


def get_config(variant: str = 'cnn') -> ConfigDict:
    """The HAM10000 recipe: these are its images, with test images of their own. Unpack all zips into one folder."""
    config = ham10000.get_config(variant)
    config.dataset.name = 'isic2018'
    return config
