"""Windows around a click, for the network that answers clicks; see `modeling.click_segmenter`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tokenize_anything.centred_views import CentredView, ImagePyramid
from tokenize_anything.image_transform import normalize_pixels, pixel_padding
from tokenize_anything.modeling import TAP
from tokenize_anything.modeling.click_segmenter import NUM_WINDOWS

LARGEST_WINDOW = 1.25  # side of the largest, of the photo's long side


def list_windows(
    click_xy: ArrayLike, image_hw: Sequence[int], side: int, scale: float = 1.0
) -> list[CentredView]:
    """The P windows with one pixel (x, y) of the photo in the middle, the largest first.

    Args:
        click_xy: (2,) original pixels.
        image_hw: of the photo.
        side: v, of each window as it is shown.
        scale: of the sides of what is shown.
    """
    middle = np.asarray(click_xy, dtype=np.float64) + 0.5
    sides = [scale * LARGEST_WINDOW * max(image_hw) / 2**k for k in range(NUM_WINDOWS)]
    return [
        CentredView.around(
            [*(middle - width / 2), *(middle + width / 2)], image_hw, side, 1.0, min_side=0.0
        )
        for width in sides
    ]


def show_windows(model: TAP, photo: ImagePyramid, windows: Sequence[CentredView]) -> Tensor:
    """Windows of a photo as a model takes them, (W,3,v,v), on its device."""
    padding = pixel_padding(model.config.pixels)
    shown = torch.from_numpy(np.stack([window.show(photo, padding) for window in windows]))
    return normalize_pixels(shown.to(model.device), model.config.pixels).to(model.dtype)


def coords_in_windows(coords_xy: Tensor, home: Tensor, side: int) -> Tensor:
    """From pixels of one window of each prompt to those of all its windows.

    Args:
        coords_xy: (R,N,2) pixels of the window `home`.
        home: (R,) which of the windows that is.
        side: v.

    Returns:
        (R,P,N,2).
    """
    windows = torch.arange(NUM_WINDOWS, device=home.device)
    ratio = 2.0 ** (windows - home[:, None])
    middle = (side - 1) / 2
    return (coords_xy[:, None] - middle) * ratio[:, :, None, None] + middle
