"""The head that predicts IoU, trained once more on what a finished model really gets right.

A model that looks at a click in views of several sizes chooses between them by predicted IoU (see
`zooming`). In stage 1 the head saw regions that fit their view; here it sees the views of the
choice itself, also those that are too small or too large for the region.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from tokenize_anything.config import NUM_MASK_SLOTS
from tokenize_anything.data.region_dataset import read_image
from tokenize_anything.data.samples import ImageRecord, RegionAnnotation
from tokenize_anything.geometry import decode_rle, innermost_point
from tokenize_anything.image_transform import prepare_images, restore_masks
from tokenize_anything.modeling import TAP
from tokenize_anything.prompts import PointPrompts
from tokenize_anything.training.config import require_counts
from tokenize_anything.training.token_heads import HeadConfig, fit_head
from tokenize_anything.views import View, list_views

IOU_HEAD = HeadConfig(token_dropout=0.2, token_noise=0.2, batch_size=512, num_epochs=40)


@dataclass(frozen=True, kw_only=True)
class IouSampling:
    """Which prompts are asked.

    max_images, regions_per_image: at most so many photos, and regions with a mask in each.
    box_noise: standard deviation of the corners of box prompts, in sides of the box.
    """

    max_images: int = 1000
    regions_per_image: int = 4
    box_noise: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        require_counts(self, ("max_images", "regions_per_image"))


@dataclass(frozen=True, eq=False)
class IouSamples:
    """S prompts in views: tokens (S,C), the IoU of each slot (S,4), and which are boxes (S,)."""

    tokens: Tensor
    ious: Tensor
    is_box: Tensor


@torch.no_grad()
def collect_iou_samples(
    model: TAP, records: Sequence[ImageRecord], config: IouSampling | None = None
) -> IouSamples:
    """Ask a model about regions by a click and a box each, in all their views.

    A click is the innermost pixel of the region, or a random one, as often. The IoU is that of the
    whole photo: what a view cuts off counts as missed.

    Args:
        model: in evaluation mode.
        records: photos with true masks.
        config: how many, and the seed of the draws.

    Raises:
        FileNotFoundError, ValueError: a photo or a mask cannot be read.
    """
    config = config or IouSampling()
    rng = np.random.default_rng(config.seed)
    chosen = rng.permutation(len(records))[: config.max_images].tolist()
    parts: list[IouSamples] = []
    for index in tqdm(chosen, desc="IoU samples", mininterval=5):
        regions = [region for region in records[index].regions if region.rle is not None]
        picks = rng.permutation(len(regions))[: config.regions_per_image].tolist()
        if picks:
            rgb = read_image(records[index])
            masks = np.stack([decode_rle(regions[pick].rle) for pick in picks])
            prompts = [
                draw_prompts(regions[p], m, config, rng) for p, m in zip(picks, masks, strict=True)
            ]
            parts += [
                _ask(model, rgb, mask, each) for mask, each in zip(masks, prompts, strict=True)
            ]
    fields = [field.name for field in dataclasses.fields(IouSamples)]
    return IouSamples(*(torch.cat([getattr(part, name) for part in parts]) for name in fields))


def draw_prompts(
    region: RegionAnnotation,
    mask: NDArray[np.bool_],
    config: IouSampling,
    rng: np.random.Generator,
) -> list[PointPrompts]:
    """A click and a box, (1,N,2) each."""
    rows, columns = np.nonzero(mask)
    pick = int(rng.integers(len(rows)))
    point = innermost_point(mask) if rng.random() < 0.5 else (columns[pick], rows[pick])
    click = PointPrompts.from_points([point])
    x0, y0, x1, y1 = region.box_xyxy
    noise = rng.normal(0, config.box_noise, 4).clip(-0.2, 0.2) * np.tile([x1 - x0, y1 - y0], 2)
    return [click, PointPrompts.from_boxes([np.array(region.box_xyxy) + noise])]


def _ask(
    model: TAP, rgb: NDArray[np.uint8], mask: NDArray[np.bool_], prompts: list[PointPrompts]
) -> IouSamples:
    """Samples of one region: its prompts, each on the photo and in its views."""
    height, width = rgb.shape[:2]
    tokens, ious, is_box = [], [], []
    for prompt in prompts:
        views = [View(0, (0, 0, width, height))]
        if model.config.zoom:
            views += list_views(prompt, (height, width), model.config.zoom)
        crops = [rgb[y0:y1, x0:x1] for x0, y0, x1, y1 in (view.window_xyxy for view in views)]
        pixels, frames = prepare_images(crops, model.config)
        coords = [
            frame.to_model_frame(prompt.coords_xy - np.array(view.window_xyxy[:2], np.float32))
            for view, frame in zip(views, frames, strict=True)
        ]
        labels = torch.from_numpy(prompt.labels.copy()).expand(len(views), 1, -1)
        features = model.encode_images(pixels.to(model.device, model.dtype))
        attended = model.attend_prompts(
            model.prepare_regions(features),
            torch.from_numpy(np.stack(coords)).to(model.device),
            labels.to(model.device),
        )
        rows = torch.arange(len(views)).repeat_interleave(NUM_MASK_SLOTS).to(model.device)
        slots = torch.arange(NUM_MASK_SLOTS).repeat(len(views)).to(model.device)
        logits = model.image_decoder.make_masks(attended, rows, slots)
        for index, (view, frame) in enumerate(zip(views, frames, strict=True)):
            four = logits[index * NUM_MASK_SLOTS : (index + 1) * NUM_MASK_SLOTS]
            ious.append(ious_in_view(restore_masks(four, frame), mask, view))
        tokens.append(attended.iou_token.float().cpu())
        is_box += [bool(prompt.is_box[0])] * len(views)
    measured = torch.from_numpy(np.stack(ious)).float()
    return IouSamples(torch.cat(tokens), measured, torch.tensor(is_box))


def ious_in_view(
    found: NDArray[np.bool_], truth: NDArray[np.bool_], view: View
) -> NDArray[np.float64]:
    """IoU (4,) of masks (4,h,w) of a view with the truth (H,W) of the photo."""
    x0, y0, x1, y1 = view.window_xyxy
    shared = np.count_nonzero(found & truth[y0:y1, x0:x1], axis=(1, 2))
    return shared / (np.count_nonzero(found, axis=(1, 2)) + np.count_nonzero(truth) - shared)


def fit_iou_head(model: TAP, samples: IouSamples, config: HeadConfig = IOU_HEAD) -> None:
    """Train `model.image_decoder.iou_head` on samples; nothing else changes.

    The loss is the mean squared error: of slot 0 for boxes, of the other three for points.

    Args:
        model: changed in place.
        samples: of this model.
        config: how.

    Raises:
        ValueError: no samples, or tokens of another width.
    """
    shape, width = tuple(samples.tokens.shape), model.config.decoder_dim
    if len(shape) != 2 or shape[1] != width or not shape[0]:
        raise ValueError(
            f"samples: expected tokens (S,{width}) of at least one sample, got {shape}"
        )
    is_first = torch.arange(NUM_MASK_SLOTS) == 0
    weights = (samples.is_box[:, None] == is_first).float()

    def loss(rows: Tensor, found: Tensor) -> Tensor:
        errors = (found - samples.ious[rows]).square() * weights[rows]
        return errors.sum() / weights[rows].sum()

    fit_head(model.image_decoder.iou_head, samples.tokens, loss, config)
