"""Decoding: every kind of image becomes the same kind of array, bad files are named, the cache changes nothing."""

import errno
import io
import os

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from common.data.images import Decoding, decode_image, decoded_split
from common.errors import DataError, UsageError

HEIGHT, WIDTH = 24, 32


def decoding(resize: str = 'stretch', channels: int = 3, height: int = HEIGHT, width: int = WIDTH) -> Decoding:
    return Decoding(height=height, width=width, resize=resize, channels=channels)


def picture(height: int = 120, width: int = 160) -> np.ndarray:
    """Smooth colours, different in every corner: uint8 [height, width, 3]."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return (np.stack([x, y, 0.5 + 0.5 * np.sin(6 * x * y)], -1) * 255).astype(np.uint8)


def encode(image: Image.Image | np.ndarray, kind: str = 'PNG', **options) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


def test_reduction_is_an_area_average_as_by_brute_force():
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT * 8, WIDTH * 8, 3), dtype=np.uint8)
    blocks = noise.reshape(HEIGHT, 8, WIDTH, 8, 3).mean((1, 3))
    decoded = decode_image(encode(noise), decoding(), 'noise')
    assert decoded.shape == (HEIGHT, WIDTH, 3)
    assert decoded.dtype == np.uint8
    # Sampling without antialiasing would be about 60 levels away.
    assert difference(decoded, blocks) < 8


@pytest.mark.parametrize('scale', [2, 4, 8, 20])
def test_reduced_jpeg_decoding_stays_faithful(scale):
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    texture = Image.fromarray(noise).resize((WIDTH * scale, HEIGHT * scale), Image.Resampling.BICUBIC)
    jpeg = encode(texture, 'JPEG', quality=95)
    full = Image.open(io.BytesIO(jpeg)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    # The worst case, detail as fine as the final pixels; leaving less than twice the size would be 6 to 20 away.
    assert difference(decode_image(jpeg, decoding(), 'x.jpg'), np.asarray(full)) < 5


def test_reduced_jpeg_decoding_stays_faithful_to_images_that_lie_on_their_side():
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 3), dtype=np.uint8)
    upright = Image.fromarray(noise).resize((128, 512), Image.Resampling.BICUBIC)  # twice the final width
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg = encode(upright.transpose(Image.Transpose.ROTATE_90), 'JPEG', quality=95, exif=exif)
    full = Image.open(io.BytesIO(jpeg)).transpose(Image.Transpose.ROTATE_270).resize((64, 8), Image.Resampling.BICUBIC)
    assert difference(decode_image(jpeg, decoding(height=8, width=64), 'x.jpg'), np.asarray(full)) < 5


@pytest.mark.parametrize(
    ('mode', 'kind'),
    [('RGB', 'PNG'), ('RGB', 'JPEG'), ('RGBA', 'PNG'), ('CMYK', 'JPEG'), ('P', 'PNG'), ('L', 'PNG'), ('LA', 'PNG')],
)
def test_every_mode_becomes_rgb_or_grey(mode, kind):
    image = Image.fromarray(picture())
    grey = np.asarray(image.convert('L').resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    colour = np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    converted = image.quantize(256) if mode == 'P' else image.convert(mode)
    encoded = encode(converted, kind)
    assert difference(decode_image(encoded, decoding(channels=1), 'x')[..., 0], grey) < 4
    expected = grey[..., None] if mode in ('L', 'LA') else colour
    assert difference(decode_image(encoded, decoding(), 'x'), expected) < 8


def test_transparency_is_dropped_whatever_it_hides():
    opacity = np.linspace(0, 255, 120 * 160).reshape(120, 160, 1).astype(np.uint8)
    hidden = decode_image(encode(np.concatenate([picture(), opacity], axis=-1)), decoding(), 'x')
    np.testing.assert_array_equal(hidden, decode_image(encode(picture()), decoding(), 'x'))


def test_sixteen_bit_grey_keeps_its_upper_byte():
    levels = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
    decoded = decode_image(encode(Image.fromarray(levels)), decoding(channels=1), 'x')
    np.testing.assert_array_equal(decoded[..., 0], levels >> 8)


@pytest.mark.parametrize('dtype', [np.int32, np.float32])
def test_thirty_two_bits_are_refused(dtype):
    levels = np.linspace(0, 4000, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(dtype)
    with pytest.raises(DataError, match=r'x\.tif: .*32 bits; convert them to 8 or 16'):
        decode_image(encode(Image.fromarray(levels), 'TIFF'), decoding(), 'x.tif')


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_exif_orientation_is_honoured(orientation, kind):
    upright = picture(HEIGHT * 10, WIDTH * 10)
    # What a camera stores so that the orientation turns it upright again (EXIF 2.3, tag 0x0112).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),
        7: np.rot90(upright.swapaxes(0, 1), 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(np.ascontiguousarray(stored), kind, exif=exif)
    expected = decode_image(encode(upright), decoding(), 'upright')
    assert difference(decode_image(encoded, decoding(), 'x'), expected) < 3


def test_resizing_keeps_the_aspect_ratio_where_asked():
    # A white square on black, in an image twice as wide as high.
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[32:72, 80:120] = 255
    size = {'height': 50, 'width': 50}
    extent = {}
    for resize in ('stretch', 'crop', 'pad'):
        white = decode_image(encode(pixels), decoding(resize, 1, **size), 'x')[..., 0] > 127
        extent[resize] = (int(white.any(1).sum()), int(white.any(0).sum()))
    assert extent == {'stretch': (20, 10), 'crop': (20, 20), 'pad': (10, 10)}
    padded = decode_image(encode(np.full_like(pixels, 255)), decoding('pad', 1, **size), 'x')[..., 0]
    assert (padded[:12] == 0).all()
    assert (padded[13:37] == 255).all()


@pytest.mark.parametrize(
    ('damage', 'reason'),
    [
        (lambda jpeg: b'', 'empty'),
        (lambda jpeg: jpeg[: len(jpeg) // 2], 'truncated'),
        (lambda jpeg: jpeg[:20], 'not a readable image'),
        (lambda jpeg: b'404 not found', 'no known image format'),
        (lambda jpeg: encode(picture())[:-500], 'not a readable image'),
    ],
)
def test_bad_files_are_named_with_the_reason(damage, reason):
    with pytest.raises(DataError, match=rf'lesion7\.jpg: .*{reason}'):
        decode_image(damage(encode(picture(), 'JPEG')), decoding(), 'lesion7.jpg')


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
@pytest.mark.parametrize('pixels', [5_000, 15_000])
def test_bombs_are_refused_where_pillow_only_warns_too(monkeypatch, pixels):
    encoded = encode(picture(100, 200))  # 20,000 pixels
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', pixels)
    with pytest.raises(DataError, match=r'bomb\.png.*decompression bomb'):
        decode_image(encoded, decoding(), 'bomb.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 20_000)
    decode_image(encoded, decoding(), 'bomb.png')


def test_config_values_are_checked():
    values = {'image_size': (HEIGHT, WIDTH), 'resize': 'crop', 'channels': 1}
    assert Decoding.of(ConfigDict(values)) == decoding('crop', 1)
    for wrong in ({'resize': 'squash'}, {'channels': 4}, {'image_size': (0, 3)}):
        with pytest.raises(UsageError, match=f'dataset.{next(iter(wrong))}'):
            Decoding.of(ConfigDict(values | wrong))


class RecordsInMemory:
    """Images and names, and how often they were read."""

    def __init__(self, encoded: list[bytes]):
        self.encoded, self.reads = encoded, 0

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitems__(self, rows):
        self.reads += 1
        return [{'image': self.encoded[row], 'name': f'image{row}'.encode()} for row in rows]


def many(count: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    images = (rng.integers(0, 256, (40 + i % 7, 50, 3), dtype=np.uint8) for i in range(count))
    return [encode(image, 'JPEG' if i % 2 else 'PNG') for i, image in enumerate(images)]


@pytest.mark.parametrize('count', [1, 64, 150])
def test_cache_holds_what_direct_decoding_gives(tmp_path, count):
    records = RecordsInMemory(many(count))
    cached = decoded_split(records, tmp_path / 'cache' / 'train.npy', decoding())
    direct = [decode_image(encoded, decoding(), 'x') for encoded in records.encoded]
    np.testing.assert_array_equal(cached, np.stack(direct))
    assert not cached.flags.writeable


def test_cache_is_written_once(tmp_path):
    records = RecordsInMemory(many(3))
    first = decoded_split(records, tmp_path / 'train.npy', decoding())
    reads = records.reads
    np.testing.assert_array_equal(decoded_split(records, tmp_path / 'train.npy', decoding()), first)
    assert records.reads == reads


def test_failed_cache_is_not_taken_for_good(tmp_path):
    records = RecordsInMemory([*many(3), b'damaged since'])
    with pytest.raises(DataError, match='image3'):
        decoded_split(records, tmp_path / 'train.npy', decoding())
    assert not (tmp_path / 'train.npy').exists()
    records.encoded.pop()
    assert decoded_split(records, tmp_path / 'train.npy', decoding()).shape == (3, HEIGHT, WIDTH, 3)


def test_every_decoding_has_a_name_of_its_own():
    variants = [decoding(), decoding('crop'), decoding('pad'), decoding(channels=1), decoding(height=25)]
    assert len({str(variant) for variant in variants}) == len(variants)


@pytest.mark.skipif(not hasattr(os, 'posix_fallocate'), reason='only there can room be taken ahead')
def test_a_full_disk_is_told_before_pages_without_room_kill_the_process(tmp_path, monkeypatch):
    def full(file, offset, length):
        assert (offset, length) == (0, os.fstat(file).st_size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'posix_fallocate', full)
    with pytest.raises(DataError, match='no room for 0 MiB of decoded images'):
        decoded_split(RecordsInMemory(many(3)), tmp_path / 'train.npy', decoding())
    assert [path.name for path in tmp_path.iterdir()] == ['.lock']
