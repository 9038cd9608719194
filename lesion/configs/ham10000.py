"""HAM10000, 7 classes, split by lesion; variants: cnn."""

from ml_collections import ConfigDict

from common.classification import classification_loss, image_dataset
from common.config import base_config
from common.errors import UsageError

VARIANTS = ('cnn',)


def get_config(variant: str = 'cnn') -> ConfigDict:
    """Variant `cnn`: the small CNN from scratch, sized for two CPU cores and 45 minutes."""
    if variant not in VARIANTS:
        raise UsageError(f'there is no variant {variant!r}, only {", ".join(VARIANTS)}')
    config = base_config()
    config.task = 'lesion'
    config.dataset = image_dataset('ham10000', image_size=(96, 128))
    config.batch_size = 64
    config.duration = '25epochs'
    config.data.sampling = 'balanced'
    config.augment = ConfigDict(
        {
            'rotation': 180.0,
            'horizontal_flip': 0.5,
            'vertical_flip': 0.5,
            'zoom': (0.8, 1.2),
            'shift': 0.1,
            'brightness': 0.1,
            'contrast': (0.8, 1.25),
        }
    )
    config.model = ConfigDict(
        {'name': variant, 'widths': (32, 64, 128, 256), 'depth': 1, 'dense': (128,), 'dropout': 0.3}
    )
    config.loss = classification_loss()
    config.optimizer.weight_decay = 1e-2
    config.schedule.warmup = '1epochs'
    config.monitor.metric = 'balanced_accuracy'
    config.monitor.mode = 'max'
    return config
