"""A second, closer look at regions: the photo is encoded once more around each of them.

A region that is a small part of the photo covers a few cells of the feature grid, too few for its
outline. A view in which it fills a fixed share has cells enough. A box, a mask or a sketch says how
large its region is, and gets one such view. A click does not: it gets views of several sizes, and
the answer counts that `answer_choice` picks. Interactive segmentation knows the step as Zoom-In
(Sofiiuk et al. 2020, "f-BRS", section 3.3). It costs an encoding for each view, so that it suits
small encoders. Models that have networks for views take those in its place, see `click_answers`,
`view_outlines` and `view_names`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from tokenize_anything.answer_choice import (
    STABILITY_OFFSET,
    STABILITY_WEIGHT,
    choose_answer,
    obedience,
    shows_extent,
)
from tokenize_anything.click_answers import clicked_rows, write_click_masks
from tokenize_anything.config import NUM_MASK_SLOTS, PointLabel
from tokenize_anything.geometry import masks_to_boxes
from tokenize_anything.image_transform import ImageFrame, load_image, restore_masks
from tokenize_anything.mask_filtering import stability_scores
from tokenize_anything.modeling import TAP, RegionOutputs
from tokenize_anything.prompt_arguments import PromptArguments
from tokenize_anything.prompts import PointPrompts
from tokenize_anything.region_decoding import (
    DecodedImage,
    EncodedImage,
    check_encoded,
    decode_chunks,
    decode_image,
    encode_photo,
    tell_boxes,
    tell_prompts,
)
from tokenize_anything.view_names import write_names
from tokenize_anything.view_outlines import Outline, outline_regions
from tokenize_anything.views import View, known_extents, list_views, point_array, prepare_views

VIEWS_AT_ONCE = 8
COMPARED_SIDE = 256  # masks are compared at no less than so many steps along the long side
OUTLINE_ROUNDS = 2
FEW_CLICKS = 2  # from a third on, they make outlines better than the answer of the click segmenter
FEW_CORRECTED = 1  # from a second on, outlines that are shown that answer improve on it
VIEW_WEIGHT = 0.5  # of the view segmenter's embedding beside that of the semantic token


@torch.inference_mode()
def decode_source(
    model: TAP, source: Any, arguments: PromptArguments, *, chunk: int, zoom: float | None
) -> DecodedImage:
    """Check one photo against its prompts, encode it where that is not done yet, and decode.

    Args:
        model: in evaluation mode.
        source: a photo, as `load_image` reads it, or an EncodedImage.
        arguments: the prompts of this photo.
        chunk: see `decode_closely`.
        zoom: see `decode_closely`.

    Raises:
        FileNotFoundError, TypeError, ValueError: not a photo, or prompts that do not fit it.
    """
    if isinstance(source, EncodedImage):
        check_encoded(source, model.config)
        prompts = arguments.join(*source.original_hw)
    else:
        rgb = load_image(source, name=arguments.where or "image")
        prompts = arguments.join(*rgb.shape[:2])
        source = dataclasses.replace(encode_photo(model, rgb), rgb=rgb)
    return decode_closely(model, source, prompts, chunk=chunk, zoom=zoom)


def decode_closely(
    model: TAP,
    encoded: EncodedImage,
    prompts: PointPrompts,
    *,
    chunk: int,
    zoom: float | None,
    with_names: bool = True,
) -> DecodedImage:
    """Decode prompts on the whole photo, then those of small regions again in views of their own.

    What a region gets does not depend on the other prompts.

    Args:
        model: in evaluation mode.
        encoded: with its photo, if there is to be a second look.
        prompts: original pixels, checked to lie in the photo.
        chunk: regions decoded at once on the whole photo.
        zoom: share of a view's side that the long side of a region fills; 0 for no second look,
            None for what the model's configuration says.
        with_names: False leaves out what a view namer adds to tokens and embeddings.

    Raises:
        ValueError: a second look was asked for, and `encoded` does not hold its photo.
    """
    zoom = model.config.zoom if zoom is None else zoom
    if zoom and encoded.rgb is None:
        raise ValueError(
            "zoom: expected a photo, got an EncodedImage without one, since its model looks once; "
            "pass the photo itself, or zoom=0"
        )
    if not zoom or encoded.rgb is None:
        return decode_image(model, encoded, prompts, chunk=chunk)
    counts = _first_counts(model, prompts)
    heard = _are_heard(model, prompts, counts)
    first = decode_image(model, encoded, prompts, chunk=chunk, has_mask=counts, is_asked=heard)
    if model.click_segmenter is not None:
        rows = _open_rows(model, prompts)
        write_click_masks(model, encoded.rgb, prompts, rows, first)
    _write_views(model, encoded, prompts, first, chunk=chunk, zoom=zoom)
    outlines = {}
    if model.view_segmenter is not None:
        outlines = _write_outlines(model, encoded.rgb, prompts, first)
    if model.click_segmenter is not None:
        tell_boxes(model, encoded, clicked_rows(prompts), first, chunk=chunk)
        lost = [row for row in np.flatnonzero(~heard) if not first.masks[row].any()]
        if lost:
            rows = np.array(lost)
            tell_prompts(model, encoded, prompts[rows], rows, first, chunk=chunk)
    _join_embeddings(outlines, first)
    if with_names and model.view_namer is not None:
        is_box = np.flatnonzero(prompts.is_box).tolist()
        boxes = {row: prompts.coords_xy[row, :2].reshape(4) for row in is_box}
        write_names(model, encoded.rgb, first, boxes)
    return first


def _are_heard(model: TAP, prompts: PointPrompts, counts: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether the first look is wanted at all (R,).

    It is not where networks for views find masks and scores of clicks, and the boxes of these masks
    are asked for tokens.
    """
    are_heard = np.ones(len(prompts), bool)
    if model.click_segmenter is not None:
        clicked = clicked_rows(prompts)
        are_heard[clicked] = counts[clicked]
    return are_heard


def _first_counts(model: TAP, prompts: PointPrompts) -> NDArray[np.bool_]:
    """Whether the mask of the first look counts (R,): where none takes its place for certain."""
    counts = np.ones(len(prompts), bool)
    if model.view_segmenter is not None:
        counts[list(known_extents(prompts))] = False
    if model.click_segmenter is not None:
        counts[_open_rows(model, prompts)] = False
    return counts


def _open_rows(model: TAP, prompts: PointPrompts) -> NDArray[np.intp]:
    """Rows of clicks that do not say how large their region is, for the click segmenter.

    Many clicks inside of a region say it; where masks can be corrected, only clicks outside of it
    tell corrections, which do not, from sketches, which do.
    """
    rows = clicked_rows(prompts)
    says = shows_extent(prompts)
    if model.config.view_corrects:
        says &= ~(prompts.labels == PointLabel.BACKGROUND).any(axis=1)
    return rows[~says[rows]]


def _write_views(
    model: TAP,
    encoded: EncodedImage,
    prompts: PointPrompts,
    target: DecodedImage,
    *,
    chunk: int,
    zoom: float,
) -> None:
    """Answer again, in views of the image encoder, what no network for views answers."""
    assert encoded.rgb is not None
    clicked = ~prompts.is_box & (prompts.labels != PointLabel.PADDING).any(axis=1)
    asked = clicked.copy()
    if model.click_segmenter is not None:
        asked[clicked_rows(prompts)] = False
    if model.view_segmenter is None or model.view_namer is None:
        asked = asked | prompts.is_box
    views = list_views(prompts, encoded.original_hw, zoom) if asked.any() else []
    boxed = [view for view in views if asked[view.row] and prompts.is_box[view.row]]
    for part in decode_views(model, encoded.rgb, prompts, boxed, all_slots=False):
        for index in range(len(part.views)):
            part.write_answer(index, int(part.outputs.mask_index[index]), target)
    rows = np.flatnonzero(asked & clicked)
    if len(rows):
        answers = _answer_clicks(model, encoded, prompts, rows=rows, views=views, chunk=chunk)
        for part, index, slot in answers:
            part.write_answer(index, slot, target)


def _write_outlines(
    model: TAP, rgb: NDArray[np.uint8], prompts: PointPrompts, target: DecodedImage
) -> dict[int, Outline]:
    """Put outlines in the place of masks; of a single click only those with a higher score.

    What the click segmenter says of few clicks stays; of more, it is shown to a view segmenter that
    corrects masks. Other prompts that do not say how large their region is take that from the mask
    there was, and once more from the outline, which counts where it scores higher.

    Returns:
        The outlines, by row.
    """
    extents = known_extents(prompts)
    num_points = (prompts.labels != PointLabel.PADDING).sum(axis=1)
    is_open, corrected = num_points > 0, {}
    if model.click_segmenter is not None:
        answered = _open_rows(model, prompts)
        few = FEW_CORRECTED if model.config.view_corrects else FEW_CLICKS
        is_open[answered] = num_points[answered] > few
        if model.config.view_corrects:
            corrected = {row: target.masks[row] for row in answered.tolist()}
            extents = {row: points for row, points in extents.items() if row not in corrected}
    unknown = [row for row in np.flatnonzero(is_open).tolist() if row not in extents]
    extents |= _mask_extents(prompts, target, unknown)
    accepted: dict[int, Outline] = {}
    for _ in range(OUTLINE_ROUNDS):
        found = []
        for outline in outline_regions(model, rgb, prompts, extents, corrected):
            row = outline.row
            has_rival = num_points[row] == 1 or row in accepted
            if not has_rival or outline.iou_score > target.iou_scores[row]:
                target.masks[row], target.iou_scores[row] = outline.mask, outline.iou_score
                accepted[row] = outline
                found.append(row)
        again = [row for row in found if row in unknown and row not in corrected]
        extents = _mask_extents(prompts, target, again)
    return accepted


def _join_embeddings(outlines: Mapping[int, Outline], target: DecodedImage) -> None:
    """Add what outlines say of their regions to the embeddings of these."""
    for row, outline in outlines.items():
        told = F.normalize(target.semantic_embeddings[row].float(), dim=-1)
        seen = F.normalize(outline.semantic_embedding.float(), dim=-1)
        joined = (told + VIEW_WEIGHT * seen).to(target.semantic_embeddings.dtype)
        target.semantic_embeddings[row] = joined


def _mask_extents(
    prompts: PointPrompts, decoded: DecodedImage, rows: list[int]
) -> dict[int, NDArray[np.floating]]:
    """Clicks and corners of the mask (N,2) of prompts whose mask is not empty, by row."""
    extents = {}
    for row in rows:
        if decoded.masks[row].any():
            corners = masks_to_boxes(decoded.masks[row : row + 1]).reshape(2, 2)
            extents[row] = np.concatenate([corners, point_array(prompts, row)])
    return extents


def _answer_clicks(
    model: TAP,
    encoded: EncodedImage,
    prompts: PointPrompts,
    *,
    rows: NDArray[np.intp],
    views: list[View],
    chunk: int,
) -> Iterator[tuple[DecodedViews, int, int]]:
    """Choose between all masks of the photo and of the views; many clicks trust their view.

    Yields, for each of `rows`, the views with the answer, its place among them, and its slot.
    """
    assert encoded.rgb is not None
    is_known = shows_extent(prompts)
    height, width = encoded.original_hw
    near: dict[int, list[View]] = {}
    for view in views:
        near.setdefault(view.row, []).append(view)
    chunks = decode_chunks(model, encoded, prompts[rows], chunk=chunk, all_slots=True)
    for places, outputs in chunks:
        whole = [View(int(rows[place]), (0, 0, width, height)) for place in places]
        far = DecodedViews(whole, [encoded.frame] * len(whole), outputs)
        for index, view in enumerate(whole):
            around = near.get(view.row, [])
            answers = [] if around and is_known[view.row] else [(far, index)]
            for part in decode_views(model, encoded.rgb, prompts, around, all_slots=True):
                answers += [(part, number) for number in range(len(part.views))]
            place, slot = _choose(answers, prompts[view.row], (height, width))
            yield *answers[place], slot


def _choose(
    answers: Sequence[tuple[DecodedViews, int]], prompt: PointPrompts, image_hw: tuple[int, int]
) -> tuple[int, int]:
    """Place and slot of the answer that counts, of slots 1 to 3; see `answer_choice`."""
    step = max(1, max(image_hw) // COMPARED_SIDE)
    scores, merits, masks = [], [], []
    for part, index in answers:
        found = np.zeros((NUM_MASK_SLOTS - 1, *image_hw), bool)
        for slot in range(1, NUM_MASK_SLOTS):
            part.paste_mask(index, slot, found[slot - 1])
        logits = part.outputs.mask_logits[index, 1:]
        stability = stability_scores(logits, STABILITY_OFFSET).double().cpu().numpy()
        merits.append(STABILITY_WEIGHT * stability + obedience(found, prompt))
        scores.append(part.outputs.iou_scores[index, 1:].double().cpu().numpy())
        masks.append(found[:, ::step, ::step].copy())
    place, slot = choose_answer(np.stack(scores), np.stack(merits), np.stack(masks))
    return place, slot + 1


@dataclass(frozen=True, eq=False)
class DecodedViews:
    """Some views, with a frame and an output each."""

    views: list[View]
    frames: list[ImageFrame]
    outputs: RegionOutputs

    def paste_mask(self, index: int, slot: int, target: NDArray[np.bool_]) -> None:
        """Write a mask of one view into `target` (H,W), all False before."""
        x0, y0, x1, y1 = self.views[index].window_xyxy
        logits = self.outputs.mask_logits[index]
        logits = logits[slot : slot + 1] if len(logits) > 1 else logits
        target[y0:y1, x0:x1] = restore_masks(logits, self.frames[index])[0]

    def write_answer(self, index: int, slot: int, target: DecodedImage) -> None:
        """Put what one slot of a view says in the place of what is known of its region."""
        row = self.views[index].row
        target.masks[row] = False
        self.paste_mask(index, slot, target.masks[row])
        target.iou_scores[row] = self.outputs.iou_scores[index, slot]
        self.write_tokens(index, slot, target)

    def write_tokens(self, index: int, slot: int, target: DecodedImage) -> None:
        """The same without mask and score."""
        row, outputs = self.views[index].row, self.outputs
        for name in ("semantic_tokens", "semantic_embeddings", "mask_tokens"):
            values = getattr(outputs, name)[index]
            getattr(target, name)[row] = values[slot] if len(values) > 1 else values[0]
        target.mask_index[row] = slot


def decode_views(
    model: TAP,
    rgb: NDArray[np.uint8],
    prompts: PointPrompts,
    views: list[View],
    *,
    all_slots: bool,
) -> Iterator[DecodedViews]:
    """Encode views of a photo and decode one prompt in each, `VIEWS_AT_ONCE` at a time.

    Args:
        model: in evaluation mode.
        rgb: (H,W,3) the photo.
        prompts: original pixels.
        views: of rows of `prompts`.
        all_slots: False computes the mask of the routed slot only.
    """
    counts = prompts.num_points
    for num_points in np.unique(counts).tolist():
        alike = [view for view in views if counts[view.row] == num_points]
        for start in range(0, len(alike), VIEWS_AT_ONCE):
            part = alike[start : start + VIEWS_AT_ONCE]
            seen = prepare_views(rgb, prompts, part, model.config, side=model.config.image_size)
            seen = seen.to(model.device, model.dtype)
            outputs = model.decode_regions(
                model.prepare_regions(model.encode_images(seen.pixels)),
                seen.coords_xy.unsqueeze(1),
                seen.labels.unsqueeze(1),
                all_slots=all_slots,
            )
            yield DecodedViews(part, seen.frames, outputs)
