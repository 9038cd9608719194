"""HAM10000, 7 classes, split by lesion; variants: cnn, cnn_lstm, efficientnet_lite0."""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from common.classification import image_dataset
from common.config import base_config, choose_variant
from common.losses import classification_loss


def get_config(variant: str = 'cnn') -> ConfigDict:
    """What the variants have in common: balanced sampling, and augmentation that turns images any way round."""
    config = base_config()
    config.task = 'lesion'
    config.dataset = image_dataset('ham10000', image_size=(96, 128))
    config.cpu_devices = 0
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
    config.loss = classification_loss()
    config.optimizer.weight_decay = 1e-2
    config.schedule.warmup = '1epochs'
    config.monitor.metric = 'balanced_accuracy'
    choose_variant(VARIANTS, variant)(config)
    config.model.metadata = False  # age, sex and site beside the image
    config.model.metadata_dropout = 0.2  # of the examples, in training
    return config


def _cnn(config: ConfigDict) -> None:
    """The small CNN from scratch, sized for two CPU cores and some 20 minutes."""
    config.duration = '25epochs'
    config.model = ConfigDict({'name': 'cnn', **_TRUNK, 'dense': (128,), 'dropout': 0.3})
    config.optimizer.learning_rate = 2e-3
    config.ema_decay = 0.998


def _cnn_lstm(config: ConfigDict) -> None:
    """Its convolutions, read by an LSTM."""
    _cnn(config)
    config.model = ConfigDict({'name': 'cnn_lstm', **_TRUNK, 'hidden_size': 128, 'bidirectional': True, 'dropout': 0.3})


def _efficientnet_lite0(config: ConfigDict) -> None:
    """EfficientNet-Lite0 from its ImageNet weights, sized for two CPU cores and three quarters of an hour."""
    config.dataset.image_size = (150, 200)
    config.dataset.normalisation = (127.0, 128.0)
    config.batch_size = 32
    config.duration = '12epochs'
    config.ema_decay = 0.998
    config.init_from = 'imagenet'
    config.model = ConfigDict({'name': 'efficientnet_lite0', 'dropout': 0.3, 'drop_connect': 0.2})
    # Balanced sampling, with which networks from scratch do better, overfits the few images of rare classes here.
    config.data.sampling = 'uniform'
    config.loss.logit_adjustment = 1.0
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 5e-2
    config.optimizer.scales = (('backbone', 0.5),)


_TRUNK = {'widths': (32, 64, 128, 256), 'depth': (1, 1, 2, 2)}
VARIANTS: Mapping[str, Callable[[ConfigDict], None]] = {
    'cnn': _cnn,
    'cnn_lstm': _cnn_lstm,
    'efficientnet_lite0': _efficientnet_lite0,
}
