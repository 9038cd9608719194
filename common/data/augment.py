"""Random augmentation of image batches on the device, a pure function of each example and its own key.

`config` is one mapping (`config.augment`). A key that is absent, None or zero is off, and costs nothing:

  rotation         degrees, 0..180; the angle is uniform in +-rotation
  zoom             (low, high), each 0.1..10; above 1 the content grows; (1, 1) is off
  shift            fraction of height and of width, 0..1; each axis is uniform in +-shift
  horizontal_flip  probability of mirroring left and right
  vertical_flip    probability of mirroring top and bottom
  contrast         (low, high) factor about the image's mean, each 0..10; (1, 1) is off
  brightness       fraction of the full range, 0..1; what is added is uniform in +-255 * brightness
  saturation       (low, high) factor of what sets a colour apart from grey, each 0..10; (1, 1) is off
  hue              degrees, 0..180; colours turn about grey by an angle uniform in +-hue
  cutout           side of a rectangle that takes the image's mean, as a fraction of height and of width
  erasing          probability that a rectangle of random area and aspect takes the image's mean
  mixup, cutmix    alpha of Beta(alpha, alpha), for `mix`; with both, each example takes one or the other
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import betaincinv

from common.errors import UsageError
from common.runtime import cpu_barrier
from common.types import Array, Images, Keys

_LIMITS = {
    **dict.fromkeys(('horizontal_flip', 'vertical_flip', 'shift', 'brightness', 'cutout', 'erasing'), (0, 1)),
    'rotation': (0, 180),
    'zoom': (0.1, 10),
    'contrast': (0, 10),
    'saturation': (0, 10),
    'hue': (0, 180),
    'mixup': (0, math.inf),
    'cutmix': (0, math.inf),
}
_PAIRS = ('zoom', 'contrast', 'saturation')

# Every random number has a place of its own, so that turning one operation on leaves the others as they were.
_DRAWS = (
    *('rotation', 'zoom', 'shift_y', 'shift_x', 'horizontal_flip', 'vertical_flip', 'brightness', 'contrast'),
    *('cutout_y', 'cutout_x', 'erasing', 'erasing_area', 'erasing_aspect', 'erasing_y', 'erasing_x'),
    *('saturation', 'hue'),
)
_ERASED_AREA = (0.02, 0.4)  # of the image; these two as in Zhong et al. 2017 (arXiv:1708.04896)
_ERASED_ASPECT = (0.3, 1 / 0.3)  # height / width
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])  # FCC 1953
_RGB = np.linalg.inv(_YIQ)
# Matrices from colours to colours: their luma, what else they have, and that turned by a right angle.
_LUMA = np.float32(np.outer(_RGB[:, 0], _YIQ[0]))
_COLOUR = np.float32(_RGB[:, 1:] @ _YIQ[1:])
_TURN = np.float32(np.outer(_RGB[:, 2], _YIQ[1]) - np.outer(_RGB[:, 1], _YIQ[2]))


def validate(config: Mapping[str, Any]) -> None:
    """Raises UsageError, naming the key, where `config` asks for something that makes no sense."""
    for name, value in config.items():
        if name not in _LIMITS:
            raise UsageError(f'config.augment.{name} is unknown; choose from {", ".join(sorted(_LIMITS))}')
        low, high = _LIMITS[name]
        count = len(value) if isinstance(value, list | tuple) else 0
        values = list(value) if count else [value]
        numbers = all(isinstance(part, int | float) and not isinstance(part, bool) for part in values)
        if value is None or (numbers and value == 0):
            continue
        fits = numbers and all(low <= part <= high and part < math.inf for part in values)
        if not fits or count != 2 * (name in _PAIRS) or values != sorted(values):
            wanted = 'a pair (low, high) of numbers' if name in _PAIRS else 'a number'
            raise UsageError(f'config.augment.{name} is {value!r}; it must be {wanted} in {low}..{high}')


def example_keys(key: Array, positions: Array) -> Keys:
    """One key per example, [batch]; `positions` int32 [batch] are places in the *global* batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, positions)


def augment(images: Images, keys: Keys, config: Mapping[str, Any]) -> jax.Array:
    """Augments uint8 [batch, height, width, channels] into float32 of the same shape, in 0..255.

    An example's result depends on its pixels, its key and `config` alone, bit for bit: not on the batch or
    the device it is in. Geometry comes first, in a single resampling; then rectangles, contrast,
    brightness, colour.
    Images are at least 2 pixels a side, and at most 1500 (what the fixed-point coordinates can reach).
    """
    draws = _draws(keys, _DRAWS, stream=0)
    height, width = images.shape[1:3]
    pixels = _geometry(images, draws, config)
    if any(_is_on(config, name) for name in ('cutout', 'erasing', 'contrast')):
        # An integer sum is exact in any order, so that the mean cannot depend on how it is split up.
        mean = jnp.sum(images, (1, 2), dtype=jnp.int32)[:, None, None] / jnp.float32(height * width)
    if _is_on(config, 'cutout'):  # DeVries and Taylor 2017, arXiv:1708.04552; here always inside the image
        sides = [jnp.round(config['cutout'] * size) for size in (height, width)]
        hole = _rectangle(images.shape, sides, [draws['cutout_y'], draws['cutout_x']])
        pixels = jnp.where(hole, mean, pixels)
    if _is_on(config, 'erasing'):
        area = _between(_ERASED_AREA, draws['erasing_area']) * height * width
        aspect = jnp.exp(_between([math.log(bound) for bound in _ERASED_ASPECT], draws['erasing_aspect']))
        sides = [jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))]
        hole = _rectangle(images.shape, sides, [draws['erasing_y'], draws['erasing_x']])
        chosen = draws['erasing'] < config['erasing']
        pixels = jnp.where(hole & chosen[:, None, None, None], mean, pixels)
    if _is_on(config, 'contrast'):
        factor = _between(config['contrast'], draws['contrast'])[:, None, None, None]
        pixels = mean + (pixels - mean) * factor
    if _is_on(config, 'brightness'):
        pixels = pixels + 255 * _within(config['brightness'], draws['brightness'])[:, None, None, None]
    if any(_is_on(config, name) for name in ('saturation', 'hue')):
        factor = _between(config.get('saturation') or (1, 1), draws['saturation'])
        pixels = _recoloured(pixels, factor, _within(config.get('hue') or 0, draws['hue']))
    return jnp.clip(pixels, 0, 255)


def affine(
    size: Sequence[int], degrees: Array, zoom: Array, shift: Sequence[Array], flip: Sequence[Array]
) -> jax.Array:
    """float32 [batch, 2, 3], taking (row, column, 1) of the result to the (row, column) of the source.

    The content is flipped, turned anticlockwise by `degrees` and zoomed, all about the image's centre, and
    then shifted down and right by `shift` (fractions). All arguments but `size` (height, width) are [batch];
    `shift` and `flip` (bool) are for rows and columns.
    """
    radians = jnp.deg2rad(degrees)
    cosine, sine = jnp.cos(radians) / zoom, jnp.sin(radians) / zoom
    vertical, horizontal = (jnp.where(flipped, -1.0, 1.0) for flipped in flip)
    turn = [[vertical * cosine, vertical * sine], [-horizontal * sine, horizontal * cosine]]
    centre = [(length - 1) / 2 for length in size]
    moved = [middle + part * length for middle, part, length in zip(centre, shift, size, strict=True)]
    rows = [[a, b, middle - (a * moved[0] + b * moved[1])] for (a, b), middle in zip(turn, centre, strict=True)]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=1)


def resample(images: Images, matrix: Array) -> jax.Array:
    """Bilinear resampling of uint8 [batch, height, width, channels] at `matrix` (see `affine`); float32.

    Beyond its borders an image is mirrored about the centre of its outermost pixels (scipy's 'mirror',
    OpenCV's REFLECT_101). Coordinates are integers in 1/256 pixel, so that a pixel times its weights has at
    most 24 bits and every step is exact in float32: no device or batch size changes a bit. With coordinates
    in floating point, XLA may compute one twice, with and without fused multiply-add, and where it lies on
    a pixel pair the neighbours of that pixel with the weights of the one before.
    """
    batch, height, width, channels = images.shape
    lines = jnp.round(matrix * 65536).astype(jnp.int32)[..., None, None]
    row, column = jnp.arange(height)[:, None], jnp.arange(width)
    y, x = (lines[:, i, 0] * row + lines[:, i, 1] * column + lines[:, i, 2] + 128 >> 8 for i in (0, 1))
    y, y_weight = _mirror(y, height)
    x, x_weight = _mirror(x, width)
    # The four neighbours of a pixel travel as one 32-bit word: one gather instead of four.
    wide = images.astype(jnp.uint32)
    upper = wide[:, :-1, :-1] | wide[:, :-1, 1:] << 8
    words = upper | wide[:, 1:, :-1] << 16 | wide[:, 1:, 1:] << 24
    place = (jnp.arange(batch)[:, None, None] * (height - 1) + y) * (width - 1) + x
    # Without the three barriers XLA for CPU packs, unpacks and masks inside the gather: 1.4 to 2 times slower.
    words, place = cpu_barrier((words, place))
    found = words.reshape(-1, channels).at[place].get(mode='promise_in_bounds')
    found = cpu_barrier(found)
    corners = [(found >> bits & 255).astype(jnp.float32) for bits in (0, 8, 16, 24)]
    top = corners[0] + (corners[1] - corners[0]) * x_weight
    bottom = corners[2] + (corners[3] - corners[2]) * x_weight
    return cpu_barrier(top + (bottom - top) * y_weight)


def mix(inputs: Array, soft_labels: Array, keys: Keys, config: Mapping[str, Any]) -> tuple[Array, Array]:
    """MixUp (arXiv:1710.09412) and CutMix (arXiv:1905.04899) of each example with its neighbour in a pair.

    The partner of position p is p ^ 1, on the same device where the batch per device is even. Each member of
    a pair draws its own lambda (and rectangle) from its own key, so that a result depends on its pair and its
    key alone, on any number of devices. `keys` may be those given to `augment`.

    Args:
      inputs: float [batch, height, width, channels]; for MixUp alone, any [batch, ...].
      soft_labels: float32 [batch, classes], rows that sum to one.
      keys: [batch].
      config: see the module; only `mixup` and `cutmix` are read.

    Raises:
      UsageError: if the batch is odd.
    """
    methods = [name for name in ('mixup', 'cutmix') if _is_on(config, name)]
    if not methods:
        return inputs, soft_labels
    if len(inputs) % 2:
        raise UsageError(f'config.augment.{methods[0]} mixes pairs: make the batch per device even')
    partners, partner_labels = _swap_pairs(inputs), _swap_pairs(soft_labels)
    draws = _draws(keys, ('cutmix', 'lambda', 'y', 'x'), stream=1)
    cut = draws['cutmix'] < ('cutmix' in methods) / len(methods)
    lambdas = {name: _beta(config[name], draws['lambda']) for name in methods}
    mixed, weight = inputs, jnp.zeros(len(inputs))
    if 'mixup' in methods:
        weight = lambdas['mixup']
        own = weight.reshape(-1, *[1] * (inputs.ndim - 1))
        mixed = own * inputs + (1 - own) * partners
    if 'cutmix' in methods:
        height, width = inputs.shape[1:3]
        sides = [jnp.round(size * jnp.sqrt(1 - lambdas['cutmix'])) for size in (height, width)]
        hole = _rectangle(inputs.shape, sides, [draws['y'], draws['x']])
        mixed = jnp.where(cut[:, None, None, None], jnp.where(hole, partners, inputs), mixed)
        kept = height * width - sides[0] * sides[1]  # exact, so that the share is never below zero
        weight = jnp.where(cut, kept / (height * width), weight)
    return mixed, weight[:, None] * soft_labels + (1 - weight[:, None]) * partner_labels


def _geometry(images: Images, draws: Mapping[str, jax.Array], config: Mapping[str, Any]) -> jax.Array:
    """Flips, rotation, zoom and shift of uint8 `images`, as float32; without a gather where flips suffice."""
    flip = [draws[name] < (config.get(name) or 0) for name in ('vertical_flip', 'horizontal_flip')]
    if any(_is_on(config, name) for name in ('rotation', 'zoom', 'shift')):
        degrees = _within(config.get('rotation') or 0, draws['rotation'])
        zoom = _between(config.get('zoom') or (1, 1), draws['zoom'])
        shift = [_within(config.get('shift') or 0, draws[name]) for name in ('shift_y', 'shift_x')]
        return resample(images, affine(images.shape[1:3], degrees, zoom, shift, flip))
    for axis, name, flipped in ((1, 'vertical_flip', flip[0]), (2, 'horizontal_flip', flip[1])):
        if _is_on(config, name):
            images = jnp.where(flipped[:, None, None, None], jnp.flip(images, axis), images)
    return jnp.astype(images, jnp.float32)


def _recoloured(pixels: jax.Array, factor: jax.Array, degrees: jax.Array) -> jax.Array:
    """Float [batch, height, width, 3] with colours `factor` as strong and turned by `degrees`, of the same luma."""
    if pixels.shape[-1] != 3:
        raise UsageError(
            f'config.augment: saturation and hue are for colour; the images have {pixels.shape[-1]} channel'
        )
    radians = jnp.deg2rad(degrees)
    cosine, sine = (factor * turn(radians) for turn in (jnp.cos, jnp.sin))
    matrix = _LUMA + cosine[:, None, None] * _COLOUR + sine[:, None, None] * _TURN
    red, green, blue = (matrix[:, None, None, :, c] * pixels[..., c, None] for c in range(3))
    return red + green + blue


def _mirror(coordinate: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """Splits coordinates in 1/256 pixel into the lower neighbour, 0..length-2, and the upper one's weight."""
    last = (length - 1) * 256
    # Where the division rounds the wrong way, the two answers are mirror images of each other beside `last`.
    turns = jnp.round(coordinate / (2 * last)).astype(jnp.int32)
    inside = jnp.minimum(jnp.abs(coordinate - turns * (2 * last)), last)
    lower = jnp.minimum(inside >> 8, length - 2)
    return lower, ((inside - (lower << 8)).astype(jnp.float32) / 256)[..., None]


def _rectangle(shape: Sequence[int], sides: Sequence[Array], draws: Sequence[Array]) -> jax.Array:
    """bool [batch, height, width, 1]: a rectangle of whole pixels, placed uniformly and wholly inside.

    `sides` (height, width) are whole numbers; those that are too long are cut to the image.
    """
    inside = []
    for length, side, draw in zip(shape[1:3], sides, draws, strict=True):
        first = jnp.floor(draw * (length + 1 - jnp.minimum(side, length)))[:, None]
        place = jnp.arange(length)
        inside.append((place >= first) & (place < first + jnp.reshape(side, (-1, 1))))
    return (inside[0][:, :, None] & inside[1][:, None, :])[..., None]


def _draws(keys: Keys, names: Sequence[str], stream: int) -> dict[str, jax.Array]:
    """Independent uniform numbers in [0, 1), each [batch]; so is another `stream` of the keys."""
    uniform = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, stream), (len(names),)))
    return dict(zip(names, uniform(keys).T, strict=True))


def _beta(alpha: float, draw: jax.Array) -> jax.Array:
    """Turns uniform draws into draws of Beta(alpha, alpha), without the loops of rejection sampling."""
    quantiles = jnp.asarray(betaincinv(alpha, alpha, np.linspace(0, 1, 1025)), jnp.float32)
    place = draw * 1024
    lower = place.astype(jnp.int32)
    return quantiles[lower] + (quantiles[lower + 1] - quantiles[lower]) * (place - lower)


def _within(limit: float, draw: jax.Array) -> jax.Array:
    return _between((-limit, limit), draw)


def _between(bounds: Sequence[float], draw: jax.Array) -> jax.Array:
    return bounds[0] + (bounds[1] - bounds[0]) * draw


def _swap_pairs(rows: Array) -> Array:
    return rows.reshape(-1, 2, *rows.shape[1:])[:, ::-1].reshape(rows.shape)


def _is_on(config: Mapping[str, Any], name: str) -> bool:
    value: Any = config.get(name)
    return bool(value) and not (name in _PAIRS and tuple(value) == (1, 1))
