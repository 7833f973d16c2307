"""Resize, pad and normalise against a plain reference; frames and coordinates."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tokenize_anything.config import PixelConfig, TAPConfig
from tokenize_anything.image_transform import ImageFrame, prepare_images

PARITY = Path(__file__).parents[2] / "shared" / "parity"
MEAN = (103.53, 116.28, 123.675)
STD = (57.375, 57.12, 58.395)


def small_config(channel_order: Any = "BGR") -> TAPConfig:
    pixels = PixelConfig(mean=MEAN, std=STD, channel_order=channel_order)
    return TAPConfig(image_size=48, patch_size=4, window_size=3, pixels=pixels)


def photo(height: int, width: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


class TestImageFrame:
    @pytest.mark.parametrize(
        ("height", "width", "image_size", "scaled_hw", "scale"),
        [
            (480, 640, 1024, (768, 1024), 1.6),
            (640, 480, 1024, (1024, 768), 1.6),
            (1264, 1190, 1024, (1024, 964), 1024 / 1264),
            (100, 3000, 1024, (34, 1024), 1024 / 3000),
            (480, 640, 512, (384, 512), 0.8),
            (281, 500, 512, (288, 512), 1.024),
            (1024, 1024, 1024, (1024, 1024), 1.0),
            (1, 1, 1024, (1024, 1024), 1024.0),
            (1, 5000, 1024, (1, 1024), 0.2048),  # 0.2048 pixels high, kept as one
            (5000, 1, 1024, (1024, 1), 0.2048),
            (2049, 2050, 1024, (1024, 1024), 1024 / 2049),  # short side decides
            (2048, 2049, 1024, (1024, 1024), 1024 / 2049),  # 1024.5 must not become 1025
            (1025, 1024, 512, (512, 512), 512 / 1025),
        ],
    )
    def test_for_size(
        self,
        height: int,
        width: int,
        image_size: int,
        scaled_hw: tuple[int, int],
        scale: float,
    ) -> None:
        frame = ImageFrame.for_size(height, width, image_size)
        assert frame == ImageFrame((height, width), scaled_hw, frame.scale, image_size)
        assert frame.scale == pytest.approx(scale, rel=1e-12)

    @given(st.integers(1, 6000), st.integers(1, 6000), st.sampled_from([64, 512, 1024]))
    @settings(max_examples=300, deadline=None)
    def test_long_side_fills_the_square(self, height: int, width: int, side: int) -> None:
        frame = ImageFrame.for_size(height, width, side)
        assert max(frame.scaled_hw) == side
        assert min(frame.scaled_hw) >= 1
        for scaled, original in zip(frame.scaled_hw, (height, width), strict=True):
            assert scaled == 1 or abs(scaled - original * frame.scale) <= 0.5 + 1e-9
        assert ImageFrame.for_size(width, height, side).scaled_hw == frame.scaled_hw[::-1]

    def test_numpy_sizes_become_plain_integers(self) -> None:
        frame = ImageFrame.for_size(np.int64(5), np.int32(7), 48)  # type: ignore[arg-type]
        assert {type(value) for value in (*frame.original_hw, *frame.scaled_hw)} == {int}

    @pytest.mark.parametrize(
        ("sizes", "message"),
        [
            ((0, 5, 48), "height: expected a positive integer, got 0"),
            ((5, -1, 48), "width: expected a positive integer, got -1"),
            ((5, 5, 0), "image_size: expected a positive integer, got 0"),
            ((5.0, 5, 48), "height: expected a positive integer, got 5.0"),
            ((5, True, 48), "width: expected a positive integer, got True"),
        ],
    )
    def test_bad_sizes(self, sizes: tuple[int, int, int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ImageFrame.for_size(*sizes)

    def test_frozen(self) -> None:
        with pytest.raises(AttributeError):
            ImageFrame.for_size(5, 7, 48).scale = 2.0  # type: ignore[misc]


class TestCoordinates:
    FRAME = ImageFrame.for_size(480, 640, 1024)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int32, np.uint8])
    def test_arrays(self, dtype: type) -> None:
        coords: np.ndarray = np.array([[[10, 20], [200, 3]]], dtype)
        before = coords.copy()
        moved = self.FRAME.to_model_frame(coords)
        np.testing.assert_allclose(moved, [[[16.0, 32.0], [320.0, 4.8]]], rtol=1e-6)
        assert moved.dtype in (np.float32, np.float64)
        np.testing.assert_allclose(self.FRAME.to_original_frame(moved), before, rtol=1e-6)
        np.testing.assert_array_equal(coords, before)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bfloat16])
    def test_tensors(self, dtype: torch.dtype) -> None:
        coords = torch.tensor([[10, 20], [200, 3]], dtype=dtype)
        moved = self.FRAME.to_model_frame(coords)
        assert isinstance(moved, torch.Tensor)
        assert moved.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        expected = torch.tensor([[16.0, 32.0], [320.0, 4.8]], dtype=moved.dtype)
        torch.testing.assert_close(moved, expected)
        torch.testing.assert_close(self.FRAME.to_original_frame(moved), coords.to(moved.dtype))

    def test_half_precision_arrays_gain_precision(self) -> None:
        moved = self.FRAME.to_model_frame(np.array([639.5, 479.5], np.float16))
        assert moved.dtype == np.float32
        np.testing.assert_allclose(moved, [639.5 * 1.6, 479.5 * 1.6], rtol=1e-6)

    def test_same_factor_on_both_axes_even_where_the_size_was_rounded(self) -> None:
        frame = ImageFrame.for_size(100, 3000, 1024)
        moved = frame.to_model_frame(np.array([[3000.0, 100.0]]))
        np.testing.assert_allclose(moved, [[1024.0, 102400 / 3000]], rtol=1e-12)

    def test_empty(self) -> None:
        assert self.FRAME.to_model_frame(np.zeros((0, 3, 2))).shape == (0, 3, 2)

    @pytest.mark.parametrize(
        ("coords", "error", "message"),
        [
            ([[1, 2]], TypeError, "coords_xy: expected a NumPy array or a torch tensor, got list"),
            (np.zeros((4, 3)), ValueError, r"coords_xy: expected shape \(…,2\).*got \(4, 3\)"),
            (torch.zeros(2, 4), ValueError, r"got \(2, 4\)"),
            (np.float64(1), TypeError, "got float64"),
            (np.array(1.0), ValueError, r"got \(\)"),
        ],
    )
    def test_refused(self, coords: Any, error: type[Exception], message: str) -> None:
        for convert in (self.FRAME.to_model_frame, self.FRAME.to_original_frame):
            with pytest.raises(error, match=message):
                convert(coords)


def plain_prepare(rgb: np.ndarray, channel_order: str) -> np.ndarray:
    """Section 2 of the method, one channel after the other. Returns (3,48,48)."""
    frame = ImageFrame.for_size(rgb.shape[0], rgb.shape[1], 48)
    height, width = frame.scaled_hw
    result = np.zeros((3, 48, 48), np.float32)
    for index, color in enumerate(channel_order):
        plane = Image.fromarray(rgb[:, :, "RGB".index(color)].copy())
        padded = np.full((48, 48), int(MEAN[index]), np.uint8)
        padded[:height, :width] = np.array(plane.resize((width, height), Image.Resampling.BILINEAR))
        centred = padded.astype(np.float32) - np.float32(MEAN[index])
        result[index] = centred * np.float32(1 / STD[index])
    return result


class TestPrepareImages:
    SIZES = ((36, 48), (48, 35), (97, 61), (7, 5), (1, 101), (48, 48), (89, 83))

    @pytest.mark.parametrize("channel_order", ["BGR", "RGB"])
    @pytest.mark.parametrize("size", SIZES)
    def test_every_value(self, size: tuple[int, int], channel_order: str) -> None:
        rgb = photo(*size)
        before = rgb.copy()
        pixels, frames = prepare_images([rgb], small_config(channel_order))
        np.testing.assert_array_equal(pixels[0].numpy(), plain_prepare(rgb, channel_order))
        assert pixels.dtype == torch.float32
        assert pixels.is_contiguous()
        assert frames == [ImageFrame.for_size(*size, 48)]
        np.testing.assert_array_equal(rgb, before)

    def test_alone_as_in_a_batch(self) -> None:
        photos = [photo(*size, seed=seed) for seed, size in enumerate(self.SIZES)]
        pixels, frames = prepare_images(photos, small_config())
        assert pixels.shape == (7, 3, 48, 48)
        for index, image in enumerate(photos):
            alone, (frame,) = prepare_images([image], small_config())
            assert torch.equal(alone[0], pixels[index])
            assert frame == frames[index]

    def test_red_arrives_last_in_bgr_and_first_in_rgb(self) -> None:
        red = np.zeros((48, 48, 3), np.uint8)
        red[..., 0] = 255
        bgr, _ = prepare_images([red], small_config("BGR"))
        rgb, _ = prepare_images([red], small_config("RGB"))
        assert (bgr[0, :, 0, 0] > 0).tolist() == [False, False, True]
        assert (rgb[0, :, 0, 0] > 0).tolist() == [True, False, False]

    def test_reciprocal_is_rounded_once(self) -> None:
        std = 50.005
        assert np.float32(1 / std) != np.float32(1) / np.float32(std)
        pixels = PixelConfig(mean=(0.0, 0.0, 0.0), std=(std, std, std))
        config = TAPConfig(image_size=48, patch_size=4, window_size=3, pixels=pixels)
        rgb = photo(48, 48)
        prepared, _ = prepare_images([rgb], config)
        expected = rgb[..., 1].astype(np.float32) * np.float32(1 / std)
        np.testing.assert_array_equal(prepared[0, 1].numpy(), expected)

    def test_padding_is_the_truncated_mean(self) -> None:
        pixels, _ = prepare_images([photo(24, 48), photo(48, 24)], small_config())
        expected = torch.tensor([-0.53 / 57.375, -0.28 / 57.12, -0.675 / 58.395])
        for padding in (pixels[0, :, 24:, :], pixels[1, :, :, 24:]):
            torch.testing.assert_close(
                padding, expected[:, None, None].expand_as(padding), rtol=1e-4, atol=1e-6
            )

    def test_files_pil_and_arrays_together(self, tmp_path: Path) -> None:
        rgb = photo(31, 43)
        path = tmp_path / "photo.png"
        Image.fromarray(rgb).save(path)
        sources = (path, str(path), Image.fromarray(rgb), rgb, torch.from_numpy(rgb.copy()))
        pixels, _ = prepare_images(sources, small_config())
        for index in range(1, 5):
            assert torch.equal(pixels[index], pixels[0])

    def test_stack_of_images(self) -> None:
        stack = np.stack([photo(31, 43, seed=seed) for seed in range(2)])
        pixels, _ = prepare_images(stack, small_config())
        assert torch.equal(pixels, prepare_images(list(stack), small_config())[0])

    @pytest.mark.parametrize(
        ("images", "error", "message"),
        [
            ([], ValueError, "images: expected at least one image, got none"),
            ("photo.png", TypeError, r"images: expected a list of images, got str.*\[image\]"),
            (Path("photo.png"), TypeError, "got PosixPath|got WindowsPath"),
            (photo(5, 7), TypeError, "got ndarray; write"),
            (torch.zeros(5, 7, 3, dtype=torch.uint8), TypeError, "got Tensor; write"),
            (Image.new("RGB", (5, 7)), TypeError, "got Image; write"),
            (None, TypeError, "got NoneType"),
            ([photo(5, 7), np.zeros((5, 7))], ValueError, r"images\[1\]: .*multiply by 255"),
            ([None], TypeError, r"images\[0\]: expected one image"),
            (["missing.png"], FileNotFoundError, r"images\[0\]: no file at 'missing.png'"),
        ],
    )
    def test_refused(self, images: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            prepare_images(images, small_config())


class NumpyOnlyUnpickler(pickle.Unpickler):
    """Reads dicts of arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.".startswith("numpy.") and name in ("_reconstruct", "ndarray", "dtype"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"refused {module}.{name}")


@pytest.mark.skipif(not PARITY.is_dir(), reason="needs the parity case in ../shared/parity")
class TestParity:
    def test_model_input(self) -> None:
        with open(PARITY / "checkpoint.pkl", "rb") as stream:
            weights = NumpyOnlyUnpickler(stream).load()
        mean = tuple(weights["pixel_mean"].astype(np.float64).ravel())
        std = tuple(1.0 / weights["pixel_rsig"].astype(np.float64).ravel())
        config = TAPConfig(image_size=512, pixels=PixelConfig(mean=mean, std=std))
        expected = np.load(PARITY / "expected.npz")
        pixels, frames = prepare_images([PARITY / "street.png", PARITY / "wide.png"], config)
        np.testing.assert_array_equal([f.original_hw for f in frames], expected["img_shapes"])
        np.testing.assert_array_equal([f.scaled_hw for f in frames], expected["scaled_shapes"])
        np.testing.assert_allclose(
            [[f.scale, f.scale] for f in frames], expected["scales"], rtol=1e-12
        )
        np.testing.assert_array_equal(pixels[:, :, ::64, ::64], expected["img_input_slice"])
