"""Boxes and masks as numbers: conversions, run-length codes, overlaps and outlines.

Pixel convention: a box `(x0, y0, x1, y1)` covers columns x0 .. x1-1 and rows y0 .. y1-1, so that
`x1 - x0` is its width and the right and bottom edges are exclusive.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Upper bound of the temporary float32 copies made by mask_iou, in bytes.
_IOU_CHUNK_BYTES = 64 * 2**20
MIN_WINDOW = 32


def zoom_window(
    centre_xy: ArrayLike, side: float, image_hw: tuple[int, int]
) -> tuple[int, int, int, int]:
    """A square window of an image, moved inside of it where it would stick out.

    Along an axis that is shorter than the window, the window is the whole axis. No window is
    smaller than `MIN_WINDOW` pixels, where the image is not.

    Args:
        centre_xy: (2,) of the window, original pixels.
        side: of the window, original pixels.
        image_hw: of the image.

    Returns:
        x0, y0, x1, y1, original pixels.
    """
    length = max(round(float(side)), MIN_WINDOW)
    starts, ends = [], []
    for middle, limit in zip(np.asarray(centre_xy).tolist(), image_hw[::-1], strict=True):
        used = min(length, limit)
        start = min(max(round(middle - used / 2), 0), limit - used)
        starts.append(start)
        ends.append(start + used)
    return starts[0], starts[1], ends[0], ends[1]


def to_numpy(name: str, values: ArrayLike) -> NDArray[Any]:
    """Turn nested lists, arrays or tensors of any device into one NumPy array.

    Tensors are recognised by their `detach` method, so no tensor library is imported. The result
    may share memory with the input.

    Args:
        name: what the caller calls the values; the error messages start with it.
        values: anything rectangular.

    Raises:
        ValueError: rows of different lengths.
    """
    try:
        return np.asarray(_without_tensors(values))
    except ValueError as error:
        raise ValueError(
            f"{name}: expected a rectangular array, got rows of different lengths; give every row "
            f"the same length, or build the rows one by one and concatenate them ({error})"
        ) from error


def _without_tensors(values: Any) -> Any:
    if isinstance(values, (list, tuple)):
        return [_without_tensors(value) for value in values]
    if not hasattr(values, "detach"):
        return values
    tensor = values.detach().cpu()
    try:
        return tensor.numpy()
    except TypeError:  # bfloat16 has no NumPy counterpart
        return tensor.float().numpy()


def select_rows(index: Any, length: int) -> NDArray[np.int64]:
    """Row numbers that an index picks from `length` rows.

    Args:
        index: int (gives one row), slice, boolean array of `length`, or integers.
        length: how many rows there are.

    Raises:
        IndexError: out of range, a boolean array of another length, or more than one axis.
    """
    if not isinstance(index, slice):
        index = to_numpy("index", index)
        index = index.astype(np.int64) if index.shape == (0,) else index
    rows = np.atleast_1d(np.arange(length)[index])
    if rows.ndim != 1:
        raise IndexError(f"index: expected one axis, got shape {rows.shape}")
    return rows


def require_masks(name: str, masks: ArrayLike) -> NDArray[np.bool_]:
    """Check a stack of masks and return it as booleans; any nonzero pixel belongs to the mask.

    Args:
        name: what the caller calls the masks; the error messages start with it.
        masks: (R,H,W) booleans or finite numbers.

    Raises:
        TypeError: not booleans or numbers.
        ValueError: not three axes, no pixels, or NaN or infinite values.
    """
    array = to_numpy(name, masks)
    if array.ndim != 3 or 0 in array.shape[1:]:
        raise ValueError(
            f"{name}: expected (R,H,W) with H and W at least 1, got shape {array.shape}; "
            f"write mask[None] for a single (H,W) mask"
        )
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected booleans or numbers, got dtype {array.dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite values, got NaN or infinity; use 0 and 1")
    return array.astype(bool, copy=False)


def _require_mask(mask: ArrayLike) -> NDArray[np.bool_]:
    array = to_numpy("mask", mask)
    if array.ndim != 2:
        raise ValueError(
            f"mask: expected one mask (H,W), got shape {array.shape}; take one mask of a stack"
        )
    return require_masks("mask", array[None])[0]


# --- boxes --------------------------------------------------------------------------------------


def xyxy_to_xywh(boxes_xyxy: ArrayLike) -> NDArray[np.float32]:
    """(...,4) corners x0, y0, x1, y1 to (...,4) corner and size x0, y0, width, height, float32.

    Raises:
        ValueError: the last axis is not 4.
    """
    boxes = _require_boxes("boxes_xyxy", boxes_xyxy)
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def xywh_to_xyxy(boxes_xywh: ArrayLike) -> NDArray[np.float32]:
    """(...,4) corner and size x0, y0, width, height to (...,4) corners x0, y0, x1, y1, float32.

    Raises:
        ValueError: the last axis is not 4.
    """
    boxes = _require_boxes("boxes_xywh", boxes_xywh)
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def _require_boxes(name: str, boxes: ArrayLike) -> NDArray[np.float32]:
    array = to_numpy(name, boxes)
    if array.shape == (0,):
        array = array.reshape(0, 4)
    if array.ndim == 0 or array.shape[-1] != 4:
        raise ValueError(f"{name}: expected 4 numbers on the last axis, got shape {array.shape}")
    return array.astype(np.float32)


def masks_to_boxes(masks: ArrayLike) -> NDArray[np.float32]:
    """Tight boxes of masks.

    Args:
        masks: (R,H,W); nonzero pixels belong to the mask.

    Returns:
        (R,4) float32 x0, y0, x1, y1 in pixels; right and bottom are one past the last column and
        row, so areas are right. An empty mask gives four zeros.

    Example:
        >>> mask = np.zeros((1, 5, 7), bool); mask[0, 1:3, 2:6] = True
        >>> masks_to_boxes(mask)
        array([[2., 1., 6., 3.]], dtype=float32)
    """
    stack = require_masks("masks", masks)
    x0, x1 = _first_and_end(np.logical_or.reduce(stack, axis=1))
    y0, y1 = _first_and_end(np.logical_or.reduce(stack, axis=2))
    return np.stack([x0, y0, x1, y1], axis=-1).astype(np.float32)


def _first_and_end(used: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(R,n) flags to the first set position and one past the last; zeros where none is set."""
    first = used.argmax(axis=1)
    end = used.shape[1] - used[:, ::-1].argmax(axis=1)
    return first, np.where(used.any(axis=1), end, 0)


# --- run-length codes ---------------------------------------------------------------------------


def encode_rle(mask: ArrayLike) -> dict[str, Any]:
    """Compressed COCO run-length code of one mask, the same bytes pycocotools writes.

    Args:
        mask: (H,W); nonzero pixels belong to the mask.

    Returns:
        `{"size": [H, W], "counts": text}`, ready for JSON.

    Raises:
        ValueError: not two axes.
    """
    pixels = _require_mask(mask)
    flat = pixels.ravel(order="F")  # COCO runs go down the columns
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    # The first run counts zeros, so a mask that starts with a one begins with a run of 0.
    bounds = np.concatenate([[0, 0] if flat[0] else [0], edges, [flat.size]])
    height, width = pixels.shape
    return {"size": [height, width], "counts": _pack_counts(np.diff(bounds))}


def decode_rle(rle: Mapping[str, Any]) -> NDArray[np.bool_]:
    """(H,W) mask of a COCO run-length code, compressed (text or bytes) or a plain list of runs.

    Raises:
        TypeError: `counts` is neither text nor a list of integers.
        ValueError: missing keys, a damaged text, negative runs, or runs that do not add up to H*W.
    """
    height, width, runs = _read_rle(rle)
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape((height, width), order="F")


def rle_area(rle: Mapping[str, Any]) -> int:
    """Number of pixels of a run-length code, without making the mask; checks as `decode_rle`."""
    _, _, runs = _read_rle(rle)
    return int(runs[1::2].sum())


def _read_rle(rle: Mapping[str, Any]) -> tuple[int, int, NDArray[np.int64]]:
    """Height, width and the runs, which are known to add up to height * width."""
    if not isinstance(rle, Mapping) or not {"size", "counts"} <= set(rle):
        raise ValueError(f"rle: expected a mapping with 'size' and 'counts', got {str(rle)[:80]}")
    height, width = _rle_size(rle["size"])
    runs = _rle_runs(rle["counts"])
    if (runs < 0).any():
        raise ValueError(f"rle: expected runs of at least 0, got {runs.min()}; counts are damaged")
    total = sum(runs.tolist())  # Python integers cannot overflow
    if total != height * width:
        raise ValueError(
            f"rle: expected runs that add up to {height} * {width} = {height * width}, got "
            f"{total}; counts are damaged or size belongs to another image"
        )
    return height, width, runs


def _rle_size(size: Any) -> tuple[int, int]:
    is_pair = isinstance(size, (list, tuple)) and len(size) == 2
    if not is_pair or not all(isinstance(n, (int, np.integer)) and n > 0 for n in size):
        raise ValueError(f"rle: expected size [H, W] of two positive integers, got {size!r}")
    return int(size[0]), int(size[1])


def _rle_runs(counts: Any) -> NDArray[np.int64]:
    if isinstance(counts, (str, bytes)):
        return _unpack_counts(counts)
    runs = np.asarray(counts)
    if runs.ndim != 1 or (runs.size and runs.dtype.kind not in "iu"):
        raise TypeError(
            f"rle: expected counts as text or a flat list of integers, got {type(counts).__name__}"
        )
    return runs.astype(np.int64)


# The compressed text stores run i as its difference to run i-2 (from the fourth run on), cut into
# groups of five bits, lowest first; bit 5 marks "more follows" and 48 makes the group printable.
_GROUP_BITS, _MORE, _SIGN, _FIRST_CHARACTER = 5, 32, 16, 48
_MAX_GROUPS = 8  # 40 bits, more than any image needs


def _pack_counts(runs: NDArray[np.int64]) -> str:
    values = runs.astype(np.int64)
    values[3:] -= runs[1:-2]
    shifts = _GROUP_BITS * np.arange(_MAX_GROUPS)
    groups = (values[:, None] >> shifts) & (_MORE - 1)  # (runs, groups)
    # A value is finished with a group once the rest is only copies of the group's sign bit.
    rest = values[:, None] >> (shifts + _GROUP_BITS)
    has_more = rest != np.where(groups & _SIGN, -1, 0)
    is_written = np.concatenate([np.ones((len(values), 1), bool), has_more[:, :-1]], axis=1)
    characters = groups + np.where(has_more, _MORE, 0) + _FIRST_CHARACTER
    return characters[is_written].astype(np.uint8).tobytes().decode("ascii")


def _unpack_counts(text: str | bytes) -> NDArray[np.int64]:
    data = text.encode("utf-8") if isinstance(text, str) else text
    groups = np.frombuffer(data, np.uint8).astype(np.int64) - _FIRST_CHARACTER
    if groups.size == 0 or groups.min() < 0 or groups.max() >= 2 * _MORE or groups[-1] & _MORE:
        raise ValueError(f"rle: expected compressed counts, got damaged text {data[:40]!r}")
    ends = np.flatnonzero(~groups & _MORE)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts >= _MAX_GROUPS).any():
        raise ValueError(f"rle: a run is longer than {_MAX_GROUPS} groups; counts are damaged")
    place = np.arange(groups.size) - np.repeat(starts, ends - starts + 1)
    values = np.add.reduceat((groups & (_MORE - 1)) << (_GROUP_BITS * place), starts)
    is_negative = (groups[ends] & _SIGN) != 0
    values = values - np.where(is_negative, 1 << (_GROUP_BITS * (place[ends] + 1)), 0)
    # Undo the differences: odd runs from the second on, even runs from the third on.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


# --- overlap and outline ------------------------------------------------------------------------


def mask_iou(masks: ArrayLike, others: ArrayLike) -> NDArray[np.float32]:
    """Intersection over union of every mask of one stack with every mask of another.

    Args:
        masks: (R,H,W); nonzero pixels belong to the mask.
        others: (Q,H,W) of the same image size.

    Returns:
        (R,Q) float32 in [0,1]; 0 where both masks are empty. Memory beyond the inputs is bounded.

    Raises:
        ValueError: the image sizes differ.
    """
    left, right = require_masks("masks", masks), require_masks("others", others)
    if left.shape[1:] != right.shape[1:]:
        raise ValueError(
            f"mask_iou: expected masks of one image size, got H, W = {left.shape[1:]} and "
            f"{right.shape[1:]}; resize one stack first"
        )
    intersection = np.zeros((len(left), len(right)))
    for columns in _pixel_chunks(left, right):
        # float32 products of 0 and 1 are exact here: a chunk holds fewer than 2**24 pixels.
        intersection += columns[0].astype(np.float32) @ columns[1].astype(np.float32).T
    areas = left.sum(axis=(1, 2))[:, None] + right.sum(axis=(1, 2))[None, :]
    union = areas - intersection
    return (intersection / np.maximum(union, 1)).astype(np.float32)


def _pixel_chunks(
    left: NDArray[np.bool_], right: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Cut both (R,H*W) stacks along the pixels into pieces whose float32 copies stay small."""
    num_pixels = left.shape[1] * left.shape[2]
    flat = left.reshape(-1, num_pixels), right.reshape(-1, num_pixels)
    step = _IOU_CHUNK_BYTES // (4 * max(1, len(left) + len(right)))
    step = min(max(step, 1), 2**24 - 1)
    for start in range(0, num_pixels, step):
        yield flat[0][:, start : start + step], flat[1][:, start : start + step]


def mask_boundary(mask: ArrayLike) -> NDArray[np.bool_]:
    """Inner boundary: (H,W) pixels of the mask with one of their 4 neighbours outside it.

    What lies beyond the border of the picture counts as outside.
    """
    pixels = _require_mask(mask)
    padded = np.pad(pixels, 1)
    is_inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return pixels & ~is_inner


def masks_to_polygons(masks: ArrayLike) -> list[list[NDArray[np.float32]]]:
    """Outer outlines of masks; holes are not reported.

    Args:
        masks: (R,H,W); nonzero pixels belong to the mask.

    Returns:
        For each mask its outlines, largest area first, each (P,2) float32 x, y of pixel positions.
        Outlines of fewer than 3 points (single pixels and lines) are left out.
    """
    import cv2

    polygons = []
    for mask in require_masks("masks", masks):
        outlines, _ = cv2.findContours(
            mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
        )
        large = [outline for outline in outlines if len(outline) >= 3]
        large.sort(key=cv2.contourArea, reverse=True)
        polygons.append([outline[:, 0].astype(np.float32) for outline in large])
    return polygons


def innermost_point(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """The pixel (x, y) of a mask (H,W) that is farthest from its border."""
    import cv2

    padded = np.pad(mask, 1).astype(np.uint8)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = np.unravel_index(int(distance.argmax()), distance.shape)
    return int(column), int(row)
