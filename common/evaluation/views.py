"""Test-time augmentation: the views of an image over which a classifier's probabilities are averaged."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from common.types import Images

CROP = 5 / 6  # side of a crop of ten, as a fraction; 40 of 48 pixels in Khaireddin and Chen 2021, arXiv:2105.03588


def flip(images: Images) -> list[jax.Array]:
    """The image and its mirror image. Images are uint8 [batch, height, width, channels], here and below."""
    return [jnp.asarray(images), jnp.flip(images, axis=2)]


def ten_crop(images: Images) -> list[jax.Array]:
    """Four corners, the centre, and their mirror images, each enlarged to the size of the whole; float32.

    As in Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural networks".
    """
    batch, height, width, channels = images.shape
    crop_height, crop_width = round(height * CROP), round(width * CROP)
    bottom, right = height - crop_height, width - crop_width
    places = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    crops = [images[:, y : y + crop_height, x : x + crop_width].astype(jnp.float32) for y, x in places]
    enlarged = [jax.image.resize(crop, (batch, height, width, channels), 'bilinear') for crop in crops]
    return [view for crop in enlarged for view in flip(crop)]


def dihedral(images: Images) -> list[jax.Array]:
    """Both flips and, of square images, all quarter turns; for what has no upright, such as lesions: 8 views or 4."""
    turns = range(4) if images.shape[1] == images.shape[2] else (0, 2)
    return [view for turn in turns for view in flip(jnp.rot90(images, turn, axes=(1, 2)))]


VIEWS: Mapping[str, Callable[[Images], list[jax.Array]]] = {'flip': flip, 'ten_crop': ten_crop, 'dihedral': dihedral}
