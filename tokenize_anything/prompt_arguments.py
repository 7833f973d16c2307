"""The prompt arguments of one call: handed out to their images, checked, and joined per image."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenize_anything.prompts import PointPrompts, check_mask_size


@dataclass(frozen=True)
class PromptArguments:
    """What a caller gave for one photo, or, before `split`, lists of that for several photos.

    points: (R,2) or (R,N,2) clicks, original pixels.
    labels: of the points.
    boxes: (R,4) x0, y0, x1, y1.
    masks: (H,W) or (R,H,W).
    prompts: a PointPrompts.
    where: which photo of several they belong to, for error messages.
    """

    points: Any = None
    labels: Any = None
    boxes: Any = None
    masks: Any = None
    prompts: Any = None
    where: str = ""

    def split(self, num_images: int) -> list[PromptArguments]:
        """Hand out lists of one entry per image; an entry may be None.

        Raises:
            TypeError: an argument that is no list.
            ValueError: a list of another length than that of the images.
        """
        rows: list[dict[str, Any]] = [{"where": f"images[{index}]"} for index in range(num_images)]
        for field in dataclasses.fields(self)[:-1]:
            values = getattr(self, field.name)
            if values is not None:
                _check_one_per_image(field.name, values, num_images)
                for row, value in zip(rows, values, strict=True):
                    row[field.name] = value
        return [PromptArguments(**row) for row in rows]

    def check(self) -> None:
        """Check what can be checked without the photo; masks wait for its size.

        Raises:
            TypeError, ValueError: no prompt at all, or one that cannot be (see `PointPrompts`).
        """
        with self._naming_the_image():
            self._collect([])

    def join(self, height: int, width: int) -> PointPrompts:
        """All regions of one photo, in the order points, boxes, masks, prompts.

        Raises:
            TypeError, ValueError: as `check`; masks of another size than the photo, or empty; or
                prompts outside the photo.
        """
        with self._naming_the_image():
            masks = [] if self.masks is None else [self._collect_masks(height, width)]
            prompts = PointPrompts.concatenate(self._collect(masks))
            prompts.validate_for_image(height, width)
            return prompts

    def _collect(self, masks: list[PointPrompts]) -> list[PointPrompts]:
        parts = []
        if self.points is not None:
            parts.append(self._collect_points())
        elif self.labels is not None:
            raise ValueError("labels: expected points to go with them, got labels alone")
        if self.boxes is not None:
            parts.append(PointPrompts.from_boxes(self.boxes))
        if isinstance(self.masks, str | os.PathLike):
            raise TypeError(
                f"masks: expected pixels, got the path {os.fspath(self.masks)!r}; read it first, "
                "for instance with np.array(PIL.Image.open(path))"
            )
        parts.extend(masks)
        if self.prompts is not None:
            parts.append(require_prompts(self.prompts))
        if not parts and self.masks is None:
            raise ValueError(
                "prompts: expected points, boxes, masks or prompts, got none of them; an empty "
                "list, such as points=[], asks for no region"
            )
        return parts

    def _collect_points(self) -> PointPrompts:
        if isinstance(self.points, PointPrompts):
            raise TypeError(
                "points: expected coordinates (R,2) or (R,N,2), got a PointPrompts; pass it as "
                "prompts=..."
            )
        return PointPrompts.from_points(self.points, self.labels)

    def _collect_masks(self, height: int, width: int) -> PointPrompts:
        if isinstance(self.masks, list | tuple) and not self.masks:
            return PointPrompts.from_points([])
        check_mask_size(self.masks, height, width)
        return PointPrompts.from_masks(self.masks)

    @contextmanager
    def _naming_the_image(self) -> Iterator[None]:
        """Tell which of several images an error is about."""
        try:
            yield
        except (TypeError, ValueError) as error:
            if not self.where:
                raise
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{self.where}: {error}") from error


def require_prompts(prompts: Any) -> PointPrompts:
    """Check that an argument called prompts is a PointPrompts, and return it."""
    if isinstance(prompts, PointPrompts):
        return prompts
    cure = "build it with PointPrompts.from_points, from_boxes, from_masks or from_sketch"
    if isinstance(prompts, list | tuple):
        cure = "a list belongs to a list of images; PointPrompts.concatenate joins regions of one"
    raise TypeError(f"prompts: expected a PointPrompts, got {type(prompts).__name__}; {cure}")


def _check_one_per_image(name: str, values: Any, num_images: int) -> None:
    is_array = isinstance(values, np.ndarray) or hasattr(values, "detach")
    if not isinstance(values, list | tuple) and not (is_array and values.ndim):
        raise TypeError(
            f"{name}: expected a list with one entry for each of {num_images} images, got "
            f"{type(values).__name__}"
        )
    if len(values) != num_images:
        raise ValueError(
            f"{name}: expected one entry for each of {num_images} images, got {len(values)}; "
            "write None for an image without"
        )
