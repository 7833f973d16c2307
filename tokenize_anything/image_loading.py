"""Read one image from a file, a PIL image, an array or a tensor into RGB pixels."""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

if TYPE_CHECKING:
    from torch import Tensor

ImageSource: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray | Tensor"

_URL = re.compile(r"data:|[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_ORIENTATION_TAG = 0x0112
_UNDO_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BOMB_CURE = "shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust its source"
# Pillow's decoders meet damaged bytes with any of these.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
    zlib.error,
)


def load_image(image: ImageSource, *, name: str = "image") -> np.ndarray:
    """Read one image as RGB pixels; the input is never modified and never shared.

    Args:
        image: one of
            a path: any still format Pillow reads, the first frame of an animation. The EXIF
            orientation is applied, so the result is what a viewer shows;
            a PIL image: taken as it is, so that (H,W) stays its own size. Call
            `PIL.ImageOps.exif_transpose` first if it carries an orientation;
            an array: (H,W) or (H,W,1) gray, (H,W,3) RGB, (H,W,4) RGBA;
            a tensor: the same layouts, on any device.
            Arrays and tensors are uint8, or uint16 covering 0..65535, which is divided by 257 and
            rounded. So are 16-bit gray files; of 16-bit colour files Pillow keeps the high byte.
            Transparent pixels are composited on white.
            A truncated file is an error unless the program itself has set
            `PIL.ImageFile.LOAD_TRUNCATED_IMAGES`.
        name: what error messages call the image.

    Returns:
        (H,W,3) uint8, RGB, C-contiguous.

    Raises:
        FileNotFoundError: nothing lies at the path.
        TypeError: not a kind of image listed above.
        ValueError: an empty path, a URL, a folder, a file that is no image, is truncated or
            declares more than `PIL.Image.MAX_IMAGE_PIXELS` pixels; an array without pixels, with
            another dtype or another layout.
    """
    if isinstance(image, str | os.PathLike):
        return _load_file(os.fspath(image), name)
    if isinstance(image, Image.Image):
        return _load_pil(image, name)
    if isinstance(image, np.ndarray):
        return _load_array(image, name)
    if hasattr(image, "detach") and hasattr(image, "is_floating_point"):
        return _load_tensor(image, name)
    raise TypeError(
        f"{name}: expected one image as a path, a PIL image, a NumPy array or a torch tensor, "
        f"got {type(image).__name__}"
    )


def load_encoded(content: bytes, *, name: str = "image") -> np.ndarray:
    """Read the content of an image file as RGB pixels, as `load_image` reads the file.

    Args:
        content: all bytes of the file.
        name: what error messages call the image.

    Returns:
        (H,W,3) uint8, RGB, C-contiguous.

    Raises:
        ValueError: no image, truncated, or with too many pixels; see `load_image`.
    """
    return _load_stream(io.BytesIO(content), name, name)


def _load_file(path: str, name: str) -> np.ndarray:
    _check_path(path, name)
    with open(path, "rb") as stream:
        return _load_stream(stream, name, f"{name}: file {path!r}")


def _load_stream(stream: BinaryIO, name: str, label: str) -> np.ndarray:
    with _damage_reported(label):
        image = Image.open(stream)
    _check_header(image, label)
    with _damage_reported(label):
        image.load()
        pixels = _to_array(_upright(image))
    return _load_array(pixels, name)


def _load_pil(image: Image.Image, name: str) -> np.ndarray:
    _check_header(image, name)
    with _damage_reported(name):
        pixels = _to_array(image)
    return _load_array(pixels, name)


def _check_path(path: str | bytes, name: str) -> None:
    if not isinstance(path, str):
        raise TypeError(f"{name}: expected a path of type str, got {type(path).__name__}")
    if not path.strip():
        raise ValueError(f"{name}: expected the path of an image file, got the empty path {path!r}")
    if _URL.match(path):
        raise ValueError(
            f"{name}: expected a local path, got the URL {path[:80]!r}; download the file first"
        )
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"{name}: no file at {path!r}; relative paths start at the working directory"
        )
    if not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "not a regular file"
        raise ValueError(f"{name}: expected an image file, got {path!r}, which is {kind}")


@contextmanager
def _damage_reported(label: str) -> Iterator[None]:
    """Turn whatever Pillow raises on bad bytes into a ValueError that names the image."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{label}: expected an image, got bytes in no format Pillow can read; "
            "convert it to PNG or JPEG"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{label}: too many pixels ({error}); {_BOMB_CURE}") from error
    except _DECODER_ERRORS as error:
        raise ValueError(
            f"{label}: the image cannot be decoded ({error}); it is truncated or damaged, "
            "fetch or export it again"
        ) from error


def _check_header(image: Image.Image, label: str) -> None:
    """Refuse, before any pixel is decoded, what must not or cannot be decoded."""
    if isinstance(image, ImageFile.ImageFile):
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:
            raise ValueError(
                f"{label}: too many pixels (expected at most {limit}, got {image.width} x "
                f"{image.height}); {_BOMB_CURE}"
            )
        if image.format == "EPS":  # Pillow would run the file as a Ghostscript program
            raise ValueError(f"{label}: expected pixels, got an EPS drawing; convert it to PNG")
    if image.mode == "F" or (image.mode == "I" and not _is_wide_gray(image)):
        raise ValueError(
            f"{label}: expected 8 or 16 bits per channel, got 32-bit values (mode "
            f"{image.mode!r}), whose range is unknown; scale them to 0..255 and cast to uint8"
        )


def _is_wide_gray(image: Image.Image) -> bool:
    """Whether values cover 0..65535; some decoders report 16-bit gray as 32-bit integers."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _upright(image: Image.Image) -> Image.Image:
    """Undo the EXIF orientation; the image must be loaded, because TIFF undoes its own then."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DECODER_ERRORS:
        return image  # unreadable metadata says nothing about the pixels
    method = _UNDO_ORIENTATION.get(orientation)
    return image if method is None else image.transpose(method)


def _to_array(image: Image.Image) -> np.ndarray:
    if _is_wide_gray(image):
        return np.array(image).astype(np.uint16)
    return np.array(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def _load_tensor(tensor: Any, name: str) -> np.ndarray:
    if tensor.is_floating_point():  # NumPy has no bfloat16, so this cannot wait
        raise ValueError(_float_message(name, str(tensor.dtype), tuple(tensor.shape)))
    return _load_array(tensor.detach().cpu().numpy(), name)


def _load_array(array: np.ndarray, name: str) -> np.ndarray:
    _check_dtype(array, name)
    _check_layout(array.shape, name)
    if array.dtype.itemsize == 2:
        # 65535 / 257 = 255, and an odd divisor has no ties to round.
        array = (array.astype(np.uint32) + 128) // 257
    if array.ndim == 2:
        array = array[..., None]
    if array.shape[2] == 4:
        array = _composite_on_white(array)
    rgb = np.empty((*array.shape[:2], 3), np.uint8)
    rgb[...] = array
    return rgb


def _composite_on_white(rgba: np.ndarray) -> np.ndarray:
    """Blend (H,W,4) of 0..255 with white, rounded to nearest. Returns (H,W,3) uint16."""
    color, alpha = rgba[..., :3].astype(np.uint16), rgba[..., 3:].astype(np.uint16)
    return (color * alpha + 255 * (255 - alpha) + 127) // 255


def _check_dtype(array: np.ndarray, name: str) -> None:
    dtype = array.dtype
    if dtype.kind == "u" and dtype.itemsize <= 2:
        return
    if dtype.kind == "f":
        raise ValueError(_float_message(name, str(dtype), array.shape))
    if dtype.kind == "b":
        raise ValueError(
            f"{name}: expected uint8 pixels, got a bool array of shape {array.shape}; a mask is "
            "no image, but `mask.astype(np.uint8) * 255` is"
        )
    raise ValueError(
        f"{name}: expected uint8 pixels 0..255, got {dtype} of shape {array.shape}; bring the "
        "values to 0..255 and cast with `.astype(np.uint8)`"
    )


def _float_message(name: str, dtype: str, shape: tuple[int, ...]) -> str:
    return (
        f"{name}: expected uint8 pixels 0..255, got {dtype} of shape {shape}; if the values lie in "
        "0..1, multiply by 255, round and cast to uint8"
    )


def _check_layout(shape: tuple[int, ...], name: str) -> None:
    is_gray = len(shape) == 2
    has_channels = len(shape) == 3 and shape[2] in (1, 3, 4)
    if not is_gray and not has_channels:
        cure = ""
        if len(shape) == 3 and shape[0] in (1, 3, 4):
            cure = "; this looks like channels first (C,H,W), move that axis to the end"
        elif len(shape) == 4:
            cure = "; this looks like a batch, pass a list of images"
        raise ValueError(
            f"{name}: expected shape (H,W), (H,W,1), (H,W,3) or (H,W,4), got {shape}{cure}"
        )
    if 0 in shape:
        raise ValueError(f"{name}: expected at least one pixel, got shape {shape}")
