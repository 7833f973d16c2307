"""Image files of every kind, upright, whole, and refused when they are not."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and breaks off before its pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"\x78\x9c")


RGB = random_pixels(HEIGHT, WIDTH, 3)
RGBA = random_pixels(HEIGHT, WIDTH, 4)
GRAY = random_pixels(HEIGHT, WIDTH)
GRAY16 = random_pixels(HEIGHT, WIDTH, dtype=np.uint16)


def from_16_bits(values: np.ndarray) -> np.ndarray:
    return np.rint(values / 257.0).astype(np.uint8)


class TestFiles:
    @pytest.mark.parametrize("filename", ["photo.png", "фото 写真.png", "photo.bmp", "photo.tif"])
    def test_lossless_colour(self, tmp_path: Path, filename: str) -> None:
        path = tmp_path / filename
        Image.fromarray(RGB).save(path)
        before = path.read_bytes()
        np.testing.assert_array_equal(load_image(path), RGB)
        np.testing.assert_array_equal(load_image(str(path)), RGB)
        assert path.read_bytes() == before

    @pytest.mark.parametrize(
        ("array", "filename", "expected"),
        [
            (GRAY, "gray.png", as_rgb(GRAY)),
            (RGBA, "alpha.png", on_white(RGBA)),
            (RGBA, "alpha.tif", on_white(RGBA)),
            (GRAY16, "deep.png", as_rgb(from_16_bits(GRAY16))),
            (GRAY16, "deep.tif", as_rgb(from_16_bits(GRAY16))),
            (GRAY16, "deep.pgm", as_rgb(from_16_bits(GRAY16))),
        ],
    )
    def test_array_formats(
        self, tmp_path: Path, array: np.ndarray, filename: str, expected: np.ndarray
    ) -> None:
        path = tmp_path / filename
        Image.fromarray(array).save(path)
        np.testing.assert_array_equal(load_image(path), expected)

    def test_gray_with_alpha(self, tmp_path: Path) -> None:
        path = tmp_path / "la.png"
        Image.fromarray(RGBA[..., :2]).save(path)
        with Image.open(path) as image:
            assert image.mode == "LA"
        rgba = np.stack([RGBA[..., 0]] * 3 + [RGBA[..., 1]], axis=-1)
        np.testing.assert_array_equal(load_image(path), on_white(rgba))

    def test_one_bit(self, tmp_path: Path) -> None:
        path = tmp_path / "bits.png"
        Image.fromarray(GRAY > 127).save(path)
        np.testing.assert_array_equal(load_image(path), as_rgb((GRAY > 127) * np.uint8(255)))

    def test_palette_with_a_transparent_entry(self, tmp_path: Path) -> None:
        path = tmp_path / "palette.png"
        indices = random_pixels(HEIGHT, WIDTH) % 3
        palette = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]], np.uint8)
        image = Image.fromarray(indices, mode="P")
        image.putpalette(palette.tobytes())
        image.save(path, transparency=1)
        expected = palette[indices]
        expected[indices == 1] = 255
        np.testing.assert_array_equal(load_image(path), expected)

    def test_colour_key_is_transparent(self, tmp_path: Path) -> None:
        path = tmp_path / "key.png"
        Image.fromarray(RGB).save(path, transparency=tuple(int(v) for v in RGB[2, 4]))
        expected = RGB.copy()
        expected[2, 4] = 255
        np.testing.assert_array_equal(load_image(path), expected)

    def test_cmyk(self, tmp_path: Path) -> None:
        path = tmp_path / "print.tif"
        cmyk = random_pixels(HEIGHT, WIDTH, 4)
        Image.fromarray(cmyk, mode="CMYK").save(path)
        ink = 255.0 - cmyk.astype(float)
        expected = ink[..., :3] * ink[..., 3:] / 255.0
        assert np.abs(load_image(path) - expected).max() <= 1.0

    def test_cmyk_jpeg_is_not_inverted(self, tmp_path: Path) -> None:
        path = tmp_path / "print.jpg"
        Image.new("CMYK", (16, 8), (0, 255, 255, 0)).save(path, quality=95)
        loaded = load_image(path)
        assert np.abs(loaded.astype(int) - [255, 0, 0]).max() <= 3

    def test_first_frame_of_an_animation(self, tmp_path: Path) -> None:
        path = tmp_path / "moving.gif"
        colors = [(250, 10, 20), (20, 240, 30), (30, 20, 230)]
        frames = [Image.new("RGB", (WIDTH, HEIGHT), color) for color in colors]
        frames[0].save(path, save_all=True, append_images=frames[1:])
        np.testing.assert_array_equal(load_image(path), np.full((HEIGHT, WIDTH, 3), colors[0]))


# What a viewer shows for stored pixels `a`, by orientation (EXIF 2.3, tag 0x0112).
SHOWN = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def exif_with(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


class TestOrientation:
    @pytest.mark.parametrize("orientation", SHOWN)
    @pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
    def test_files_are_turned_upright(self, tmp_path: Path, orientation: int, suffix: str) -> None:
        path = tmp_path / f"photo.{suffix}"
        options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
        Image.fromarray(RGB).save(path, exif=exif_with(orientation), **options)
        np.testing.assert_array_equal(load_image(path), SHOWN[orientation](RGB))

    def test_sixteen_bit_gray_turns_too(self, tmp_path: Path) -> None:
        path = tmp_path / "deep.png"
        Image.fromarray(GRAY16).save(path, exif=exif_with(6))
        expected = as_rgb(SHOWN[6](from_16_bits(GRAY16)))
        np.testing.assert_array_equal(load_image(path), expected)

    def test_phone_jpeg(self, tmp_path: Path) -> None:
        path = tmp_path / "phone.jpg"
        blocks = np.zeros((16, 32, 3), np.uint8)
        blocks[:, :16, 0] = 255  # stored: red left, blue right
        blocks[:, 16:, 2] = 255
        Image.fromarray(blocks).save(path, exif=exif_with(6), quality=95, subsampling=0)
        loaded = load_image(path)
        assert loaded.shape == (32, 16, 3)
        assert (loaded[:12, :, 0] > 240).all()  # shown: red above blue
        assert (loaded[-12:, :, 2] > 240).all()

    @pytest.mark.parametrize("exif", [b"Exif\x00\x00nonsense", exif_with(99).tobytes()])
    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_meaningless_exif_changes_nothing(self, tmp_path: Path, exif: bytes) -> None:
        path = tmp_path / "photo.png"
        Image.fromarray(RGB).save(path, exif=exif)
        np.testing.assert_array_equal(load_image(path), RGB)

    def test_pil_image_keeps_its_own_size(self, tmp_path: Path) -> None:
        path = tmp_path / "photo.png"
        Image.fromarray(RGB).save(path, exif=exif_with(6))
        with Image.open(path) as image:
            np.testing.assert_array_equal(load_image(image), RGB)


class TestBadPaths:
    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("", "image: .*empty path"),
            ("  ", "empty path"),
            ("https://example.org/a.jpg", "got the URL 'https://example.org/a.jpg'; download"),
            ("HTTP://example.org/a.jpg", "download the file first"),
            ("s3://bucket/a.jpg", "download the file first"),
            ("file:///a.jpg", "download the file first"),
            ("data:image/png;base64,AAAA", "download the file first"),
        ],
    )
    def test_no_local_path(self, path: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load_image(path)

    @pytest.mark.parametrize("filename", ["missing.png", "x" * 5000, "nul\0byte.png"])
    def test_missing_file(self, tmp_path: Path, filename: str) -> None:
        with pytest.raises(FileNotFoundError, match=r"images\[3\]: no file at .*working directory"):
            load_image(tmp_path / filename, name="images[3]")

    def test_message_shows_the_missing_path(self) -> None:
        with pytest.raises(FileNotFoundError, match=r"'no/such/photo\.png'"):
            load_image("no/such/photo.png")

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=f"'{tmp_path}', which is a folder"):
            load_image(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"hello, world\n" * 20, b"GIF89a", b"\xff\xd8\xff"])
    def test_no_image(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "notes.png"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"image: file '.*notes\.png': "):
            load_image(path)

    def test_text_file_message(self, tmp_path: Path) -> None:
        path = tmp_path / "notes.txt"
        path.write_text("hello")
        with pytest.raises(ValueError, match=r"notes\.txt.*no format Pillow.*convert it to PNG"):
            load_image(path)

    def test_eps_is_not_executed(self, tmp_path: Path) -> None:
        path = tmp_path / "drawing.eps"
        Image.fromarray(RGB).save(path)
        with pytest.raises(ValueError, match=r"drawing\.eps.*EPS drawing; convert it to PNG"):
            load_image(path)

    def test_float_tiff(self, tmp_path: Path) -> None:
        path = tmp_path / "depth.tif"
        Image.fromarray(GRAY.astype(np.float32)).save(path)
        with pytest.raises(ValueError, match=r"depth\.tif.*32-bit values \(mode 'F'\)"):
            load_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
class TestTruncatedFiles:
    FORMATS: tuple[tuple[str, dict[str, Any]], ...] = (
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    )

    @pytest.mark.parametrize(("file_format", "options"), FORMATS)
    def test_never_half_a_picture(
        self, tmp_path: Path, file_format: str, options: dict[str, Any]
    ) -> None:
        path = tmp_path / "cut.bin"
        pixels = random_pixels(29, 37, 3)
        Image.fromarray(pixels).save(path, format=file_format, **options)
        content, whole = path.read_bytes(), load_image(path)
        for size in range(0, len(content) * 9 // 10, len(content) // 23):
            path.write_bytes(content[:size])
            with pytest.raises(ValueError, match=r"image: file '.*cut\.bin'"):
                load_image(path)
        # Losing no more than the end mark may leave every pixel readable.
        for size in range(len(content) - 40, len(content)):
            path.write_bytes(content[:size])
            try:
                loaded = load_image(path)
            except ValueError:
                continue
            np.testing.assert_array_equal(loaded, whole)

    def test_message(self, tmp_path: Path) -> None:
        path = tmp_path / "half.jpg"
        Image.fromarray(RGB).save(path)
        path.write_bytes(path.read_bytes()[:-30])
        with pytest.raises(ValueError, match=r"half\.jpg.*cannot be decoded.*truncated.*again"):
            load_image(path)


class TestTooManyPixels:
    # Just above the limit Pillow only warns; far above it refuses.
    @pytest.mark.parametrize("side", [10_000, 50_000])
    @pytest.mark.parametrize("action", ["ignore", "error"])
    def test_refused_before_decoding(self, tmp_path: Path, side: int, action: str) -> None:
        path = tmp_path / "bomb.png"
        path.write_bytes(png_header(side, side))
        limit = Image.MAX_IMAGE_PIXELS
        with warnings.catch_warnings():
            warnings.simplefilter(action, Image.DecompressionBombWarning)  # type: ignore[arg-type]
            filters = list(warnings.filters)
            with pytest.raises(ValueError, match=r"bomb\.png.*too many pixels.*shrink it"):
                load_image(path)
            assert list(warnings.filters) == filters
        assert limit == Image.MAX_IMAGE_PIXELS

    @pytest.mark.parametrize(
        ("limit", "is_refused"),
        [(HEIGHT * WIDTH - 1, True), (HEIGHT * WIDTH, False), (None, False)],
    )
    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    def test_limit_is_the_users(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        limit: int | None,
        is_refused: bool,
    ) -> None:
        path = tmp_path / "photo.png"
        Image.fromarray(RGB).save(path)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        if is_refused:
            with pytest.raises(ValueError, match="expected at most 76, got 11 x 7"):
                load_image(path)
        else:
            np.testing.assert_array_equal(load_image(path), RGB)

    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    def test_lazily_opened_image_but_not_one_in_memory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "photo.png"
        in_memory = Image.fromarray(RGB)
        in_memory.save(path)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
        np.testing.assert_array_equal(load_image(in_memory), RGB)
        with Image.open(path) as lazy, pytest.raises(ValueError, match="photo: too many pixels"):
            load_image(lazy, name="photo")
