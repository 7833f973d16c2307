"""A predictor with a tiny random model, photos, and the same answers computed the long way."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tests.tiny import tiny_config, tiny_tap, tiny_tokenizer
from tokenize_anything import (
    TAP,
    ConceptVocabulary,
    PointPrompts,
    RegionPredictions,
    TAPConfig,
    TAPPredictor,
)
from tokenize_anything.image_transform import prepare_images

NAMES = ("cup", "spoon", "table", "café au lait", "saucer", "日本", "tray")
FIELDS = ("iou_scores", "concept_scores", "caption_scores", "semantic_tokens",
          "semantic_embeddings", "mask_tokens", "boxes_xyxy")  # fmt: skip


def tiny_vocabulary(
    names: tuple[str, ...] = NAMES, config: TAPConfig | None = None
) -> ConceptVocabulary:
    """Random weights in the space of the tiny model, scaled so that concepts differ."""
    generator = torch.Generator().manual_seed(5)
    rows = (config or tiny_config()).semantic_dim
    return ConceptVocabulary(names, 3 * torch.randn(rows, len(names), generator=generator))


def tiny_predictor(region_chunk: int | None = None, **overrides: Any) -> TAPPredictor:
    """All parts; `overrides` change the configuration."""
    config = tiny_config(**overrides)
    return TAPPredictor(
        sharpen(tiny_tap(config)),
        concepts=tiny_vocabulary(config=config),
        text_tokenizer=tiny_tokenizer(),
        region_chunk=region_chunk,
    )


@torch.no_grad()
def sharpen(model: TAP) -> TAP:
    """Double the weights behind the image encoder, so that regions of one photo differ."""
    for name, value in model.named_parameters():
        if value.ndim > 1 and not name.startswith("image_encoder"):
            value.mul_(2.0)
    return model


def make_photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H,W,3) uint8 RGB: smooth, with channels that differ."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    resized = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(resized)


def make_mixed_prompts(height: int, width: int) -> PointPrompts:
    """Seven regions of 2, 3, 4 and 10 points, so that every kind stands beside every other."""
    box = [1.5, 2.0, width - 3.0, height - 2.5]
    mask = np.zeros((height, width), bool)
    mask[2 : height // 2, width // 3 :] = True
    return PointPrompts.concatenate(
        [
            PointPrompts.from_points([[width / 2, height / 3]]),
            PointPrompts.from_masks(mask),
            PointPrompts.from_boxes([box]),
            PointPrompts.from_points([[[3.0, 5.0], [width - 1.0, 7.0]]], [[1, 0]]),
            PointPrompts.from_boxes(
                [box, [-4.0, 0.0, 9.0, 11.0]], [[[7, 8], [2, 3]]] * 2, [[0, 1]] * 2
            ),
            PointPrompts.from_points([[0, height]]),
        ]
    )


def assert_same(found: RegionPredictions, wanted: RegionPredictions) -> None:
    """The same answers up to rounding, in the same order."""
    assert len(found) == len(wanted)
    assert found.mask_index.tolist() == wanted.mask_index.tolist()
    assert found.concepts == wanted.concepts
    assert found.captions == wanted.captions
    assert found.masks.shape == wanted.masks.shape
    assert (found.masks != wanted.masks).sum() <= 1e-3 * found.masks.size
    for name in FIELDS[:-1]:
        np.testing.assert_allclose(
            getattr(found, name), getattr(wanted, name), rtol=0, atol=2e-5, err_msg=name
        )


@torch.no_grad()
def answer_plainly(
    predictor: TAPPredictor, photo: np.ndarray, prompt: PointPrompts, top_k: int
) -> RegionPredictions:
    """One region the long way: no shared work, no cache, no chunks; routing and scores in NumPy."""
    assert predictor.concepts is not None
    model = predictor.model
    pixels, (frame,) = prepare_images([photo], model.config)
    context = model.prepare_regions(model.encode_images(pixels))
    coords = torch.tensor(prompt.coords_xy * np.float32(frame.scale))[None]
    outputs = model.decode_regions(context, coords, torch.tensor(prompt.labels)[None])
    scores = outputs.iou_scores[0].numpy()
    slot = 0 if prompt.labels[0, 0] == 2 else 1 + int(scores[1:].argmax())

    side, (height, width) = model.config.image_size, frame.scaled_hw
    logits = F.interpolate(outputs.mask_logits[:, slot : slot + 1], (side, side), mode="bilinear")
    logits = F.interpolate(logits[..., :height, :width], photo.shape[:2], mode="bilinear")

    embedding = outputs.semantic_embeddings[0, slot].double().numpy()
    exponents = embedding / np.linalg.norm(embedding) @ predictor.concepts.weights.double().numpy()
    chances = np.exp(exponents) / np.exp(exponents).sum()
    order = np.argsort(-chances)[:top_k]
    caption, caption_score = write_plainly(predictor, outputs.semantic_tokens[:, slot])
    return RegionPredictions(
        masks=logits[0].numpy() > 0,
        iou_scores=scores[slot : slot + 1],
        concepts=[[NAMES[index] for index in order]],
        concept_scores=chances[order][None],
        captions=[caption],
        caption_scores=np.array([caption_score]),
        semantic_tokens=outputs.semantic_tokens[:, slot].numpy(),
        semantic_embeddings=outputs.semantic_embeddings[:, slot].numpy(),
        mask_tokens=outputs.mask_tokens[:, slot].numpy(),
        mask_index=np.array([slot]),
    )


def write_plainly(predictor: TAPPredictor, semantic_token: Tensor) -> tuple[str, float]:
    """Greedy caption of (1,C), one full forward per word, and its mean log-probability."""
    tokenizer, config = predictor.text_tokenizer, predictor.model.config
    assert tokenizer is not None
    ids, log_probs = [tokenizer.start_id], list[float]()
    while len(log_probs) < config.max_text_length - 2 and ids[-1] != tokenizer.end_id:
        logits = predictor.model.score_captions(semantic_token, torch.tensor([ids]))[0, -1]
        chances = logits.double().log_softmax(-1)
        ids.append(int(chances.argmax()))
        log_probs.append(float(chances.max()))
    return tokenizer.decode([ids])[0], float(np.mean(log_probs))
