"""Names for the arrays that flow through the toolkit; the shape of each stands beside its name."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

type Array = jax.Array | np.ndarray
type Images = Array  # uint8 [batch, height, width, channels]
type Logits = Array  # float32 [batch, num_classes]
type Keys = Array  # one PRNG key per example, [batch]
type Tree = Any  # a pytree of arrays

# One batch: every leaf has the same leading axis, one row per example. `index` (int32, the row in the
# split) and `mask` (float32, 0 for padding) are always there; `columns` of the split make up the rest, and what
# `Task.preprocess` adds: `inputs`, an array or a tree of arrays, as the model takes it.
type Batch = Mapping[str, Tree]

# What a model said, gathered on the host: every leaf is [examples, ...], in the split's own order.
type Predictions = Mapping[str, np.ndarray]
