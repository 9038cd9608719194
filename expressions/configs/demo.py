"""Synthetic faces, drawn by the toolkit: no download, trains in about half a minute on two CPU cores."""

from ml_collections import ConfigDict

from expressions.configs import fer2013


def get_config() -> ConfigDict:
    """The FER2013 recipe on drawn faces; the figures say something about the toolkit, nothing about people."""
    config = fer2013.get_config('cpu')
    config.dataset.name = 'synthetic_faces'
    config.batch_size = 32
    config.duration = '24epochs'
    config.evaluate_every = '2epochs'
    config.model = ConfigDict({'name': 'residual', 'stem': 16, 'widths': (32, 64), 'depth': 1, 'dropout': 0.2})
    config.optimizer.name = 'adamw'
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 1e-2
    config.ema_decay = 0.0
    config.augment.erasing = 0.0  # a drawn mouth can be all there is to tell by
    return config
