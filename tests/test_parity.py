"""The published implementation's numbers, reproduced through the public contract.

They lie outside this repository, in ../shared/parity: a small checkpoint with random weights in the
published format, its vocabulary and text tokenizer, two photos, and all expected outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenize_anything import (
    ConceptVocabulary,
    EncodedImage,
    PointPrompts,
    RegionOutputs,
    RegionPredictions,
    TAPPredictor,
    TextTokenizer,
    load_model,
)
from tokenize_anything.checkpoints import save_model
from tokenize_anything.companions import Companions
from tokenize_anything.image_transform import prepare_images
from tokenize_anything.published_format import convert_checkpoint

PARITY = Path(__file__).resolve().parents[2] / "shared" / "parity"
PHOTOS = [PARITY / "street.png", PARITY / "wide.png"]
SETS = ["point", "box", "box_and_points", "sketch"]
STRIDE = 2  # of the rows and columns of the features that were kept
TOP_K = 5

pytestmark = pytest.mark.skipif(
    not (PARITY / "expected.npz").is_file(),
    reason=f"needs the published implementation's numbers, {PARITY}; tests/test_golden.py runs "
    "without",
)


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(PARITY / "expected.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def load_published() -> TAPPredictor:
    return TAPPredictor.from_pretrained(
        PARITY / "checkpoint.pkl",
        device="cpu",
        concepts=PARITY / "concepts.pkl",
        text_tokenizer=PARITY / "text_tokenizer.model",
    )


def load_saved(folder: Path) -> TAPPredictor:
    """From one native file that holds all three parts."""
    companions = Companions(
        ConceptVocabulary.load(PARITY / "concepts.pkl"),
        TextTokenizer.from_file(PARITY / "text_tokenizer.model"),
    )
    tensors, metadata = companions.pack()
    model = load_model(PARITY / "checkpoint.pkl", device="cpu")
    path = save_model(
        model, folder / "saved.safetensors", dtype="float32", metadata=metadata,
        extra_tensors=tensors,
    )  # fmt: skip
    return TAPPredictor.from_pretrained(path, device="cpu")


def load_converted(folder: Path) -> TAPPredictor:
    """From a native file with the weights alone."""
    path = folder / "converted.safetensors"
    convert_checkpoint(PARITY / "checkpoint.pkl", path, dtype="float32")
    ConceptVocabulary.load(PARITY / "concepts.pkl").save(folder / "concepts.safetensors")
    return TAPPredictor.from_pretrained(
        path,
        device="cpu",
        concepts=folder / "concepts.safetensors",
        text_tokenizer=PARITY / "text_tokenizer.model",
    )


@pytest.fixture(scope="module", params=["published", "saved", "converted"])
def predictor(request: Any, tmp_path_factory: pytest.TempPathFactory) -> TAPPredictor:
    if request.param == "published":
        return load_published()
    folder = tmp_path_factory.mktemp(request.param)
    return load_saved(folder) if request.param == "saved" else load_converted(folder)


@pytest.fixture(scope="module")
def encoded(predictor: TAPPredictor) -> list[EncodedImage]:
    return predictor.encode_images(list(PHOTOS))


@pytest.fixture(scope="module")
def published() -> TAPPredictor:
    return load_published()


@pytest.fixture(scope="module")
def published_encoded(published: TAPPredictor) -> list[EncodedImage]:
    return published.encode_images(list(PHOTOS))


def prompts_of(expected: dict[str, np.ndarray], name: str) -> list[PointPrompts]:
    """One PointPrompts per photo."""
    return [
        PointPrompts(points[..., :2], points[..., 2].astype(np.int64))
        for points in expected[f"{name}.points"]
    ]


def assert_close(found: Any, wanted: np.ndarray) -> None:
    """Within 1e-4 of the scale of the wanted values."""
    assert np.shape(found) == wanted.shape
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=0, atol=1e-4 * scale)


def assert_regions(
    regions: Sequence[RegionPredictions], expected: dict[str, np.ndarray], name: str
) -> None:
    """Compare the records of both photos with one prompt set, field by field."""
    wanted = {key.removeprefix(f"{name}."): value for key, value in expected.items()
              if key.startswith(f"{name}.")}  # fmt: skip
    index = wanted["mask_index"]
    rows = np.arange(len(index))
    joined = {
        field: np.concatenate([getattr(record, field) for record in regions])
        for field in ("mask_index", "iou_scores", "semantic_tokens", "semantic_embeddings",
                      "concept_scores", "concepts", "captions")
    }  # fmt: skip
    assert joined["mask_index"].tolist() == index.tolist()
    assert_close(joined["iou_scores"], wanted["iou_pred"][rows, index])
    assert_close(joined["semantic_tokens"], wanted["sem_tokens"][rows, index, 0])
    assert_close(joined["semantic_embeddings"], wanted["sem_embeds"][rows, index])
    assert_close(joined["concept_scores"], wanted["concept_scores"])
    assert joined["concepts"].tolist() == wanted["concepts"].tolist()
    assert joined["captions"].tolist() == wanted["captions"].tolist()
    areas = np.concatenate([record.masks.sum(axis=(1, 2)) for record in regions])
    np.testing.assert_allclose(areas, wanted["mask_area"], rtol=1e-3)
    for photo, record in enumerate(regions):
        bits = np.unpackbits(wanted[f"masks_{photo}"], count=record.masks.size)
        masks = bits.reshape(record.masks.shape).astype(bool)
        overlap = (masks & record.masks).sum(axis=(1, 2)) / (masks | record.masks).sum(axis=(1, 2))
        assert overlap.min() >= 0.999, overlap


def test_pixels_and_frames(expected: dict[str, np.ndarray], published: TAPPredictor) -> None:
    facts = published.model.config.pixels
    pixels, frames = prepare_images(PHOTOS, published.model.config)
    np.testing.assert_allclose(pixels[:, :, ::64, ::64], expected["img_input_slice"], atol=1e-6)
    mean, std = (np.reshape(values, (3, 1, 1)) for values in (facts.mean, facts.std))
    padded = pixels.numpy() * std + mean
    np.testing.assert_allclose(padded.mean(axis=(1, 2, 3)), expected["img_batch_mean"], rtol=1e-6)
    for frame, original, scaled, scales in zip(
        frames, expected["img_shapes"], expected["scaled_shapes"], expected["scales"], strict=True
    ):
        assert frame.original_hw == tuple(original)
        assert frame.scaled_hw == tuple(scaled)
        assert [frame.scale, frame.scale] == pytest.approx(scales.tolist(), rel=1e-12)


def test_features(expected: dict[str, np.ndarray], encoded: list[EncodedImage]) -> None:
    for image, wanted in zip(encoded, expected["img_embeds"][:, 0], strict=True):
        assert_close(image.features[:, ::STRIDE, ::STRIDE].permute(1, 2, 0), wanted)


@pytest.mark.parametrize("name", SETS)
def test_all_four_slots(
    expected: dict[str, np.ndarray],
    predictor: TAPPredictor,
    encoded: list[EncodedImage],
    name: str,
) -> None:
    outputs = RegionOutputs.concatenate(
        [
            predictor.decode_regions(image, prompts)
            for image, prompts in zip(encoded, prompts_of(expected, name), strict=True)
        ]
    )
    assert outputs.mask_index.tolist() == expected[f"{name}.mask_index"].tolist()
    assert_close(outputs.iou_scores, expected[f"{name}.iou_pred"])
    assert_close(outputs.mask_logits[..., ::4, ::4], expected[f"{name}.mask_pred"])
    assert_close(outputs.semantic_tokens, expected[f"{name}.sem_tokens"][:, :, 0])
    assert_close(outputs.semantic_embeddings, expected[f"{name}.sem_embeds"])


def test_both_photos_in_one_call(expected: dict[str, np.ndarray], predictor: TAPPredictor) -> None:
    """From files to words; the other tests start from the encoded photos."""
    prompts = [PointPrompts.concatenate(each) for each in
               zip(*(prompts_of(expected, name) for name in SETS), strict=True)]  # fmt: skip
    many = predictor.predict_mask_concept_caption(list(PHOTOS), prompts=prompts, top_k=TOP_K)
    start = 0
    for name in SETS:  # regions keep their numbers, whatever stands beside them in the call
        stop = start + expected[f"{name}.points"].shape[1]
        assert_regions([record[start:stop] for record in many], expected, name)
        start = stop
    assert [len(record) for record in many] == [stop, stop]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("chunk", [None, 1])
def test_one_set_in_one_call(
    expected: dict[str, np.ndarray],
    published: TAPPredictor,
    published_encoded: list[EncodedImage],
    name: str,
    chunk: int | None,
) -> None:
    predictor = TAPPredictor(
        published.model,
        concepts=published.concepts,
        text_tokenizer=published.text_tokenizer,
        region_chunk=chunk,
    )
    regions = predictor.predict_mask_concept_caption(
        published_encoded, prompts=prompts_of(expected, name), top_k=TOP_K
    )
    assert_regions(regions, expected, name)


@pytest.mark.parametrize("name", SETS)
def test_one_region_per_call(
    expected: dict[str, np.ndarray],
    published: TAPPredictor,
    published_encoded: list[EncodedImage],
    name: str,
) -> None:
    regions = [
        RegionPredictions.concatenate(
            [
                published.predict_mask_concept_caption(image, prompts=prompt, top_k=TOP_K)
                for prompt in prompts
            ]
        )
        for image, prompts in zip(published_encoded, prompts_of(expected, name), strict=True)
    ]
    assert_regions(regions, expected, name)


def test_points_and_boxes_as_plain_arguments(
    expected: dict[str, np.ndarray],
    published: TAPPredictor,
    published_encoded: list[EncodedImage],
) -> None:
    points = list(expected["point.points"][:, :, 0, :2])
    boxes = list(expected["box.points"][..., :2].reshape(2, -1, 4))
    regions = published.predict_mask_concept_caption(
        published_encoded, points=points, boxes=boxes, top_k=TOP_K
    )
    assert_regions([record[:2] for record in regions], expected, "point")
    assert_regions([record[2:] for record in regions], expected, "box")


def test_boxes_with_clicks(
    expected: dict[str, np.ndarray],
    published: TAPPredictor,
    published_encoded: list[EncodedImage],
) -> None:
    prompts = [
        PointPrompts.from_boxes(rows[:, :2, :2].reshape(-1, 4), rows[:, 2:, :2], rows[:, 2:, 2])
        for rows in expected["box_and_points.points"]
    ]
    regions = published.predict_mask_concept_caption(
        published_encoded, prompts=prompts, top_k=TOP_K
    )
    assert_regions(regions, expected, "box_and_points")
