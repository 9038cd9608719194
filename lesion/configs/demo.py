"""Synthetic lesions, drawn by the toolkit: no download, trains in about a minute on two CPU cores; cnn, cnn_lstm."""

from ml_collections import ConfigDict

from common.classification import image_dataset
from lesion.configs import ham10000


def get_config(variant: str = 'cnn') -> ConfigDict:
    """The HAM10000 recipe on small images; the figures say something about the toolkit, nothing about skin."""
    config = ham10000.get_config(variant)
    config.dataset = image_dataset('demo', image_size=(48, 48))
    config.duration = '20epochs'
    config.model = ConfigDict({**config.model, 'widths': (16, 32, 64), 'depth': 1})
    config.optimizer.learning_rate = 3e-3
    return config
