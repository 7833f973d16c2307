"""Arrays, tensors and PIL images as `load_image` takes them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tokenize_anything.image_loading import load_image

HEIGHT, WIDTH = 7, 11


def random_pixels(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    high = np.iinfo(dtype).max + 1
    return np.random.default_rng(5).integers(0, high, shape).astype(dtype)


def on_white(rgba: np.ndarray) -> np.ndarray:
    """Alpha blending in float64, the independent reference."""
    alpha = rgba[..., 3:] / 255.0
    return np.rint(rgba[..., :3] * alpha + 255.0 * (1.0 - alpha)).astype(np.uint8)


def as_rgb(gray: np.ndarray) -> np.ndarray:
    return np.stack([gray, gray, gray], axis=-1)


RGB = random_pixels(HEIGHT, WIDTH, 3)
RGBA = random_pixels(HEIGHT, WIDTH, 4)
GRAY = random_pixels(HEIGHT, WIDTH)
GRAY16 = random_pixels(HEIGHT, WIDTH, dtype=np.uint16)
RGB16 = random_pixels(HEIGHT, WIDTH, 3, dtype=np.uint16)
RGBA16 = random_pixels(HEIGHT, WIDTH, 4, dtype=np.uint16)


def from_16_bits(values: np.ndarray) -> np.ndarray:
    return np.rint(values / 257.0).astype(np.uint8)


class TestArrays:
    @pytest.mark.parametrize(
        ("array", "expected"),
        [
            (RGB, RGB),
            (GRAY, as_rgb(GRAY)),
            (GRAY[..., None], as_rgb(GRAY)),
            (RGBA, on_white(RGBA)),
            (RGB[::-1, ::2], RGB[::-1, ::2]),  # strided
            (np.asfortranarray(RGB), RGB),
            (GRAY16, as_rgb(from_16_bits(GRAY16))),
            (GRAY16.astype(">u2"), as_rgb(from_16_bits(GRAY16))),
            (RGB16, from_16_bits(RGB16)),
            (RGBA16, on_white(from_16_bits(RGBA16))),
            (RGB[:1, :1], RGB[:1, :1]),  # one pixel
            (RGB[:3], RGB[:3]),  # three rows are not three channels
        ],
    )
    def test_layouts_and_dtypes(self, array: np.ndarray, expected: np.ndarray) -> None:
        before = array.copy()
        loaded = load_image(array)
        np.testing.assert_array_equal(loaded, expected)
        assert loaded.dtype == np.uint8
        assert loaded.flags.c_contiguous
        assert loaded.flags.writeable
        assert not np.shares_memory(loaded, array)
        np.testing.assert_array_equal(array, before)

    def test_all_16_bit_values(self) -> None:
        values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
        np.testing.assert_array_equal(load_image(values)[..., 1], from_16_bits(values))

    def test_read_only_array(self) -> None:
        array = RGB.copy()
        array.flags.writeable = False
        np.testing.assert_array_equal(load_image(array), RGB)

    @pytest.mark.parametrize(
        ("shape", "dtype", "message"),
        [
            ((7, 11, 3), np.float32, r"photo: .*float32 of shape \(7, 11, 3\).*multiply by 255"),
            ((7, 11, 3), np.float16, "multiply by 255, round and cast to uint8"),
            ((7, 11), np.bool_, r"photo: .*bool array.*mask\.astype\(np\.uint8\) \* 255"),
            ((7, 11, 3), np.int64, r"photo: .*got int64.*\.astype\(np\.uint8\)"),
            ((7, 11, 3), np.uint32, "got uint32"),
            ((7, 11), np.object_, "got object"),
            ((3, 7, 11), np.uint8, r"got \(3, 7, 11\).*channels first"),
            ((1, 7, 11), np.uint8, "channels first"),
            ((2, 7, 11, 3), np.uint8, "batch, pass a list of images"),
            ((7, 11, 2), np.uint8, r"expected shape \(H,W\).*got \(7, 11, 2\)$"),
            ((7,), np.uint8, r"got \(7,\)$"),
            ((), np.uint8, r"got \(\)$"),
            ((0, 11, 3), np.uint8, r"at least one pixel, got shape \(0, 11, 3\)"),
            ((7, 0), np.uint8, "at least one pixel"),
        ],
    )
    def test_refused(self, shape: tuple[int, ...], dtype: type, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load_image(np.zeros(shape, dtype), name="photo")


class TestTensors:
    @pytest.mark.parametrize("array", [RGB, GRAY, RGBA, GRAY16])
    def test_same_as_array(self, array: np.ndarray) -> None:
        tensor = torch.from_numpy(array.copy())
        loaded = load_image(tensor)
        np.testing.assert_array_equal(loaded, load_image(array))
        loaded[:] = 0
        np.testing.assert_array_equal(tensor.numpy(), array)

    @pytest.mark.parametrize(
        ("tensor", "message"),
        [
            (torch.zeros(7, 11, 3), "torch.float32.*multiply by 255"),
            (torch.zeros(7, 11, 3, dtype=torch.bfloat16), "torch.bfloat16.*multiply by 255"),
            (torch.zeros(7, 11, 3, requires_grad=True), "multiply by 255"),
            (torch.zeros(3, 7, 11, dtype=torch.uint8), r"\(3, 7, 11\).*channels first"),
            (torch.zeros(7, 11, dtype=torch.bool), "bool"),
        ],
    )
    def test_refused(self, tensor: torch.Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load_image(tensor)


@pytest.mark.parametrize("value", [None, 3, [1, 2], b"photo.png", {"image": RGB}])
def test_other_kinds_are_type_errors(value: object) -> None:
    message = f"photo: expected one image as a path.*got {type(value).__name__}"
    with pytest.raises(TypeError, match=message):
        load_image(value, name="photo")  # type: ignore[arg-type]


def test_path_object_that_yields_bytes() -> None:
    class BytesPath:
        def __fspath__(self) -> bytes:
            return b"photo.png"

    with pytest.raises(TypeError, match="image: expected a path of type str, got bytes"):
        load_image(BytesPath())  # type: ignore[arg-type]


class TestPIL:
    @pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "HSV"])
    def test_modes_agree_with_pillow(self, mode: str) -> None:
        image = Image.fromarray(RGB).convert(mode)
        before = image.tobytes()
        np.testing.assert_array_equal(load_image(image), np.array(image.convert("RGB")))
        assert (image.mode, image.tobytes()) == (mode, before)

    def test_transparent_pixels_become_white(self) -> None:
        image = Image.fromarray(RGBA)
        np.testing.assert_array_equal(load_image(image), on_white(RGBA))

    def test_sixteen_bit_gray(self) -> None:
        image = Image.fromarray(GRAY16)
        assert image.mode == "I;16"
        np.testing.assert_array_equal(load_image(image), as_rgb(from_16_bits(GRAY16)))

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (Image.new("F", (5, 3)), "photo: expected 8 or 16 bits.*'F'.*cast to uint8"),
            (Image.new("I", (5, 3)), "photo: expected 8 or 16 bits.*'I'"),
            (Image.new("RGB", (0, 3)), r"photo: .*at least one pixel, got shape \(3, 0, 3\)"),
        ],
    )
    def test_refused(self, image: Image.Image, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load_image(image, name="photo")

    def test_lazy_truncated_image(self) -> None:
        stream = io.BytesIO()
        Image.fromarray(RGB).save(stream, "PNG")
        image = Image.open(io.BytesIO(stream.getvalue()[:-60]))
        with pytest.raises(ValueError, match=r"photo: the image cannot be decoded.*truncated"):
            load_image(image, name="photo")

    def test_closed_image(self, tmp_path: Path) -> None:
        Image.fromarray(RGB).save(tmp_path / "photo.png")
        image = Image.open(tmp_path / "photo.png")
        image.close()
        with pytest.raises(ValueError, match="photo: the image cannot be decoded"):
            load_image(image, name="photo")
