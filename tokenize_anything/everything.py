"""Automatic mode: every region of a photo, found by a grid of clicks.

A click leaves open what it means, so each of its slots 1 to 3 is a candidate. The path of a
candidate is ordered by cost, and most leave it early:

1. tokens: predicted IoU, before any mask is made;
2. mask logits at the resolution of the decoder: stability, cuts by the border of a crop, and
   duplicates among the clicks so far;
3. masks at the size of the photo: specks and holes, duplicates across crops, parts;
4. semantic embeddings here, and names and captions by the caller.

At no time are there more masks than `max_regions` and those of one round of clicks. Rounds have a
fixed size, so that the result does not depend on how many clicks are decoded at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from tokenize_anything.click_search import find_by_clicks
from tokenize_anything.config import NUM_MASK_SLOTS, PointLabel
from tokenize_anything.everything_config import (
    POINTS_PER_ROUND,
    EverythingConfig,
    PhotoView,
    plan_views,
)
from tokenize_anything.geometry import masks_to_boxes
from tokenize_anything.image_transform import ImageFrame, ImageSource, load_image, restore_masks
from tokenize_anything.mask_filtering import (
    box_iou,
    clean_mask,
    pairwise_mask_iou,
    pick_distinct,
    pick_regions,
    stability_scores,
)
from tokenize_anything.modeling import TAP, AttendedPrompts, ImageContext
from tokenize_anything.region_decoding import (
    DecodedImage,
    EncodedImage,
    check_encoded,
    embed_tokens,
    encode_photo,
)
from tokenize_anything.regions import RegionPredictions
from tokenize_anything.view_names import write_names

_FIRST_SLOT = 1  # slot 0 is for boxes
_RESTORED_AT_ONCE = 16  # masks
_BORDER_CELLS = 2  # mask cells: a mask that comes so close to the cut of a crop is cut itself


@dataclass(frozen=True, eq=False)
class Candidates:
    """K masks of one view that are still in the race.

    mask_logits: (K,4h,4w), covering the padded square.
    iou_scores: (K,) float32, predicted.
    numbers: (K,) int64, click number times 4 plus slot; the lower one goes first among equals.
    semantic_tokens, mask_tokens: (K,C).
    """

    mask_logits: Tensor
    iou_scores: Tensor
    numbers: Tensor
    semantic_tokens: Tensor
    mask_tokens: Tensor

    def __len__(self) -> int:
        return len(self.numbers)

    def select(self, rows: Tensor | NDArray[np.int64]) -> Candidates:
        """Some of the candidates, in the order of `rows`."""
        index = torch.as_tensor(rows, device=self.numbers.device)
        fields = dataclasses.fields(self)
        return Candidates(**{field.name: getattr(self, field.name)[index] for field in fields})

    @classmethod
    def concatenate(cls, parts: Sequence[Candidates]) -> Candidates:
        """Join candidates of one view."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


@dataclass(frozen=True, eq=False)
class FoundRegions:
    """The regions of one photo, without words, and their tree.

    decoded: R regions, best predicted IoU first.
    parent_index: (R,) the row of the region each is part of, or -1.
    """

    decoded: DecodedImage
    parent_index: NDArray[np.int64]

    def add_tree(self, record: RegionPredictions) -> RegionPredictions:
        """The same regions with their parents."""
        return dataclasses.replace(record, parent_index=self.parent_index)


def find_in_photos(
    model: TAP,
    sources: Sequence[EncodedImage | ImageSource],
    config: EverythingConfig,
    *,
    chunk: int,
    progress: bool = False,
) -> list[FoundRegions]:
    """`find_everything` for each of several photos, with a bar of the clicks done.

    Raises:
        FileNotFoundError, TypeError, ValueError: a photo cannot be read, or was encoded by a model
            of another size.
    """
    found = []
    total = config.num_points * len(sources)
    with tqdm(total=total, desc="clicks", mininterval=1, disable=not progress) as bar:
        for index, source in enumerate(sources):
            if isinstance(source, EncodedImage):
                check_encoded(source, model.config)
                image: EncodedImage | NDArray[np.uint8] = source
            else:
                image = load_image(source, name=f"images[{index}]" if len(sources) > 1 else "image")
            found.append(find_everything(model, image, config, chunk=chunk, advance=bar.update))
    return found


@torch.inference_mode()
def find_everything(
    model: TAP,
    image: EncodedImage | NDArray[np.uint8],
    config: EverythingConfig,
    *,
    chunk: int,
    advance: Callable[[int], object] | None = None,
) -> FoundRegions:
    """Find the regions of one photo, best predicted IoU first, without words.

    Args:
        model: in evaluation mode.
        image: (H,W,3) uint8 RGB, or an EncodedImage checked with `check_encoded`.
        config: what to search and what to keep.
        chunk: clicks decoded at once when the config leaves it open.
        advance: called with the number of clicks that were just done.

    Returns:
        R regions; R may be 0.

    Raises:
        ValueError: crops are asked for of a photo that is encoded already.
    """
    if isinstance(image, EncodedImage) and config.crop_layers:
        raise ValueError(
            f"crop_layers: expected 0 for an EncodedImage, got {config.crop_layers}; crops are cut "
            f"from the photo, so pass the photo"
        )
    if model.click_segmenter is not None and model.config.zoom:
        encoded = image if isinstance(image, EncodedImage) else encode_photo(model, image)
        return FoundRegions(*find_by_clicks(model, encoded, config, advance=advance, chunk=chunk))
    height, width = image.original_hw if isinstance(image, EncodedImage) else image.shape[:2]
    views = plan_views(height, width, config)
    frames, found = [], []
    for view in views:
        x0, y0, x1, y1 = view.box_xyxy
        encoded = (
            image if isinstance(image, EncodedImage) else encode_photo(model, image[y0:y1, x0:x1])
        )
        search = _ViewSearch(model, encoded, view, config, view.cut_sides(height, width))
        frames.append(encoded.frame)
        found.append(search.run(config.points_per_batch or chunk, advance))
    kept = _choose_across_views(views, frames, found, config)
    result = _finish(model, _restore(views, frames, kept, (height, width), config), kept, config)
    rgb = image.rgb if isinstance(image, EncodedImage) else image
    if model.view_namer is not None and rgb is not None:
        write_names(model, rgb, result.decoded)
    return result


@dataclass(frozen=True, eq=False)
class _ViewSearch:
    """The search of one view: clicks in rounds, candidates out."""

    model: TAP
    encoded: EncodedImage
    view: PhotoView
    config: EverythingConfig
    cut_sides: tuple[bool, bool, bool, bool]

    def run(self, chunk: int, advance: Callable[[int], object] | None) -> Candidates:
        """At most `max_regions` distinct candidates, best first."""
        model = self.model
        points = torch.from_numpy(self.encoded.frame.to_model_frame(self.view.grid_points()))
        points = points.to(model.device)
        context = model.prepare_regions(self.encoded.features.to(model.device, model.dtype)[None])
        pool = self._judge_clicks(context, points[:0], 0)
        for first in range(0, len(points), POINTS_PER_ROUND):
            end = min(first + POINTS_PER_ROUND, len(points))
            parts = [pool]
            for start in range(first, end, chunk):
                clicks = points[start : min(start + chunk, end)]
                parts.append(self._judge_clicks(context, clicks, start))
                if advance is not None:
                    advance(len(clicks))
            pool = self._drop_duplicates(Candidates.concatenate(parts))
        return pool

    def _judge_clicks(self, context: ImageContext, points: Tensor, first: int) -> Candidates:
        """Candidates of clicks (P,2) in the model frame, the first of which has number `first`."""
        if not len(points):
            return self._no_candidates()
        coords = torch.stack([points, torch.zeros_like(points)], dim=1)  # with a padding point
        labels = torch.tensor([PointLabel.FOREGROUND, PointLabel.PADDING], device=points.device)
        prompts = self.model.attend_prompts(context, coords[None], labels.expand(1, len(points), 2))
        is_good = prompts.iou_scores >= self.config.min_iou
        is_good[:, :_FIRST_SLOT] = False
        rows, slots = is_good.nonzero(as_tuple=True)
        if not len(rows):
            return self._no_candidates()
        return self._judge_masks(prompts, rows, slots, first)

    def _judge_masks(
        self, prompts: AttendedPrompts, rows: Tensor, slots: Tensor, first: int
    ) -> Candidates:
        logits = self.model.image_decoder.make_masks(prompts, rows, slots)
        seen = self._crop_padding(logits)
        is_good = stability_scores(seen, self.config.stability_offset) >= self.config.min_stability
        is_good &= (seen > 0).any(dim=2).any(dim=1) & ~self._touches_cut(seen > 0)
        rows, slots = rows[is_good], slots[is_good]
        return Candidates(
            mask_logits=logits[is_good],
            iou_scores=prompts.iou_scores[rows, slots],
            numbers=(rows + first) * NUM_MASK_SLOTS + slots,
            semantic_tokens=prompts.semantic_tokens[rows, slots],
            mask_tokens=prompts.mask_tokens[rows, slots],
        )

    def _no_candidates(self) -> Candidates:
        config, side = self.model.config, 4 * self.model.config.grid_size
        empty = torch.zeros(0, device=self.model.device, dtype=self.model.dtype)
        return Candidates(
            mask_logits=empty.new_zeros(0, side, side),
            iou_scores=empty.float(),
            numbers=empty.long(),
            semantic_tokens=empty.new_zeros(0, config.decoder_dim),
            mask_tokens=empty.new_zeros(0, config.decoder_dim),
        )

    def _crop_padding(self, mask_logits: Tensor) -> Tensor:
        """The cells (K,·,·) of masks (K,4h,4w) that show the photo."""
        rows, columns = cells_of_photo(self.encoded.frame, mask_logits.shape[-1])
        return mask_logits[:, :rows, :columns]

    def _touches_cut(self, masks: Tensor) -> Tensor:
        """(K,) whether masks come close to a side of the crop that is none of the photo."""
        touches = torch.zeros(len(masks), dtype=torch.bool, device=masks.device)
        borders = (
            masks[:, :, :_BORDER_CELLS],
            masks[:, :_BORDER_CELLS],
            masks[:, :, -_BORDER_CELLS:],
            masks[:, -_BORDER_CELLS:],
        )
        for is_cut, border in zip(self.cut_sides, borders, strict=True):
            if is_cut:
                touches |= border.any(dim=2).any(dim=1)
        return touches

    def _drop_duplicates(self, candidates: Candidates) -> Candidates:
        """The distinct ones, best first, at most `max_regions`."""
        scores = candidates.iou_scores.cpu().numpy()
        order = np.lexsort((candidates.numbers.cpu().numpy(), -scores))
        candidates = candidates.select(order)
        masks = self._crop_padding(candidates.mask_logits) > 0
        is_same = pairwise_mask_iou(masks) > self.config.max_overlap
        rows = pick_distinct(is_same.cpu().numpy())
        return candidates.select(rows[: self.config.max_regions])


def cells_of_photo(frame: ImageFrame, mask_side: int) -> tuple[int, int]:
    """Rows and columns of a square mask that show the photo and not only padding."""
    height, width = (-(-side * mask_side // frame.padded_size) for side in frame.scaled_hw)
    return height, width


def _choose_across_views(
    views: Sequence[PhotoView],
    frames: Sequence[ImageFrame],
    found: Sequence[Candidates],
    config: EverythingConfig,
) -> list[Candidates]:
    """Drop what several views found, in favour of the smaller crop; then keep the best of all.

    Views are compared by the boxes of their masks, which need not be made for that.
    """
    if len(views) == 1:
        return list(found)
    view_index = np.repeat(np.arange(len(views)), [len(each) for each in found])
    rows = np.concatenate([np.arange(len(each)) for each in found])
    scores = np.concatenate([each.iou_scores.cpu().numpy() for each in found])
    layers = np.array([view.layer for view in views])[view_index]
    boxes = np.concatenate(
        [_boxes_in_photo(*each) for each in zip(views, frames, found, strict=True)]
    )
    order = np.lexsort((rows, view_index, -scores, -layers))
    is_other_view = view_index[order][:, None] != view_index[order]
    is_same = (box_iou(boxes[order]) > config.max_overlap) & is_other_view
    kept = order[pick_distinct(is_same)]
    best = kept[np.lexsort((rows[kept], view_index[kept], -scores[kept]))][: config.max_regions]
    return [
        each.select(np.sort(rows[best[view_index[best] == index]]))
        for index, each in enumerate(found)
    ]


def _boxes_in_photo(
    view: PhotoView, frame: ImageFrame, candidates: Candidates
) -> NDArray[np.float64]:
    """(K,4) boxes in pixels of the photo, as fine as the cells of the masks."""
    side = candidates.mask_logits.shape[-1]
    rows, columns = cells_of_photo(frame, side)
    masks = (candidates.mask_logits[:, :rows, :columns] > 0).cpu().numpy()
    corners = masks_to_boxes(masks).astype(np.float64).reshape(-1, 2, 2)
    corners = frame.to_original_frame(corners * (frame.padded_size / side))
    height, width = view.size_hw
    return (corners.clip(0, [width, height]) + view.box_xyxy[:2]).reshape(-1, 4)


def _restore(
    views: Sequence[PhotoView],
    frames: Sequence[ImageFrame],
    kept: Sequence[Candidates],
    original_hw: tuple[int, int],
    config: EverythingConfig,
) -> NDArray[np.bool_]:
    """Masks of all candidates, view after view, at the size of the photo and cleaned, (R,H,W)."""
    masks = np.zeros((sum(map(len, kept)), *original_hw), bool)
    row = 0
    for view, frame, candidates in zip(views, frames, kept, strict=True):
        x0, y0, x1, y1 = view.box_xyxy
        for logits in candidates.mask_logits.split(_RESTORED_AT_ONCE):
            for mask in restore_masks(logits, frame):
                masks[row, y0:y1, x0:x1] = clean_mask(mask, config.min_region_area)
                row += 1
    return masks


def _finish(
    model: TAP, masks: NDArray[np.bool_], kept: Sequence[Candidates], config: EverythingConfig
) -> FoundRegions:
    """The distinct ones among the candidates with masks (R,H,W), best first, with their tree."""
    iou_scores = torch.cat([each.iou_scores for each in kept])
    rows, parents = pick_regions(
        masks, iou_scores.cpu().numpy(), config.max_overlap, config.min_containment
    )
    index = torch.from_numpy(rows).to(iou_scores.device)
    tokens = torch.cat([each.semantic_tokens for each in kept])[index]
    is_all = np.array_equal(rows, np.arange(len(masks)))
    decoded = DecodedImage(
        masks=masks if is_all else masks[rows],
        iou_scores=iou_scores[index],
        semantic_tokens=tokens,
        semantic_embeddings=embed_tokens(model, tokens),
        mask_index=torch.cat([each.numbers for each in kept])[index] % NUM_MASK_SLOTS,
        mask_tokens=torch.cat([each.mask_tokens for each in kept])[index],
    )
    return FoundRegions(decoded, parents)
