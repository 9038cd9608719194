"""The classifiers of skin lesions, by the name that `config.model.name` gives them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.nn.cnn import CNN, convolutional_trunk
from common.nn.efficientnet import EfficientNetLite0
from common.nn.layers import Dropout
from common.nn.lstm import LSTM
from common.runtime import AXIS


class CNNLSTM(nn.Module):
    """The convolutional stages of `CNN`, whose last feature map an LSTM reads as a sequence of positions.

    The sequence goes row by row, each from left to right. The classifier sees the mean of the LSTM's outputs over all
    positions: its last output alone would hardly know of the rows above, since a fresh LSTM forgets half at each step.
    """

    num_classes: int  # of the logits
    # of the convolutional stages, as in `CNN`; each stage halves height and width
    widths: Sequence[int] = (32, 64, 128, 256)
    depth: int | Sequence[int] = 2
    hidden_size: int = 128  # units of the LSTM in each direction
    bidirectional: bool = True  # another LSTM reads the sequence from its end
    dropout: float = 0.3  # rate before the logits
    convolution: str = 'auto'  # the path that convolutions take, see common/nn/conv.py
    dtype: Any = jnp.float32  # of the computation; parameters are float32
    axis_name: str | None = AXIS  # of the devices over which BatchNorm takes its statistics

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x [batch, height, width, channels] -> logits float32 [batch, num_classes]."""
        x = convolutional_trunk(self, x, train=train)
        sequence = x.reshape(x.shape[0], -1, x.shape[-1])
        outputs = LSTM(self.hidden_size, bidirectional=self.bidirectional, dtype=self.dtype)(sequence, train=train)
        x = Dropout(self.dropout)(outputs.mean(1), train=train)
        return nn.Dense(self.num_classes, dtype=jnp.float32)(x.astype(jnp.float32))


class MetadataFusion(nn.Module):
    """An image model whose outputs serve as features, joined by what a small MLP makes of the patient's metadata.

    The image model's parameters keep the names that they have without metadata.
    """

    image: nn.Module  # the image model, with as many outputs as there shall be features
    num_classes: int  # of the logits
    # probability that an example loses all of its metadata in training, so that the model learns to do without
    metadata_dropout: float = 0.0
    hidden_size: int = 32  # units of the MLP

    def setup(self) -> None:
        nn.share_scope(self, self.image)

    @nn.compact
    def __call__(self, inputs: Mapping[str, jax.Array], *, train: bool) -> jax.Array:
        """`image` as the image model takes it, `metadata` float32 [batch, categories], see lesion/metadata.py.

        Returns:
          Logits float32 [batch, num_classes].
        """
        image, metadata = inputs['image'], inputs['metadata']
        dropout = Dropout(self.metadata_dropout, name='metadata_kept')
        kept = dropout(jnp.ones((len(metadata), 1)), train=train) > 0
        hidden = nn.relu(nn.Dense(self.hidden_size, name='metadata_hidden')(metadata * kept))
        features = nn.relu(self.image(image, train=train))
        return nn.Dense(self.num_classes, name='fusion')(jnp.concatenate([features, hidden], axis=-1))


IMAGE_FEATURES = 64  # that join the metadata


def _with_metadata(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Adds `config.model.metadata` and `metadata_dropout` to the settings of an image model."""

    def model(*, num_classes: int, metadata: bool = False, metadata_dropout: float = 0.0, **settings: Any) -> nn.Module:
        if not metadata:
            return make(num_classes=num_classes, **settings)
        return MetadataFusion(make(num_classes=IMAGE_FEATURES, **settings), num_classes, metadata_dropout)

    return model


MODELS: Mapping[str, Callable[..., nn.Module]] = {
    'cnn': _with_metadata(CNN),
    'cnn_lstm': _with_metadata(CNNLSTM),
    'efficientnet_lite0': _with_metadata(EfficientNetLite0),
}
