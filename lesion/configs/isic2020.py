"""ISIC 2020, benign or malignant, split by patient; variants as in ham10000."""

from ml_collections import ConfigDict

from lesion.configs import ham10000


def get_config(variant: str = 'cnn') -> ConfigDict:
    """The HAM10000 recipe; these images are of many sizes and shapes, and their middle is taken."""
    config = ham10000.get_config(variant)
    config.dataset.update(name='isic2020', resize='crop')
    return config
