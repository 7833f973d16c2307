"""Region captioning: boxes or points in them to captions, scored against references."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from tokenize_anything.evaluation.answers import RegionModel, decode_prompts, split_rows
from tokenize_anything.evaluation.caption_data import Box, DescribedImage, DescribedRegion
from tokenize_anything.evaluation.caption_scores import (
    JAVA_CURE,
    candidate_constants,
    cider,
    has_java,
    score_captions,
)
from tokenize_anything.evaluation.runner import (
    Metric,
    RunnerConfig,
    WorkItem,
    model_digest,
    run_evaluation,
)
from tokenize_anything.image_transform import load_image
from tokenize_anything.prompts import PointPrompts
from tokenize_anything.region_decoding import EncodedImage
from tokenize_anything.text_generation import GenerationConfig

MAX_ROWS_OF_CONSTANT = 2000
PROMPT_KINDS = ("box", "centre", "random", "mask", "mask_point")


@dataclass(frozen=True)
class CaptioningConfig:
    """How regions are asked for, and how their captions are written and scored.

    prompt: "box"; "centre", the middle of the box; "random", a random point in the box; "mask",
        nine points of the mask that the box prompt finds; "mask_point", a random point of it. A
        region whose predicted mask is empty is asked for by its box.
    seed: of the random points; a region's point depends on the seed and its id alone.
    generation: greedy by default; published neighbours use 3 beams.
    plain_words: score without Java, see `score_captions`. None does so where there is no Java, and
        says what is left out.
    spice: whether to compute SPICE, too.
    """

    prompt: str = "box"
    seed: int = 0
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    plain_words: bool | None = None
    spice: bool = False

    def __post_init__(self) -> None:
        if self.prompt not in PROMPT_KINDS:
            raise ValueError(f"prompt: expected one of {PROMPT_KINDS}, got {self.prompt!r}")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed: expected an integer from 0, got {self.seed!r}")


@dataclass(frozen=True, eq=False)
class _Photo:
    """A decoded photo and what is asked about it."""

    rgb: np.ndarray
    regions: tuple[DescribedRegion, ...]
    boxes: list[Box]


@dataclass(frozen=True, eq=False)
class _Captions:
    """One photo's captions, mean log-probabilities (R,), and predicted IoUs (R,)."""

    texts: list[str]
    scores: np.ndarray
    iou_scores: np.ndarray


class CaptioningTask:
    """Captions every region of every photo; the runner's view of the protocol.

    Args:
        predictor: with a text tokenizer.
        config: the protocol.
    """

    name = "captioning"

    def __init__(self, predictor: RegionModel, config: CaptioningConfig | None = None) -> None:
        self.predictor = predictor
        self.config = config or CaptioningConfig()

    def load(self, item: WorkItem) -> _Photo:
        """Decode a photo; a box that misses it is moved to its nearest pixel."""
        rgb, image = load_image(str(item.paths[0])), item.content
        height, width = rgb.shape[:2]
        boxes = [keep_on_photo(region.box_xyxy, height, width) for region in image.regions]
        return _Photo(rgb, image.regions, boxes)

    def answer(self, loaded: Sequence[_Photo]) -> list[_Captions]:
        """Caption the regions of some photos together."""
        encoded = self.predictor.encode_images([photo.rgb for photo in loaded])
        decoded = [
            decode_prompts(
                self.predictor, features, self._prompts(photo, features), with_masks=False
            )
            for photo, features in zip(loaded, encoded, strict=True)
        ]
        counts = [len(photo.regions) for photo in loaded]
        texts, scores = self.predictor.write_captions(
            torch.cat([each.semantic_tokens for each in decoded]), generation=self.config.generation
        )
        parts = zip(split_rows(texts, counts), split_rows(scores, counts), decoded, strict=True)
        return [
            _Captions(text, score, each.iou_scores.float().cpu().numpy())
            for text, score, each in parts
        ]

    def to_rows(self, item: WorkItem, loaded: _Photo, answer: _Captions) -> list[dict[str, Any]]:
        """One object per region, with all that scoring needs."""
        return [
            {
                "image_id": item.key,
                "region_id": region.region_id,
                "box_xyxy": list(region.box_xyxy),
                "caption": answer.texts[row],
                "caption_score": float(answer.scores[row]),
                "iou_score": float(answer.iou_scores[row]),
                "references": list(region.references),
            }
            for row, region in enumerate(loaded.regions)
        ]

    def score(self, items: Sequence[WorkItem], rows: Iterator[dict[str, Any]]) -> Iterator[Metric]:
        """BLEU, METEOR, ROUGE-L and CIDEr times 100, as tables print them."""
        captions, references = [], []
        for row in rows:
            captions.append(row["caption"])
            references.append(row["references"])
        yield "regions", float(len(captions))
        plain_words = self.config.plain_words
        if plain_words is None:
            plain_words = skip_java_metrics()
        scores = score_captions(
            captions, references, plain_words=plain_words, spice=self.config.spice
        )
        for score in scores:
            yield score.metric, 100 * score.value

    def _prompts(self, photo: _Photo, encoded: EncodedImage) -> PointPrompts:
        kind, boxes = self.config.prompt, np.array(photo.boxes, np.float32)
        if kind == "box":
            return PointPrompts.from_boxes(boxes)
        if kind == "centre":
            return PointPrompts.from_points(self._points_between(photo, np.full((1, 2), 0.5)))
        if kind == "random":
            draws = [self._generator(region.region_id).random(2) for region in photo.regions]
            return PointPrompts.from_points(self._points_between(photo, np.array(draws)))
        by_box = PointPrompts.from_boxes(boxes)
        masks = decode_prompts(self.predictor, encoded, by_box, with_names=False).masks
        prompts = [
            self._mask_prompt(mask, region.region_id) if mask.any() else by_box[row]
            for row, (mask, region) in enumerate(zip(masks, photo.regions, strict=True))
        ]
        return PointPrompts.concatenate(prompts)

    def _points_between(self, photo: _Photo, shares: np.ndarray) -> np.ndarray:
        """(R,2) points at these shares (R,2) of the part of each box that lies on the photo."""
        height, width = photo.rgb.shape[:2]
        boxes = np.array(photo.boxes, np.float64).clip(0, [width, height] * 2)
        return boxes[:, :2] + shares * (boxes[:, 2:] - boxes[:, :2])

    def _mask_prompt(self, mask: np.ndarray, region_id: int) -> PointPrompts:
        if self.config.prompt == "mask":
            return PointPrompts.from_masks(mask)
        rows, columns = np.nonzero(mask)
        pick = self._generator(region_id).integers(len(rows))
        return PointPrompts.from_points([[columns[pick], rows[pick]]])

    def _generator(self, region_id: int) -> np.random.Generator:
        key = hashlib.sha256(str(region_id).encode()).digest()[:8]
        return np.random.default_rng([self.config.seed, int.from_bytes(key, "big")])


def evaluate_captioning(
    predictor: RegionModel,
    images: Sequence[DescribedImage],
    *,
    protocol: CaptioningConfig | None = None,
    config: RunnerConfig | None = None,
) -> Iterator[Metric]:
    """Caption all regions and score the captions.

    Args:
        predictor: the model, with a text tokenizer; or a baseline.
        images: from one of the readers of `caption_data`.
        protocol: prompts, generation and scoring.
        config: where results go, and how the work is done.

    Yields:
        (metric, value): "regions", then BLEU-1 to BLEU-4, METEOR, ROUGE-L and CIDEr times 100, so
        that CIDEr of a perfect answer nears 1000 and all others 100.

    Raises:
        FileNotFoundError: photos are missing, see `run_evaluation`.
        ValueError: no images, a predictor without text tokenizer, or a folder of another run.
    """
    task = CaptioningTask(predictor, protocol)
    if getattr(predictor, "text_tokenizer", predictor) is None:
        raise ValueError(
            "text_tokenizer: the model has none, so it writes no captions; pass --text-tokenizer "
            "(text_tokenizer= of from_pretrained)"
        )
    asked = asdict(task.config)
    scoring = ("plain_words", "spice")  # rows do not depend on them
    settings = {
        "model": model_digest(predictor),
        "data": described_digest(images),
        **{name: value for name, value in asked.items() if name not in scoring},
    }
    return run_evaluation(task, caption_items(images), settings, config)


def caption_items(images: Sequence[DescribedImage]) -> list[WorkItem]:
    """What the runner works through: a photo each."""
    return [WorkItem(image.image_id, (image.path,), image) for image in images]


def described_digest(images: Sequence[DescribedImage]) -> str:
    """Sixteen hexadecimal digits that differ where regions or texts do; folders do not matter."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(repr((image.image_id, image.regions)).encode())
    return digest.hexdigest()[:16]


def best_constant(references: Sequence[Sequence[str]]) -> str:
    """The one caption for everything: of the most frequent texts, the one with the best CIDEr.

    Judged on plain words and on the first MAX_ROWS_OF_CONSTANT regions, which is enough to choose.
    """
    judged = references[:MAX_ROWS_OF_CONSTANT]
    texts = candidate_constants(references)
    return max(texts, key=lambda text: cider([text] * len(judged), judged))


def keep_on_photo(box_xyxy: Box, height: int, width: int) -> Box:
    """The box if it overlaps the photo and has an area, else its nearest box of a pixel or more.

    Args:
        box_xyxy: original pixels.
        height: of the photo.
        width: of the photo.
    """
    x0, y0, x1, y1 = box_xyxy
    if x1 > x0 and y1 > y0 and x1 > 0 and y1 > 0 and x0 < width and y0 < height:
        return box_xyxy
    x0, y0 = min(max(x0, 0.0), width - 1.0), min(max(y0, 0.0), height - 1.0)
    return x0, y0, max(min(x1, float(width)), x0 + 1), max(min(y1, float(height)), y0 + 1)


def skip_java_metrics() -> bool:
    """Whether captions must be scored without Java; a warning names what is left out."""
    if has_java():
        return False
    warnings.warn(
        "no Java: METEOR, and BLEU, ROUGE-L and CIDEr on PTB tokens, are left out; caption figures "
        f"on plain words do not compare with published tables. To have them, {JAVA_CURE}",
        stacklevel=2,
    )
    return True
