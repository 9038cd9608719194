"""Augmentation against SciPy and NumPy, closed forms, and itself on other batches and devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import ndimage, stats

from common.data.augment import affine, augment, example_keys, mix, resample, validate
from common.errors import UsageError

EVERYTHING = {
    'rotation': 180.0,
    'zoom': (0.7, 1.4),
    'shift': 0.2,
    'horizontal_flip': 0.5,
    'vertical_flip': 0.5,
    'contrast': (0.5, 1.5),
    'brightness': 0.2,
    'saturation': (0.5, 1.5),
    'hue': 30.0,
    'cutout': 0.3,
    'erasing': 0.5,
}
MIXES = [{'mixup': 0.4}, {'cutmix': 1.0}, {'mixup': 0.4, 'cutmix': 1.0}]


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth_images(*shape, seed=0):
    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = ndimage.gaussian_filter(noise, (0, 4, 4, 0), mode='mirror')
    return np.uint8(np.clip(128 + 40 * smooth / smooth.std(), 0, 255))


def keys_for(count, seed=0):
    return example_keys(jax.random.key(seed), jnp.arange(count))


def run(images, keys, config):
    return np.asarray(jax.jit(lambda images, keys: augment(images, keys, config))(images, keys))


def run_mix(inputs, labels, keys, config):
    mixed = jax.jit(lambda *arrays: mix(*arrays, config))(inputs, labels, keys)
    return [np.asarray(array) for array in mixed]


def transformed(images, degrees=0.0, zoom=1.0, shift=(0.0, 0.0), flip=(False, False)):
    ones = np.ones(len(images), np.float32)
    size, shifts, flips = images.shape[1:3], [s * ones for s in shift], [ones < 2 * f for f in flip]
    matrix = jax.jit(affine, static_argnums=0)(size, degrees * ones, zoom * ones, shifts, flips)
    return np.asarray(jax.jit(resample)(images, matrix))


def random_matrices(count, height, width, seed=0):
    generator = np.random.default_rng(seed)
    values = [
        np.float32(generator.uniform(low, high, count))
        for low, high in ((-180, 180), (0.6, 1.6), (-0.6, 0.6), (-0.6, 0.6))
    ]
    flips = generator.random((2, count)) < 0.5
    return np.asarray(jax.jit(affine, static_argnums=0)((height, width), *values[:2], values[2:], flips))


# --- geometry ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'config',
    [
        {},
        ConfigDict(),
        dict.fromkeys(EVERYTHING, 0),
        dict.fromkeys(EVERYTHING),
        {'zoom': (1.0, 1.0), 'contrast': [1, 1], 'saturation': (1, 1), 'mixup': 0.5},
    ],
)
def test_what_is_off_leaves_the_images_exactly(config):
    images = random_images(4, 9, 12, 3)
    result = run(images, keys_for(4), config)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, images)


def test_off_costs_nothing():
    program = jax.make_jaxpr(lambda images, keys: augment(images, keys, {'brightness': 0.1}))(
        random_images(2, 8, 8, 1), keys_for(2)
    )
    assert 'gather' not in str(program)
    assert 'reduce_sum' not in str(program)


@pytest.mark.parametrize('quarter', [0, 1, 2, 3, -1])
@pytest.mark.parametrize('size', [8, 9])
def test_quarter_turns_are_rot90(size, quarter):
    images = random_images(3, size, size, 3)
    expected = np.rot90(images, quarter, axes=(1, 2))
    np.testing.assert_array_equal(transformed(images, degrees=90.0 * quarter), expected)


def test_half_turn_of_an_oblong_image_is_rot180():
    images = random_images(3, 7, 10, 1)
    np.testing.assert_array_equal(transformed(images, degrees=180.0), np.rot90(images, 2, axes=(1, 2)))


def test_positive_shift_moves_the_content_down_and_right():
    images = random_images(2, 8, 20, 2)
    moved = transformed(images, shift=(0.25, 0.1))
    np.testing.assert_array_equal(moved[:, 2:, 2:], images[:, :-2, :-2])
    padded = np.pad(images, ((0, 0), (2, 0), (2, 0), (0, 0)), mode='reflect')
    np.testing.assert_array_equal(moved, padded[:, :8, :20])


def test_zoom_by_two_shows_the_middle_half():
    ramp = np.uint8(np.broadcast_to(np.arange(0, 64, 4)[:, None, None], (1, 16, 16, 1)))
    zoomed = transformed(ramp, zoom=2.0)[0, :, 0, 0]
    np.testing.assert_allclose(zoomed, 30 + (np.arange(16) - 7.5) * 2)


@pytest.mark.parametrize(('name', 'axis'), [('vertical_flip', 1), ('horizontal_flip', 2)])
@pytest.mark.parametrize('other', [{}, {'rotation': 1e-6}])
def test_flips_are_exact_with_and_without_resampling(name, axis, other):
    images = random_images(6, 8, 11, 3)
    always = run(images, keys_for(6), {name: 1.0, **other})
    np.testing.assert_array_equal(always, np.flip(images, axis))
    sometimes = run(images, keys_for(6), {name: 0.5, **other})
    flipped = (sometimes == np.flip(images, axis)).all((1, 2, 3))
    np.testing.assert_array_equal(flipped | (sometimes == images).all((1, 2, 3)), True)
    assert 0 < flipped.sum() < 6


@pytest.mark.parametrize(('height', 'width', 'channels'), [(16, 16, 1), (17, 30, 3), (31, 12, 2), (2, 3, 1)])
def test_resampling_is_scipys_at_coordinates_rounded_to_a_256th(height, width, channels):
    images = random_images(12, height, width, channels)
    matrices = random_matrices(12, height, width)
    result = np.asarray(jax.jit(resample)(images, matrices))
    grid = np.indices((height, width)).reshape(2, -1)
    for image, matrix, ours in zip(images, np.round(matrices * 65536.0), result, strict=True):
        places = matrix[:, :2] @ grid + matrix[:, 2:]
        places = np.floor(places / 256 + 0.5) / 256
        for channel in range(channels):
            scipys = ndimage.map_coordinates(np.float64(image[..., channel]), places, order=1, mode='mirror')
            np.testing.assert_allclose(ours[..., channel].ravel(), scipys, atol=1e-4)


def test_resampling_is_scipys_affine_transform():
    images = smooth_images(12, 40, 52, 1)
    matrices = random_matrices(12, 40, 52, seed=1)
    result = np.asarray(jax.jit(resample)(images, matrices))
    for image, matrix, ours in zip(images, np.float64(matrices), result, strict=True):
        scipys = ndimage.affine_transform(
            np.float64(image[..., 0]), matrix[:, :2], matrix[:, 2], order=1, mode='mirror'
        )
        np.testing.assert_allclose(ours[..., 0], scipys, atol=0.3)
        assert np.abs(ours[..., 0] - scipys).mean() < 0.03


def test_without_rotation_resampling_is_a_product_of_two_interpolation_matrices():
    images = smooth_images(1, 24, 36, 3)
    (matrix,) = matrices = np.asarray(
        affine(
            (24, 36),
            *np.float32([[0], [1.3]]),
            np.float32([[0.1], [-0.2]]),
            np.array([[False], [True]]),
        )
    )
    sides = []
    for axis, length in ((0, 24), (1, 36)):
        places = matrix[axis, axis] * np.arange(length) + matrix[axis, 2]
        places = np.abs((places + length - 1) % (2 * length - 2) - length + 1)
        sides.append(np.maximum(0, 1 - np.abs(places[:, None] - np.arange(length))))
    expected = np.einsum('ij,jkc,lk->ilc', sides[0], np.float64(images[0]), sides[1])
    np.testing.assert_allclose(np.asarray(jax.jit(resample)(images, matrices))[0], expected, atol=0.3)


# --- rectangles, contrast, brightness ---------------------------------------------------------------------


def test_contrast_and_brightness_are_affine_in_the_pixel_within_their_ranges():
    images = np.uint8(100 + random_images(200, 6, 7, 3) % 56)  # so that nothing is clipped
    config = {'contrast': (0.6, 1.4), 'brightness': 0.15}
    centred = images - images.mean((1, 2), keepdims=True)
    added = run(images, keys_for(200), config).mean((1, 2)) - images.mean((1, 2))
    np.testing.assert_allclose(added, added[:, :1] * np.ones(3), atol=1e-3)  # the same for every channel
    assert np.abs(added).max() <= 255 * 0.15 + 1e-3
    result = run(images, keys_for(200), config) - images.mean((1, 2), keepdims=True) - added[:, None, None]
    factor = (result * centred).sum((1, 2, 3)) / (centred**2).sum((1, 2, 3))
    np.testing.assert_allclose(result, factor[:, None, None, None] * centred, atol=1e-3)
    for values, low, high in ((added[:, 0], -255 * 0.15, 255 * 0.15), (factor, 0.6, 1.4)):
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_saturation_and_hue_scale_and_turn_colours_about_grey_within_their_ranges():
    images = np.uint8(110 + random_images(300, 5, 6, 3) % 36)  # so that nothing is clipped
    images[:, 0] = images[:, 0, :, :1]  # a row of greys
    result = run(images, keys_for(300), {'saturation': (0.4, 1.6), 'hue': 40.0})
    np.testing.assert_allclose(result[:, 0], images[:, 0], atol=0.02)
    luma = np.array([0.299, 0.587, 0.114])  # of ITU-R BT.601
    np.testing.assert_allclose(result @ luma, images @ luma, atol=0.02)
    # The axes of colour of YIQ as a complex number: 33 degrees from the differences blue - luma and red - luma.
    before, after = (
        np.exp(1j * np.deg2rad(33)) * (0.493 * (x[..., 2] - x @ luma) + 1j * 0.877 * (x[..., 0] - x @ luma))
        for x in (np.float64(images[:, 1:]), np.float64(result[:, 1:]))
    )
    ratio = (after * before.conj()).sum((1, 2)) / (np.abs(before) ** 2).sum((1, 2))
    np.testing.assert_allclose(after, ratio[:, None, None] * before, atol=0.1)
    for values, low, high in ((np.abs(ratio), 0.4, 1.6), (-np.rad2deg(np.angle(ratio)), -40, 40)):
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_colour_of_grey_images_is_refused():
    with pytest.raises(UsageError, match='saturation and hue are for colour; the images have 1 channel'):
        run(random_images(2, 4, 4, 1), keys_for(2), {'hue': 10.0})


def test_the_result_stays_within_0_and_255():
    images = random_images(64, 8, 8, 1)
    result = run(images, keys_for(64), {'contrast': (0.0, 10.0), 'brightness': 1.0})
    assert result.min() == 0
    assert result.max() == 255


def test_cutout_fills_a_rectangle_of_the_stated_size_with_the_mean():
    images = np.uint8(random_images(300, 20, 30, 3) // 2 * 2)
    images[:, 0, 0] ^= 1  # the mean of a channel is no pixel's value
    result = run(images, keys_for(300), {'cutout': 0.4})
    changed = (result != images).any(-1)
    assert (changed.sum((1, 2)) == 8 * 12).all()
    assert (changed.any(2).sum(1) == 8).all()
    assert (changed.any(1).sum(1) == 12).all()
    means = np.broadcast_to(images.mean((1, 2), keepdims=True), images.shape)
    np.testing.assert_allclose(result[changed], means[changed], rtol=1e-6)
    tops, lefts = changed.any(2).argmax(1), changed.any(1).argmax(1)
    assert (set(tops), set(lefts)) == (set(range(13)), set(range(19)))


def test_erasing_takes_rectangles_of_the_papers_areas_at_the_stated_rate():
    images = random_images(2000, 32, 32, 1) | 1
    images[:, 0, 0] = 0
    changed = (run(images, keys_for(2000), {'erasing': 0.3}) != images)[..., 0]
    height, width = changed.any(2).sum(1), changed.any(1).sum(1)
    np.testing.assert_array_equal(changed.sum((1, 2)), height * width)
    erased = height > 0
    assert erased.mean() == pytest.approx(0.3, abs=0.04)
    area, aspect = (height * width)[erased] / 1024, height[erased] / width[erased]
    assert 0.015 < area.min() < 0.05
    assert 0.35 < area.max() < 0.42
    assert np.median(aspect) == pytest.approx(1, abs=0.15)
    assert 0.2 < aspect.min() < 0.4
    assert 2.5 < aspect.max() < 5


# --- randomness -------------------------------------------------------------------------------------------


def test_parameters_are_uniform_over_their_whole_range():
    """Read off linear ramps: under an affine map their middle keeps value and slope."""
    count, size = 1500, 64
    ramp = np.uint8(np.arange(size) * 3 + 20)
    rows = np.broadcast_to(ramp[:, None, None], (count, size, size, 1))
    middle = slice(size // 2 - 2, size // 2 + 2)

    def slope(images, axis):
        return np.diff(images[:, middle, middle, 0], axis=axis).mean((1, 2)) / 3

    turned = run(rows, keys_for(count), {'rotation': 40.0})
    degrees = np.rad2deg(np.arctan2(slope(turned, 2), slope(turned, 1)))
    zooms = 1 / slope(run(rows, keys_for(count), {'zoom': (0.8, 1.5)}), 1)
    both = np.concatenate([rows, rows.swapaxes(1, 2)], axis=-1)  # one channel for each axis
    moved = run(both, keys_for(count), {'shift': 0.25})[:, middle, middle].mean((1, 2))
    down, right = ((rows[0, middle].mean() - moved) / 3 / size).T
    assert abs(np.corrcoef(down, right)[0, 1]) < 0.1
    ranges = ((degrees, -40, 40), (zooms, 0.8, 1.5), (down, -0.25, 0.25), (right, -0.25, 0.25))
    for values, low, high in ranges:
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.04 * (high - low))
        assert values.min() == pytest.approx(low, abs=0.02 * (high - low))
        assert values.max() == pytest.approx(high, abs=0.02 * (high - low))
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_turning_one_operation_on_leaves_the_others_draws_alone():
    images = random_images(8, 12, 12, 3)
    shifted = run(images, keys_for(8), {'shift': 0.3})
    both = run(images, keys_for(8), {'shift': 0.3, 'cutout': 0.25})
    assert ((both == shifted).all(-1).sum((1, 2)) >= 144 - 9).all()


@pytest.mark.parametrize('parts', [2, 4, 24])
def test_an_example_does_not_depend_on_its_batch(parts):
    images, keys = random_images(24, 33, 40, 3), keys_for(24)
    pieces = [run(*piece, EVERYTHING) for piece in zip(np.split(images, parts), jnp.split(keys, parts), strict=True)]
    np.testing.assert_array_equal(np.concatenate(pieces), run(images, keys, EVERYTHING))
    order = np.random.default_rng(0).permutation(24)
    np.testing.assert_array_equal(run(images[order], keys[order], EVERYTHING), np.concatenate(pieces)[order])


def test_four_devices_give_what_one_gives():
    images, labels = random_images(16, 21, 18, 3), np.eye(5, dtype=np.float32)[np.arange(16) % 5]

    def step(key, images, labels, positions):
        keys = example_keys(key, positions)
        return mix(augment(images, keys, EVERYTHING), labels, keys, MIXES[-1])

    positions, key = np.arange(16, dtype=np.int32), jax.random.key(7)
    one = jax.jit(step)(key, images, labels, positions)
    shards = [array.reshape(4, 4, *array.shape[1:]) for array in (images, labels, positions)]
    four = jax.pmap(step, axis_name='data', in_axes=(None, 0, 0, 0))(key, *shards)
    for whole, split in zip(one, four, strict=True):
        np.testing.assert_array_equal(np.asarray(split).reshape(whole.shape), whole)


def test_keys_are_those_of_fold_in_and_differ_by_position():
    keys = example_keys(jax.random.key(3), jnp.array([5, 0, 9], jnp.int32))
    for key, position in zip(keys, (5, 0, 9), strict=True):
        assert key == jax.random.fold_in(jax.random.key(3), position)
    images = np.repeat(random_images(1, 16, 16, 3), 8, axis=0)
    assert len(np.unique(run(images, keys_for(8), EVERYTHING), axis=0)) == 8


# --- mixing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('mixing', MIXES)
def test_mixed_inputs_and_labels_hold_the_same_share_of_the_partner(mixing):
    """Even positions are zeros of class 0 and odd ones are ones of class 1: the mean is the share of class 1."""
    inputs = np.broadcast_to(np.float32([0, 1] * 200)[:, None, None, None], (400, 12, 10, 2))
    labels = np.eye(3, dtype=np.float32)[[0, 1] * 200]
    mixed, mixed_labels = run_mix(inputs, labels, keys_for(400), mixing)
    np.testing.assert_allclose(mixed_labels.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(mixed.mean((1, 2, 3)), mixed_labels[:, 1], atol=1e-5)
    assert (mixed_labels >= 0).all()
    blended = ((mixed > 0) & (mixed < 1)).any((1, 2, 3)).mean()
    assert {('mixup',): blended > 0.8, ('cutmix',): blended == 0}.get(tuple(mixing), 0.3 < blended < 0.6)


def test_lambda_follows_beta():
    labels = np.eye(2, dtype=np.float32)[[0, 1] * 1000]
    inputs = np.zeros((2000, 1), np.float32)
    _, mixed_labels = run_mix(inputs, labels, keys_for(2000), {'mixup': 0.4})
    own = (mixed_labels * labels).sum(1)
    assert stats.kstest(own, stats.beta(0.4, 0.4).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(own[::2], own[1::2])[0, 1]) < 0.1  # each member of a pair draws for itself


def test_mixing_draws_other_numbers_than_augmentation():
    labels = np.eye(2, dtype=np.float32)[[0, 1] * 1000]
    _, mixed_labels = run_mix(np.zeros((2000, 1), np.float32), labels, keys_for(2000), {'mixup': 1.0})
    ramp = np.broadcast_to(np.arange(0, 256, 8, dtype=np.uint8)[:, None], (2000, 4, 32, 1))
    zoomed = run(ramp, keys_for(2000), {'zoom': (1.0, 2.0)})
    slopes = zoomed[:, 2, 20, 0] - zoomed[:, 2, 10, 0]
    assert abs(np.corrcoef((mixed_labels * labels).sum(1), slopes)[0, 1]) < 0.1


def test_the_partner_is_the_neighbour_within_the_pair():
    inputs = np.float32(2.0 ** np.arange(8))[:, None]
    labels = np.eye(8, dtype=np.float32)
    mixed, mixed_labels = run_mix(inputs, labels, keys_for(8), {'mixup': 1.0})
    own = mixed_labels[np.arange(8), np.arange(8)]
    np.testing.assert_allclose(mixed_labels[np.arange(8), np.arange(8) ^ 1], 1 - own, atol=1e-6)
    np.testing.assert_allclose(mixed, mixed_labels @ inputs, rtol=1e-5)


def test_mixing_that_is_off_returns_its_inputs_and_odd_batches_are_refused():
    inputs, labels = np.zeros((3, 2), np.float32), np.ones((3, 1), np.float32)
    assert mix(inputs, labels, keys_for(3), {'rotation': 5})[0] is inputs
    with pytest.raises(UsageError, match=r'augment\.mixup .* even'):
        mix(inputs, labels, keys_for(3), {'mixup': 0.2})


# --- validation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('rotation', -5),
        ('rotation', 181),
        ('rotation', float('nan')),
        ('rotation', (-10, 10)),
        ('horizontal_flip', 1.5),
        ('vertical_flip', True),
        ('rotation', [10]),
        ('zoom', 1.2),
        ('zoom', [0]),
        ('zoom', (1.2, 0.8)),
        ('zoom', (0.0, 1.0)),
        ('zoom', (0.5, 1.0, 2.0)),
        ('contrast', (-0.1, 1.0)),
        ('saturation', 1.5),
        ('hue', 200),
        ('shift', 'much'),
        ('mixup', float('inf')),
        ('cutmix', -1.0),
        ('rotate', 5),
    ],
)
def test_nonsense_is_refused_by_name(name, value):
    with pytest.raises(UsageError, match=rf'config\.augment\.{name} is'):
        validate({'brightness': 0.1, name: value})


def test_sense_is_accepted():
    for mixing in MIXES:
        validate(ConfigDict(EVERYTHING | mixing))
    validate({'rotation': 0, 'zoom': None, 'contrast': [1, 1], 'shift': 1})


def test_programs_for_accelerators_hold_no_barrier():
    images, keys = random_images(2, 6, 8, 3), keys_for(2)
    step = jax.jit(lambda images, keys: augment(images, keys, EVERYTHING))
    lowered = step.trace(images, keys).lower(lowering_platforms=('cuda',))
    assert 'optimization_barrier' not in lowered.as_text()
