"""The benchmark's models in Keras on TensorFlow, trained on random data in memory; run by experiments/benchmark.py."""

import os
import platform
import time

os.environ['KERAS_BACKEND'] = 'tensorflow'

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from protocol import efficientnet_blocks, fewer_threads, serve, threads


def conv(x: keras.KerasTensor, width: int, kernel: int = 3) -> keras.KerasTensor:
    return layers.Conv2D(width, kernel, padding='same', use_bias=False)(x)


def norm_relu(x: keras.KerasTensor) -> keras.KerasTensor:
    return layers.ReLU()(layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x))


def logits(x: keras.KerasTensor, spec: dict) -> keras.KerasTensor:
    return layers.Dense(spec['num_outputs'], dtype='float32')(x)


def cnn(x: keras.KerasTensor, spec: dict) -> keras.KerasTensor:
    """common/nn/cnn.py."""
    model = spec['model']
    depths = model['depth'] if isinstance(model['depth'], list) else [model['depth']] * len(model['widths'])
    for width, depth in zip(model['widths'], depths, strict=True):
        for _ in range(depth):
            x = norm_relu(conv(x, width))
        x = layers.MaxPooling2D(2)(x)
    x = layers.Flatten()(x) if model['pool'] == 'flatten' else layers.GlobalAveragePooling2D()(x)
    for width in model['dense']:
        x = layers.Dense(width, activation='relu')(layers.Dropout(model['dropout'])(x))
    return logits(layers.Dropout(model['dropout'])(x), spec)


def residual_cnn(x: keras.KerasTensor, spec: dict) -> keras.KerasTensor:
    """common/nn/residual.py."""
    model = spec['model']
    x = norm_relu(conv(x, model['stem']))
    for width in model['widths']:
        x = layers.AveragePooling2D(2)(x)
        for _ in range(model['depth']):
            before = norm_relu(x)
            shortcut = x if x.shape[-1] == width else conv(before, width, kernel=1)
            x = layers.Add()([shortcut, conv(norm_relu(conv(before, width)), width)])
    x = layers.GlobalAveragePooling2D()(norm_relu(x))
    return logits(layers.Dropout(model['dropout'])(x), spec)


def efficientnet_lite0(x: keras.KerasTensor, spec: dict) -> keras.KerasTensor:
    """common/nn/efficientnet.py."""

    def norm(x: keras.KerasTensor) -> keras.KerasTensor:
        return layers.BatchNormalization(momentum=0.99, epsilon=1e-3)(x)

    def pointwise(x: keras.KerasTensor, width: int) -> keras.KerasTensor:
        return norm(conv(x, width, kernel=1))

    x = layers.ReLU(6.0)(norm(layers.Conv2D(32, 3, 2, padding='same', use_bias=False)(x)))
    for side, stride, expansion, width, drop in efficientnet_blocks(spec['model']):
        y = layers.ReLU(6.0)(pointwise(x, expansion * x.shape[-1])) if expansion > 1 else x
        y = layers.ReLU(6.0)(norm(layers.DepthwiseConv2D(side, stride, padding='same', use_bias=False)(y)))
        y = pointwise(y, width)
        if stride == 1 and x.shape[-1] == width:
            y = layers.Add()([x, layers.Dropout(drop, noise_shape=(None, 1, 1, 1))(y)])
        x = y
    x = layers.GlobalAveragePooling2D()(layers.ReLU(6.0)(pointwise(x, 1280)))
    return logits(layers.Dropout(spec['model']['dropout'])(x), spec)


def forecaster(x: keras.KerasTensor, spec: dict) -> keras.KerasTensor:
    """stocks/models.py."""
    model = spec['model']
    for layer in range(model['num_layers']):
        if layer:
            x = layers.Dropout(model['dropout_rate'])(x)
        x = layers.LSTM(model['hidden_size'], return_sequences=layer + 1 < model['num_layers'])(x)
    return logits(x, spec)


MODELS = {
    'CNN': cnn,
    'ResidualCNN': residual_cnn,
    'EfficientNetLite0': efficientnet_lite0,
    'Forecaster': forecaster,
}
SETTINGS = {'graph': False, 'graph, jit_compile': True}


class KerasPeer:
    """Settings: the training function as TensorFlow runs it, and compiled by its XLA."""

    def __init__(self, spec: dict):
        if spec['model']['name'] not in MODELS:
            raise NotImplementedError(f'keras_peer.py has no {spec["model"]["name"]}')
        if spec['models'] > 1:
            raise NotImplementedError('keras_peer.py trains one model, not many in turn')
        if spec['dtype'] == 'bfloat16':
            keras.mixed_precision.set_global_policy('mixed_bfloat16')
        tf.config.threading.set_intra_op_parallelism_threads(threads(spec))
        self.environments = fewer_threads(spec)
        self._spec, self._prepared = spec, ''
        self.settings = list(SETTINGS)
        self.num_parameters = sum(int(np.prod(v.shape)) for v in self._build().trainable_variables)
        self.versions = {
            'keras': keras.__version__,
            'tensorflow': tf.__version__,
            'python': platform.python_version(),
        }

    def run(self, setting: str, steps: int) -> float:
        if setting != self._prepared:
            self._prepared = ''
            self._prepare(setting)
            self._prepared = setting
        begin = time.perf_counter()
        for _ in range(steps):
            logs = self._model.train_function(self._batches)
        float(logs['loss'])  # waits for the last step
        return time.perf_counter() - begin

    def _build(self) -> keras.Model:
        inputs = keras.Input(tuple(self._spec['input_shape']))
        return keras.Model(inputs, MODELS[self._spec['model']['name']](inputs, self._spec))

    def _prepare(self, setting: str) -> None:
        """The function that `fit` calls for every step, and an endless supply of one batch."""
        self._model = self._build()
        losses = {
            'cross_entropy': keras.losses.CategoricalCrossentropy(from_logits=True),
            'mse': keras.losses.MeanSquaredError(),
            'huber': keras.losses.Huber(),
        }
        self._model.compile(
            optimizer=make_optimizer(self._spec['optimizer']),
            loss=losses[self._spec['loss']],
            jit_compile=SETTINGS[setting],
        )
        self._model.make_train_function()
        self._batches = iter(tf.data.Dataset.from_tensors(self._batch()).repeat().prefetch(2))

    def _batch(self) -> tuple[np.ndarray, np.ndarray]:
        spec, random = self._spec, np.random.default_rng(0)
        inputs = random.standard_normal((spec['batch_size'], *spec['input_shape']), np.float32)
        if spec['loss'] == 'cross_entropy':
            classes = random.integers(spec['num_outputs'], size=spec['batch_size'])
            return inputs, np.eye(spec['num_outputs'], dtype=np.float32)[classes]
        return inputs, random.standard_normal((spec['batch_size'], spec['num_outputs']), np.float32)


def make_optimizer(settings: dict) -> keras.optimizers.Optimizer:
    """Weight decay is that of common/training/optim.py, which spares biases and normalisation."""
    clip = {'global_clipnorm': settings['gradient_clip'] or None, 'weight_decay': settings['weight_decay'] or None}
    rate = settings['learning_rate']
    if settings['name'] == 'sgd':
        optimizer = keras.optimizers.SGD(rate, momentum=settings['momentum'], nesterov=settings['momentum'] > 0, **clip)
    else:
        optimizer = keras.optimizers.Adam(rate, epsilon=1e-8, **clip)
    if settings['weight_decay']:
        optimizer.exclude_from_weight_decay(var_names=['bias', 'gamma', 'beta'])
    return optimizer


if __name__ == '__main__':
    serve(KerasPeer)
