"""Decoding is strict and colour-true; image, mask, seed and validity go through one geometry."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from brnf.config import AugmentConfig
from brnf.data.transforms import augment, decode_image, decode_mask, orient, row_rng

PAD = (11, 22, 33)


@pytest.fixture
def photo() -> np.ndarray:
    """A smooth colourful picture, uint8 (48, 80, 3), that JPEG keeps almost as it is."""
    noise = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return cv2.resize(noise, (80, 48), interpolation=cv2.INTER_CUBIC)


def encode(array: np.ndarray, format: str, mode: str | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, format, **options)
    return buffer.getvalue()


# --- decoding


@pytest.mark.parametrize("cut", ["1 byte", "2 bytes", "the last scan line", "40 %", "60 %", "99 %"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("thumbnail", [False, True])
def test_truncated_jpeg_is_refused(photo: np.ndarray, cut: str, progressive: bool, thumbnail: bool) -> None:
    exif = b"Exif\0\0" + encode(photo[:16, :16], "JPEG") if thumbnail else b""
    whole = encode(photo, "JPEG", quality=92, progressive=progressive, exif=exif)
    assert decode_image(whole).shape == photo.shape
    drop = {"1 byte": 1, "2 bytes": 2, "the last scan line": 40}.get(cut) or len(whole) * int(cut[:2]) // 100
    with pytest.raises(ValueError, match=r"truncated|not an image"):
        decode_image(whole[:-drop])


def test_half_downloaded_file_of_zeros_is_refused(photo: np.ndarray) -> None:
    whole = encode(photo, "JPEG")
    half = len(whole) * 6 // 10
    with pytest.raises(ValueError, match="truncated"):
        decode_image(whole[:half] + bytes(len(whole) - half))


def test_bytes_behind_the_end_are_no_harm(photo: np.ndarray) -> None:
    whole = encode(photo, "JPEG")
    assert np.array_equal(decode_image(whole + b"\xff\xda video \xff\xd8" * 9), decode_image(whole))


@pytest.mark.parametrize("encoded", [b"", b"\xff\xd8", b"GIF87a?", b"no image at all"])
def test_what_is_no_image_is_refused(encoded: bytes) -> None:
    with pytest.raises(ValueError, match=r"image|truncated"):
        decode_image(encoded)
    with pytest.raises(ValueError, match="mask"):
        decode_mask(encoded)


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_truncated_files_of_other_formats_are_refused(photo: np.ndarray, format: str) -> None:
    whole = encode(photo, format)
    for kept in (len(whole) - 30, len(whole) // 2):
        with pytest.raises(ValueError, match="truncated"):
            decode_image(whole[:kept])


@pytest.mark.parametrize("format, mode", [("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "RGBA")])
def test_colours_survive(photo: np.ndarray, format: str, mode: str) -> None:
    decoded = decode_image(encode(photo, format, mode, **({"quality": 97} if format == "JPEG" else {})))
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - photo).mean() < 2


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_greyscale_is_repeated(photo: np.ndarray, format: str) -> None:
    decoded = decode_image(encode(photo[..., 0], format))
    assert np.abs(decoded.astype(int) - photo[..., :1]).mean() < 2


def test_palette_and_16_bit_photos(photo: np.ndarray) -> None:
    palette = Image.fromarray(photo).quantize(8)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    assert np.array_equal(decode_image(buffer.getvalue()), np.asarray(palette.convert("RGB")))
    deep = encode(photo[..., 0].astype(np.uint16) * 257, "PNG")
    assert np.array_equal(decode_image(deep), np.repeat(photo[..., :1], 3, axis=2))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_equals_exif_transpose(photo: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(photo, "JPEG", quality=95, exif=exif)
    stored, upright = decode_image(encoded), decode_image(encoded, orientation)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    assert stored.shape == photo.shape, "EXIF is not applied unasked"
    assert upright.shape[:2] == expected.size[::-1]
    assert np.abs(upright.astype(int) - np.asarray(expected)).mean() < 1
    mask = (photo[..., 0] > 128).astype(np.uint8)
    assert np.array_equal(decode_mask(encode(mask, "PNG"), orientation), orient(mask, orientation))


def test_orientation_out_of_range_is_refused(photo: np.ndarray) -> None:
    with pytest.raises(ValueError, match="orientation is 9"):
        orient(photo, 9)


def test_masks_give_indices_from_palette_and_grey() -> None:
    mask = np.array([[0, 1, 2], [20, 255, 7]], np.uint8)
    palette = Image.fromarray(mask, "P")
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    assert np.array_equal(decode_mask(buffer.getvalue()), mask)
    assert np.array_equal(decode_mask(encode(mask, "PNG")), mask)
    assert np.array_equal(decode_mask(encode(mask.astype(np.uint16), "PNG")), mask)
    with pytest.raises(ValueError, match="truncated"):
        decode_mask(buffer.getvalue()[:-30])


def test_masks_of_colours_or_large_values_are_refused(photo: np.ndarray) -> None:
    with pytest.raises(ValueError, match="holds colours"):
        decode_mask(encode(photo, "PNG"))
    with pytest.raises(ValueError, match="300"):
        decode_mask(encode(np.full((2, 2), 300, np.uint16), "PNG"))


# --- augmentation


def random_case(number: int) -> tuple[np.ndarray, AugmentConfig, int]:
    """A grey image of random size with a random configuration: larger, smaller, longer than the crop."""
    rng = np.random.default_rng(number)
    low = int(rng.integers(40, 200))
    config = AugmentConfig(
        resize_long=(low, low + int(rng.integers(0, 150))),
        crop_size=int(rng.integers(32, 180)),
        flip=bool(rng.integers(2)),
    )
    height, width = rng.integers(50, 260, 2)
    return np.full((height, width, 3), 40, np.uint8), config, int(rng.choice([8, 16, 32]))


@pytest.mark.parametrize("number", range(60))
def test_a_marker_lands_in_the_same_place(number: int) -> None:
    image, config, stride = random_case(number)
    height, width = image.shape[:2]
    rng = np.random.default_rng(number)
    size = max(12, min(height, width) // 4)
    y, x = int(rng.integers(0, height - size)), int(rng.integers(0, width - size))
    image[y : y + size, x : x + size] = 240
    mask = (image[..., 0] > 128).astype(np.uint8)
    marker = mask.astype(np.float32)
    result = augment(
        image, np.stack([1 - marker, marker]), row_rng(0, 0, str(number)), config,
        stride=stride, pad_color=(40, 40, 40), mask=mask,
    )
    side = config.crop_size
    cells = -(-side // stride)
    assert result.image.shape == (side, side, 3) and result.mask is not None and result.mask.shape == (side, side)
    assert result.seed is not None and result.seed.shape == (2, cells, cells) and result.seed.dtype == np.float32

    in_image, in_mask = result.image[..., 0] > 140, result.mask == 1
    assert np.count_nonzero(in_image != in_mask) <= 2 * (in_mask.sum() ** 0.5 + 2) * 2, "image and mask agree"
    by_cell = np.zeros((cells, cells))
    for row, column in np.argwhere(result.valid):
        by_cell[row, column] = in_mask[
            row * stride : (row + 1) * stride, column * stride : (column + 1) * stride
        ].mean()
    error = np.abs(by_cell - result.seed[1])[result.valid]
    # A mask is cut at whole pixels, of which an enlarged image has fewer than the crop; the seed's mean is exact.
    pixel = max(1.0, max(config.resize_long) / max(height, width))
    assert error.size == 0 or error.max() <= 0.02 + 1.5 * pixel / stride
    assert np.allclose(result.seed.sum(axis=0)[result.valid], 1, atol=1e-4)


@pytest.mark.parametrize("number", range(60))
def test_valid_cells_are_those_wholly_inside(number: int) -> None:
    image, config, stride = random_case(number)
    inside = np.zeros(image.shape[:2], np.uint8)
    result = augment(image, None, row_rng(1, 0, str(number)), config, stride=stride, pad_color=PAD, mask=inside)
    assert result.seed is None and result.mask is not None
    outside = result.mask == 255
    cells = result.valid.shape[0]
    expected = [
        [not outside[r * stride : (r + 1) * stride, c * stride : (c + 1) * stride].any() for c in range(cells)]
        for r in range(cells)
    ]
    assert np.array_equal(result.valid, expected)
    assert (result.image[outside] == PAD).all(), "padding has the colour asked for"
    assert (result.image[~outside] == 40).all(), "and does not bleed into the image"


def test_a_whole_image_averages_its_seed_exactly() -> None:
    seed = np.random.default_rng(0).random((7, 8, 8), dtype=np.float32)
    config = AugmentConfig(resize_long=(64, 64), crop_size=64, flip=False)
    image = np.zeros((64, 64, 3), np.uint8)
    result = augment(image, seed, row_rng(0, 0, "a"), config, stride=16, pad_color=PAD)
    assert result.seed is not None and result.valid.all()
    assert np.allclose(result.seed, seed.reshape(7, 4, 2, 4, 2).mean(axis=(2, 4)), atol=1e-6)


def test_flip_mirrors_everything() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)
    mask = rng.integers(0, 5, (60, 90), dtype=np.uint8)
    seed = rng.random((5, 15, 22), dtype=np.float32)
    mirrored = 0
    for row in range(20):
        plain, flipped = (
            augment(
                image, seed, row_rng(0, 0, str(row)), AugmentConfig(resize_long=(50, 150), crop_size=96, flip=flip),
                stride=16, pad_color=PAD, mask=mask,
            )
            for flip in (False, True)
        )
        assert plain.seed is not None and flipped.seed is not None
        assert plain.mask is not None and flipped.mask is not None
        if np.array_equal(plain.image, flipped.image):
            continue
        mirrored += 1
        difference = np.abs(plain.image.astype(int) - flipped.image[:, ::-1])
        assert difference.max() <= 2, "resizing may round the other way"
        assert np.array_equal(plain.valid, flipped.valid[:, ::-1])
        assert np.allclose(plain.seed, flipped.seed[:, :, ::-1], atol=1e-5)
        assert (plain.mask != flipped.mask[:, ::-1]).mean() < 0.03
    assert 4 <= mirrored <= 16


def test_geometry_follows_from_seed_epoch_and_id() -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    config = AugmentConfig(resize_long=(60, 240), crop_size=64)

    def draw(*key: object) -> bytes:
        return augment(image, None, row_rng(*key), config, stride=16, pad_color=PAD).image.tobytes()  # type: ignore[arg-type]

    assert draw(0, 0, "a") == draw(0, 0, "a")
    assert len({draw(0, 0, "a"), draw(1, 0, "a"), draw(0, 1, "a"), draw(0, 0, "b"), draw(1, 1, "1")}) == 5
    assert row_rng(0, 0, "2008_000002").integers(1 << 30) == 725313785, "the same on every machine and version"


def test_crops_reach_every_part_of_a_large_image() -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (256, 1, 3))
    config = AugmentConfig(resize_long=(256, 256), crop_size=64, flip=False)
    lefts = [
        int(augment(ramp, None, row_rng(0, 0, str(i)), config, stride=16, pad_color=PAD).image[0, 0, 0])
        for i in range(200)
    ]
    assert min(lefts) < 10 and max(lefts) > 182 and abs(np.mean(lefts) - 96) < 15
