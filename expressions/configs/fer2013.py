"""FER2013, 7 classes, official splits; variants: vgg, residual, cpu, small_vgg; as NAME-plain without augmentation."""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from common.classification import image_dataset
from common.config import base_config, choose_variant
from common.errors import UsageError
from common.losses import classification_loss


def get_config(variant: str = 'vgg') -> ConfigDict:
    """Grey images of 48x48. PublicTest is validation and PrivateTest test, where the files hold it."""
    config = base_config()
    config.task = 'expressions'
    # A test split is not cut from training images: PublicTest is what this set is judged on without PrivateTest.
    config.dataset = image_dataset(
        'fer2013', (48, 48), channels=1, split_fractions={'train': 0.9, 'validation': 0.1, 'test': 0.0}
    )
    config.loss = ConfigDict({**classification_loss(), 'soft_targets': False})
    config.monitor.metric = 'accuracy'
    name, _, suffix = variant.partition('-')
    choose_variant(VARIANTS, name)(config)
    config.augment.update(mixup=0.0, cutmix=0.0)  # off, and there to be set
    if suffix not in ('', 'plain'):
        raise UsageError(f'variant {variant!r}: only -plain may follow the name')
    if suffix:
        config.augment = ConfigDict()
    return config


def _vgg(config: ConfigDict) -> None:
    """The recipe of Khaireddin and Chen 2021 (arXiv:2105.03588), 0.73 on PrivateTest; for a GPU.

    There, shifts and rotations leave half of the images alone and reach twice as far, and ten crops of an image make up
    one step; here, zoom and shift crop one.
    """
    config.batch_size = 128
    config.cpu_devices = 0
    config.duration = '300epochs'
    config.model = ConfigDict(
        {
            'name': 'cnn',
            'widths': (64, 128, 256, 512),
            'depth': 2,
            'dense': (4096, 4096),
            'dropout': 0.2,
            'pool': 'flatten',
        }
    )
    config.optimizer.name = 'sgd'
    config.optimizer.learning_rate = 0.01
    config.optimizer.weight_decay = 1e-4
    config.schedule.name = 'plateau'
    config.schedule.factor = 0.75
    config.schedule.patience = 5
    config.augment = ConfigDict(
        {'rotation': 10.0, 'zoom': (0.85, 1.25), 'shift': 0.1, 'horizontal_flip': 0.5, 'erasing': 0.5}
    )


def _residual(config: ConfigDict) -> None:
    """A residual network, better per multiplication, with a cosine and smoothed labels; for a GPU."""
    _vgg(config)
    config.duration = '120epochs'
    config.model = ConfigDict({'name': 'residual', 'stem': 64, 'widths': (128, 256, 512), 'depth': 2, 'dropout': 0.3})
    config.optimizer.learning_rate = 0.05
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = 'cosine'
    config.schedule.warmup = '5epochs'
    config.loss.label_smoothing = 0.1


def _cpu(config: ConfigDict) -> None:
    """The residual network cut down to some 35 minutes on two cores."""
    _residual(config)
    config.batch_size = 64
    config.cpu_devices = 1  # steps this short would wait for each other
    config.duration = '24epochs'
    config.model = ConfigDict({'name': 'residual', 'stem': 32, 'widths': (64, 128, 256), 'depth': 1, 'dropout': 0.2})
    config.schedule.warmup = '2epochs'
    config.ema_decay = 0.998
    config.augment = ConfigDict(
        {'rotation': 10.0, 'zoom': (0.9, 1.1), 'shift': 0.08, 'horizontal_flip': 0.5, 'erasing': 0.25}
    )


def _small_vgg(config: ConfigDict) -> None:
    """Six convolutions and Adam: what docs/performance.md measures speed by."""
    _vgg(config)
    config.batch_size = 64
    config.duration = '30epochs'
    config.model.update(widths=(64, 128, 256), dense=(256,), dropout=0.0)
    config.optimizer.name = 'adam'
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.0
    config.schedule.name = 'cosine'


VARIANTS: Mapping[str, Callable[[ConfigDict], None]] = {
    'vgg': _vgg,
    'residual': _residual,
    'cpu': _cpu,
    'small_vgg': _small_vgg,
}
