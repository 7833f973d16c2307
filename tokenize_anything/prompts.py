"""Visual prompts: what a user points at, as labelled points in original pixels.

Every prompt is a short list of points, one list per region: clicks, the two corners of a box, or
points picked from a mask or sketch. All coordinates are (x, y) = (column, row).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tokenize_anything.config import PointLabel
from tokenize_anything.geometry import require_masks, select_rows, to_numpy

NUM_SKETCH_POINTS = 9
_MAX_LISTED_PROBLEMS = 5


_CLICK_LABELS = (PointLabel.BACKGROUND, PointLabel.FOREGROUND, PointLabel.PADDING)


@dataclass(frozen=True, init=False, eq=False)
class PointPrompts:
    """Prompts of one image: R regions of N labelled points each.

    Lists, arrays and tensors are accepted; they are checked, copied and kept read-only. No region
    at all (R = 0) is legal. The coordinate of a padding point may be any finite number.

    The model sees a padding point as one more token, so those a caller writes count. Those that
    `pad_to` and `concatenate` append only make the rows equally long, and `num_points` (R,) says
    how many points come before them: what a region gets does not depend on its neighbours.

    Args:
        coords_xy: (R,N,2) x, y in original pixels; stored as float32.
        labels: (R,N) values of `PointLabel`; stored as int64. The corners of a box come first.

    Raises:
        TypeError: coordinates or labels that are not numbers.
        ValueError: wrong shapes, NaN or infinite coordinates, labels outside 0..4, box corners
            that are not points 0 and 1 of their region, or boxes without area.

    Example:
        >>> PointPrompts.from_points([[320, 240]]).labels  # one click and its padding point
        array([[1, 4]])
    """

    coords_xy: NDArray[np.float32]
    labels: NDArray[np.int64]
    num_points: NDArray[np.int64]

    def __init__(self, coords_xy: ArrayLike, labels: ArrayLike) -> None:
        coords = _as_coords("coords_xy", coords_xy)
        label_array = _as_labels("labels", labels)
        _check_shapes(coords, label_array)
        problems = [*_coordinate_problems(coords), *_box_problems(coords, label_array)]
        if problems:
            raise ValueError(f"PointPrompts: {_join_problems(problems)}")
        num_points = np.full(len(coords), coords.shape[1], dtype=np.int64)
        for name, array in (
            ("coords_xy", coords), ("labels", label_array), ("num_points", num_points),
        ):  # fmt: skip
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @classmethod
    def from_points(cls, points: ArrayLike, labels: ArrayLike | None = None) -> PointPrompts:
        """Clicks, with the padding point that the model expects after a prompt without a box.

        Args:
            points: (R,2) one click per region, or (R,N,2) several clicks per region.
            labels: (R,) or (R,N): 1 foreground, 0 background, 4 padding; all foreground by default.

        Returns:
            Prompts of 2 or N+1 points per region.
        """
        coords, click_labels = _as_clicks(points, labels)
        return cls(*_with_padding(coords, click_labels, coords.shape[1] + 1))

    @classmethod
    def from_boxes(
        cls,
        boxes_xyxy: ArrayLike,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
    ) -> PointPrompts:
        """Boxes, each optionally refined by clicks; no padding point is added.

        Args:
            boxes_xyxy: (R,4) x0, y0, x1, y1 in original pixels.
            points: (R,2) or (R,N,2) clicks for the same regions, in the same order.
            labels: (R,) or (R,N) labels of the clicks, as in `from_points`.

        Returns:
            Prompts of 2 or 2+N points per region, corners first.
        """
        boxes = to_numpy("boxes_xyxy", boxes_xyxy)
        boxes = boxes.reshape(0, 4) if boxes.shape == (0,) else boxes
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(
                f"boxes_xyxy: expected (R,4), got shape {boxes.shape}; "
                f"write [[x0, y0, x1, y1]] for a single box"
            )
        if points is None and labels is not None:
            raise ValueError("labels: expected points to go with them, got labels alone")
        corners = _as_coords("boxes_xyxy", boxes).reshape(-1, 2, 2)
        corner_labels = np.tile([PointLabel.TOP_LEFT, PointLabel.BOTTOM_RIGHT], (len(boxes), 1))
        if points is None:
            return cls(corners, corner_labels)
        clicks, click_labels = _as_clicks(points, labels)
        if len(clicks) != len(corners):
            raise ValueError(
                f"points: expected clicks for {len(corners)} regions, one row per box, "
                f"got {len(clicks)} rows"
            )
        return cls(
            np.concatenate([corners, clicks], axis=1),
            np.concatenate([corner_labels, click_labels], axis=1),
        )

    @classmethod
    def from_masks(cls, masks: ArrayLike) -> PointPrompts:
        """Nine foreground points per mask, spread evenly over its pixels in reading order.

        Args:
            masks: (R,H,W), or (H,W) for one region; nonzero pixels belong to the mask. The size
                must be the image's, see `check_mask_size`.

        Returns:
            Prompts of 10 points per region: 9 points and the padding point.

        Raises:
            ValueError: a mask without any pixel, or wrong axes.
        """
        array = to_numpy("masks", masks)
        stack = require_masks("masks", array[None] if array.ndim == 2 else array)
        empty = np.flatnonzero(~stack.any(axis=(1, 2)))
        if empty.size:
            raise ValueError(
                f"masks: expected at least one nonzero pixel per mask, got none in mask "
                f"{', '.join(map(str, empty[:_MAX_LISTED_PROBLEMS]))}; draw it or leave it out"
            )
        points = [_spread_points(mask) for mask in stack]
        return cls.from_points(np.reshape(points, (len(stack), NUM_SKETCH_POINTS, 2)))

    @classmethod
    def from_sketch(cls, sketch: ArrayLike) -> PointPrompts:
        """One region from one drawn layer, by the rule of `from_masks`.

        Args:
            sketch: (H,W); nonzero pixels were drawn.
        """
        array = to_numpy("sketch", sketch)
        if array.ndim != 2:
            raise ValueError(
                f"sketch: expected (H,W), got shape {array.shape}; use one channel of a colour "
                f"image, and from_masks for several layers"
            )
        return cls.from_masks(array)

    @classmethod
    def concatenate(cls, prompts: Sequence[PointPrompts]) -> PointPrompts:
        """Stack the regions of several prompts; shorter ones are filled, see `num_points`."""
        if not prompts:
            raise ValueError("prompts: expected at least one PointPrompts, got an empty sequence")
        num_points = max(prompt.labels.shape[1] for prompt in prompts)
        padded = [prompt.pad_to(num_points) for prompt in prompts]
        joined = cls(
            np.concatenate([prompt.coords_xy for prompt in padded]),
            np.concatenate([prompt.labels for prompt in padded]),
        )
        return joined._counting(np.concatenate([prompt.num_points for prompt in prompts]))

    def pad_to(self, num_points: int) -> PointPrompts:
        """The same prompts with padding points appended until each region has `num_points`."""
        if num_points < self.labels.shape[1]:
            raise ValueError(
                f"num_points: expected at least the {self.labels.shape[1]} points the prompts "
                f"have, got {num_points}"
            )
        padded = PointPrompts(*_with_padding(self.coords_xy, self.labels, num_points))
        return padded._counting(self.num_points)

    @property
    def is_box(self) -> NDArray[np.bool_]:
        """(R,) whether each region is prompted by a box, alone or with clicks."""
        return self.labels[:, 0] == PointLabel.TOP_LEFT

    def validate_for_image(self, height: int, width: int) -> None:
        """Check that every prompt touches an image of this size.

        Clicks must lie in 0 <= x <= width and 0 <= y <= height. A box may stick out, but must
        overlap the image.

        Raises:
            ValueError: naming the prompts, their coordinates and the size of the image.
        """
        problems = [
            *_far_click_problems(self.coords_xy, self.labels, height, width),
            *_far_box_problems(self.coords_xy, self.is_box, height, width),
        ]
        if problems:
            raise ValueError(
                f"PointPrompts: {_join_problems(problems)}; expected prompts inside the image of "
                f"width {width} and height {height}, as (x, y) in its original pixels"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> PointPrompts:
        """Select regions by int (a prompt of length 1), slice, boolean or integer array."""
        rows = select_rows(index, len(self))
        return PointPrompts(self.coords_xy[rows], self.labels[rows])._counting(
            self.num_points[rows]
        )

    def __iter__(self) -> Iterator[PointPrompts]:
        return (self[row] for row in range(len(self)))

    def _counting(self, num_points: NDArray[np.int64]) -> PointPrompts:
        """Finish a new object: take over how many points count."""
        num_points.setflags(write=False)
        object.__setattr__(self, "num_points", num_points)
        return self


def check_mask_size(masks: ArrayLike, height: int, width: int) -> None:
    """Check that mask prompts, (R,H,W) or (H,W), have the size of the image they point at.

    Raises:
        ValueError: naming both sizes.
    """
    shape = to_numpy("masks", masks).shape
    if len(shape) not in (2, 3) or shape[-2:] != (height, width):
        raise ValueError(
            f"masks: expected the image's size, height {height} and width {width}, got shape "
            f"{shape}; resize the mask without smoothing, for instance with cv2.resize(mask, "
            f"({width}, {height}), interpolation=cv2.INTER_NEAREST)"
        )


# --- reading and checking -----------------------------------------------------------------------


def _as_coords(name: str, values: ArrayLike) -> NDArray[np.float32]:
    """A float32 copy; what does not fit float32 becomes infinite and is refused later."""
    array = to_numpy(name, values)
    if array.size and array.dtype.kind not in "iuf":
        raise TypeError(f"{name}: expected numbers, got dtype {array.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array(array, dtype=np.float32)


def _as_labels(name: str, values: ArrayLike) -> NDArray[np.int64]:
    array = to_numpy(name, values)
    if array.size and array.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected integers 0..4, got dtype {array.dtype}")
    is_known = np.isin(array, [label.value for label in PointLabel])
    if not is_known.all():
        raise ValueError(
            f"{name}: expected 0 background, 1 foreground, 2 top-left, 3 bottom-right or "
            f"4 padding, got {array[~is_known].flat[0]}"
        )
    return array.astype(np.int64)


def _as_clicks(
    points: ArrayLike, labels: ArrayLike | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Clicks as (R,N,2) coordinates and (R,N) labels; (R,2) means one click per region."""
    coords = _as_coords("points", points)
    if coords.shape == (0,):
        coords = coords.reshape(0, 1, 2)
    if coords.ndim not in (2, 3) or coords.shape[-1] != 2:
        raise ValueError(
            f"points: expected (R,2) or (R,N,2), got shape {coords.shape}; "
            f"write [[x, y]] for a single click"
        )
    coords = coords[:, None] if coords.ndim == 2 else coords
    if labels is None:
        return coords, np.full(coords.shape[:2], PointLabel.FOREGROUND, dtype=np.int64)
    click_labels = _as_labels("labels", labels)
    if click_labels.ndim == 1 and coords.shape[1] == 1:
        click_labels = click_labels[:, None]
    if click_labels.shape != coords.shape[:2]:
        raise ValueError(
            f"labels: expected one label per click, {coords.shape[:2]}, got {click_labels.shape}"
        )
    if not np.isin(click_labels, _CLICK_LABELS).all():
        raise ValueError(
            "labels: expected 0 background, 1 foreground or 4 padding for clicks, got labels of "
            "box corners; use from_boxes for boxes"
        )
    return coords, click_labels


def _with_padding(
    coords: NDArray[np.float32], labels: NDArray[np.int64], num_points: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    num_missing = num_points - labels.shape[1]
    return (
        np.pad(coords, ((0, 0), (0, num_missing), (0, 0))),
        np.pad(labels, ((0, 0), (0, num_missing)), constant_values=PointLabel.PADDING),
    )


def _spread_points(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(H,W) mask with pixels to (9,2) x, y at even steps through its pixels in reading order."""
    rows, columns = np.nonzero(mask)
    steps = np.linspace(0, len(rows), NUM_SKETCH_POINTS + 2)[1:-1].astype(np.int64)
    return np.stack([columns[steps], rows[steps]], axis=-1).astype(np.float32)


def _check_shapes(coords: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    if coords.ndim != 3 or coords.shape[2] != 2 or coords.shape[1] == 0:
        raise ValueError(
            f"coords_xy: expected (R,N,2) with N at least 1, got shape {coords.shape}; "
            f"use PointPrompts.from_points for plain clicks"
        )
    if labels.shape != coords.shape[:2]:
        raise ValueError(
            f"labels: expected one label per point, {coords.shape[:2]}, got {labels.shape}"
        )


def _coordinate_problems(coords: NDArray[np.float32]) -> list[str]:
    bad_rows = np.flatnonzero(~np.isfinite(coords).all(axis=(1, 2)))
    return [
        f"region {row}: expected finite coordinates, got {coords[row].tolist()}" for row in bad_rows
    ]


def _box_problems(coords: NDArray[np.float32], labels: NDArray[np.int64]) -> list[str]:
    is_corner = (labels == PointLabel.TOP_LEFT) | (labels == PointLabel.BOTTOM_RIGHT)
    is_proper = ~is_corner.any(axis=1)  # no box, or exactly labels 2, 3 in the first two places
    if labels.shape[1] >= 2:
        corners = np.array([PointLabel.TOP_LEFT, PointLabel.BOTTOM_RIGHT])
        is_proper |= (labels[:, :2] == corners).all(axis=1) & ~is_corner[:, 2:].any(axis=1)
    problems = [
        f"region {row}: expected a box as label 2 at point 0 and label 3 at point 1, got labels "
        f"{labels[row].tolist()}; reorder the points"
        for row in np.flatnonzero(~is_proper)
    ]
    for row in np.flatnonzero(is_proper & is_corner.any(axis=1)):
        (x0, y0), (x1, y1) = coords[row, :2].tolist()
        if x1 < x0 or y1 < y0:
            problems.append(
                f"region {row}: expected x0 < x1 and y0 < y1, got box {[x0, y0, x1, y1]}; "
                f"swap its corners"
            )
        elif x1 == x0 or y1 == y0:
            problems.append(
                f"region {row}: expected a box with area, got {[x0, y0, x1, y1]}; "
                f"use a click for a single position"
            )
    return problems


def _far_click_problems(
    coords: NDArray[np.float32], labels: NDArray[np.int64], height: int, width: int
) -> list[str]:
    x, y = coords[..., 0], coords[..., 1]
    is_outside = (x < 0) | (x > width) | (y < 0) | (y > height)
    is_click = (labels == PointLabel.BACKGROUND) | (labels == PointLabel.FOREGROUND)
    return [
        f"region {row}: point {point} at {tuple(coords[row, point].tolist())} is outside the image"
        for row, point in np.argwhere(is_outside & is_click)
    ]


def _far_box_problems(
    coords: NDArray[np.float32], is_box: NDArray[np.bool_], height: int, width: int
) -> list[str]:
    rows = np.flatnonzero(is_box)
    boxes = coords[rows, :2].reshape(-1, 4)
    x0, y0, x1, y1 = boxes.T
    is_apart = (x1 <= 0) | (y1 <= 0) | (x0 >= width) | (y0 >= height)
    return [
        f"region {row}: box {box.tolist()} does not overlap the image"
        for row, box in zip(rows[is_apart], boxes[is_apart], strict=True)
    ]


def _join_problems(problems: list[str]) -> str:
    listed = "; ".join(problems[:_MAX_LISTED_PROBLEMS])
    num_more = len(problems) - _MAX_LISTED_PROBLEMS
    return f"{listed}; and {num_more} more" if num_more > 0 else listed
