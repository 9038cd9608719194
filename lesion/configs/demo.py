"""Synthetic lesions, drawn by the toolkit: no download, the variants of ham10000.py on two CPU cores."""

from ml_collections import ConfigDict

from lesion.configs import ham10000


def get_config(variant: str = 'cnn') -> ConfigDict:
    """The HAM10000 recipe on small images; the figures say something about the toolkit, nothing about skin."""
    config = ham10000.get_config(variant)
    config.dataset.update(name='demo', image_size=(48, 48))
    config.cpu_devices = 1  # steps this short would wait for each other
    config.duration = '20epochs'
    if 'widths' in config.model:
        config.model = ConfigDict({**config.model, 'widths': (16, 32, 64), 'depth': 1})
        config.optimizer.learning_rate = 3e-3
    return config
