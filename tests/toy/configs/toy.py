"""Points near planes."""

from ml_collections import ConfigDict

from common.config import base_config


def get_config() -> ConfigDict:
    config = base_config()
    config.task = 'toy'
    config.dataset = ConfigDict({'name': 'toy', 'raw_dir': '', 'by_group': False, 'only_group': -1})
    config.augment = ConfigDict({'jitter': 0.1})
    config.model = ConfigDict({'width': 8, 'batch_norm': True, 'dropout': 0.1})
    config.batch_size = 8
    config.duration = '24steps'
    config.evaluate_every = '8steps'
    config.log_every = '4steps'
    config.optimizer.learning_rate = 1e-2
    config.monitor.metric = 'mae'
    return config
