"""Which way each convolution of a model takes on the CPU: noted while the model is traced, and settled beforehand.

The way is a pure function of shapes, dtype and processor (`common.nn.conv.choose`). A run keeps it in its record, and
a way whose numbers are found wrong on the machine at hand is settled to be XLA's own.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple


class Layer(NamedTuple):
    """A convolution for which there is a choice: SAME padding, `[batch, height, width, channels]`."""

    x_shape: tuple[int, ...]
    w_shape: tuple[int, ...]
    dtype: str
    stride: int = 1

    @property
    def groups(self) -> int:
        """1, or for a depthwise convolution the number of channels."""
        return self.x_shape[-1] // self.w_shape[2]

    def __str__(self) -> str:
        by = f' / {self.stride}' if self.stride > 1 else ''
        return f'{"x".join(map(str, self.x_shape))} * {"x".join(map(str, self.w_shape))}{by} {self.dtype}'


_recording: contextvars.ContextVar[dict[Layer, str] | None] = contextvars.ContextVar('recording', default=None)
_settled: dict[str, str] = {}


@contextlib.contextmanager
def recorded() -> Iterator[Mapping[Layer, str]]:
    """Notes every layer that is traced meanwhile under the path 'auto', and the way that it takes."""
    layers: dict[Layer, str] = {}
    token = _recording.set(layers)
    try:
        yield layers
    finally:
        _recording.reset(token)


def settle(ways: Mapping[str, str]) -> None:
    """From now on, in this process, each layer (as a string) takes its way under the path 'auto'."""
    _settled.update(ways)


def way_of(layer: Layer, choose: Callable[[], str]) -> str:
    """The way settled for the layer, or else what `choose` says; noted where it is being recorded."""
    way = _settled.get(str(layer)) or choose()
    layers = _recording.get()
    if layers is not None:
        layers[layer] = way
    return way
