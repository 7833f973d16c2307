"""The result record: one place of checking, selection, and the formats of others."""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import ExitStack as DoesNotRaise
from typing import Any

import numpy as np
import pytest
import torch

from tokenize_anything.geometry import decode_rle
from tokenize_anything.regions import RegionPredictions

FIELDS = [field.name for field in dataclasses.fields(RegionPredictions)]
COUNT, HEIGHT, WIDTH, TOP_K, TOKEN_DIM, EMBEDDING_DIM = 3, 5, 7, 2, 11, 13


def full_values(seed: int = 0) -> dict[str, Any]:
    """Every field of three regions; the masks are rectangles, the last one is empty."""
    random = np.random.default_rng(seed)
    masks = np.zeros((COUNT, HEIGHT, WIDTH), bool)
    masks[0, 1:3, 2:6] = True
    masks[1, :4, 6:] = True
    return {
        "masks": masks,
        "iou_scores": random.random(COUNT, dtype=np.float32),
        "boxes_xyxy": np.array([[2, 1, 6, 3], [6, 0, 7, 4], [0, 0, 0, 0]], np.float32),
        "concepts": [["cat", "dog"], ["ant", "cat"], ["dog", "bee"]],
        "concept_scores": random.random((COUNT, TOP_K), dtype=np.float32),
        "captions": ['a "red" cat', None, "ein Hündchen"],
        "caption_scores": -random.random(COUNT, dtype=np.float32),
        "semantic_tokens": random.standard_normal((COUNT, TOKEN_DIM), dtype=np.float32) * 1e-7,
        "semantic_embeddings": random.standard_normal((COUNT, EMBEDDING_DIM), dtype=np.float32),
        "mask_tokens": random.standard_normal((COUNT, TOKEN_DIM), dtype=np.float32),
        "mask_index": np.array([0, 3, 1]),
    }


def make(**changes: Any) -> RegionPredictions:
    return RegionPredictions(**{**full_values(), **changes})


def assert_same(regions: RegionPredictions, expected: RegionPredictions) -> None:
    for name in FIELDS:
        found, wanted = getattr(regions, name), getattr(expected, name)
        if isinstance(wanted, list):
            assert found == wanted, name
        else:
            np.testing.assert_array_equal(found, wanted, err_msg=name)
            assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape), name


# --- building -----------------------------------------------------------------------------------


def test_fields_keep_their_values_and_dtypes() -> None:
    values, regions = full_values(), make()
    for name, value in values.items():
        np.testing.assert_array_equal(getattr(regions, name), value, err_msg=name)
    dtypes = {name: str(np.asarray(getattr(regions, name)).dtype) for name in FIELDS}
    assert dtypes["masks"] == "bool"
    assert dtypes["mask_index"] == "int64"
    assert {dtypes[name] for name in FIELDS if "scores" in name} == {"float32"}
    assert regions.image_size_hw == (HEIGHT, WIDTH)
    assert len(regions) == COUNT


def test_only_masks_and_scores_are_required() -> None:
    values = full_values()
    regions = RegionPredictions(masks=values["masks"], iou_scores=values["iou_scores"])
    np.testing.assert_array_equal(regions.boxes_xyxy, values["boxes_xyxy"])
    assert regions.concepts == [[], [], []]
    assert regions.captions == [None, None, None]
    assert regions.concept_scores.shape == (COUNT, 0)
    assert regions.semantic_tokens.shape == regions.semantic_embeddings.shape == (COUNT, 0)
    np.testing.assert_array_equal(regions.caption_scores, np.zeros(COUNT))
    np.testing.assert_array_equal(regions.mask_index, np.zeros(COUNT))


def test_tensors_are_read() -> None:
    values = full_values()
    tensors = {
        name: torch.from_numpy(value.copy())
        for name, value in values.items()
        if isinstance(value, np.ndarray)
    }
    assert_same(make(**tensors), make())


def test_the_record_is_read_only_and_leaves_inputs_alone() -> None:
    values = full_values()
    regions = RegionPredictions(**values)
    with pytest.raises(ValueError, match=r"read-only"):
        regions.masks[0] = False
    with pytest.raises(dataclasses.FrozenInstanceError):
        regions.captions = []  # type: ignore[misc]
    regions.concepts[0].append("new")
    regions.captions.append("new")
    assert values["concepts"] == full_values()["concepts"]
    assert values["captions"] == full_values()["captions"]
    values["masks"][0] = True  # the caller's own array stays writable


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masks": np.zeros((HEIGHT, WIDTH), bool)}, r"masks must have shape \(5, any, any\)"),
        ({"masks": np.zeros((COUNT, 0, WIDTH), bool)}, r"masks must have pixels"),
        ({"masks": np.zeros((COUNT, HEIGHT, WIDTH))}, r"masks must be bool.*logits > 0"),
        ({"masks": np.zeros((4, HEIGHT, WIDTH), bool)}, r"of 4 regions: iou_scores must have"),
        ({"iou_scores": [0.5, 0.5]}, r"iou_scores must have shape \(3\), got \(2,\)"),
        ({"iou_scores": [0.5, np.nan, 1]}, r"iou_scores must be finite, got NaN"),
        ({"iou_scores": [0.5, 1e300, 1]}, r"iou_scores must be finite"),
        ({"iou_scores": ["a", "b", "c"]}, r"iou_scores must be float32, got <U1"),
        (
            {"boxes_xyxy": np.zeros((COUNT, 5))},
            r"boxes_xyxy must have shape \(3, 4\), got \(3, 5\)",
        ),
        ({"boxes_xyxy": [[3, 0, 1, 1]] * 3}, r"boxes_xyxy must have x0 <= x1.*\[3, 0, 1, 1\]"),
        ({"concept_scores": np.zeros(COUNT)}, r"concept_scores must have shape \(3, any\)"),
        ({"concept_scores": np.full((COUNT, 2), np.inf)}, r"concept_scores must be finite"),
        ({"concept_scores": np.zeros((COUNT, 1))}, r"concepts\[0\] must have 1 names.*got 2"),
        ({"concepts": [["cat", "dog"]]}, r"concepts must have length 3, got 1"),
        ({"concepts": ["cat", "dog", "ant"]}, r"concepts\[0\] must be a list of names, got 'cat'"),
        ({"concepts": [["cat", 3]] * 3}, r"concepts\[0\] must be a list of names"),
        ({"captions": ["a"]}, r"captions must have length 3, got 1"),
        ({"captions": ["a", 7, None]}, r"captions\[1\] must be text or None, got 7"),
        ({"caption_scores": [[0.1]] * 3}, r"caption_scores must have shape \(3\), got \(3, 1\)"),
        ({"semantic_tokens": np.zeros((2, 11))}, r"semantic_tokens must have shape \(3, any\)"),
        ({"semantic_embeddings": np.full((3, 1), np.nan)}, r"semantic_embeddings must be finite"),
        ({"mask_index": [0, 4, 1]}, r"mask_index must lie in 0..3, got 0..4"),
        ({"mask_index": [0, -1, 1]}, r"mask_index must lie in 0..3, got -1..1"),
        ({"mask_index": [0.5, 1, 1]}, r"mask_index must be int64, got float64"),
        (
            {"iou_scores": [np.nan] * 3, "mask_index": [1]},
            r"iou_scores must be finite.*; mask_index must have shape",
        ),
    ],
)
def test_every_problem_is_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


# --- selecting and joining ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "rows", "outcome"),
    [
        (1, [1], DoesNotRaise()),
        (-1, [2], DoesNotRaise()),
        (slice(None, None, -1), [2, 1, 0], DoesNotRaise()),
        (np.array([False, True, True]), [1, 2], DoesNotRaise()),
        (np.array([2, 0, 2]), [2, 0, 2], DoesNotRaise()),
        ([], [], DoesNotRaise()),
        (3, None, pytest.raises(IndexError)),
        (np.array([True]), None, pytest.raises(IndexError)),
    ],
)
def test_indexing_selects_all_fields(index: Any, rows: Any, outcome: Any) -> None:
    with outcome:
        part, values = make()[index], full_values()
        assert len(part) == len(rows)
        for name, value in values.items():
            expected = [value[row] for row in rows]
            found = getattr(part, name)
            assert len(found) == len(rows)
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other, err_msg=name)


def test_iteration_and_concatenation_are_inverse() -> None:
    regions = make()
    assert [len(part) for part in regions] == [1, 1, 1]
    assert_same(RegionPredictions.concatenate(list(regions)), regions)


def test_concatenation_passes_over_records_without_regions() -> None:
    empty = RegionPredictions.empty(HEIGHT, WIDTH)
    assert_same(RegionPredictions.concatenate([empty, make(), empty]), make())
    assert_same(RegionPredictions.concatenate([empty, empty]), empty)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], r"records: expected at least one.*RegionPredictions\.empty"),
        ([make(), make(concept_scores=None, concepts=None)], r"concept_scores of one size"),
        (
            [make(), RegionPredictions.empty(WIDTH, HEIGHT)],
            r"masks of one size.*\(5, 7\), \(7, 5\)",
        ),
    ],
)
def test_concatenation_checks_sizes(records: list[RegionPredictions], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegionPredictions.concatenate(records)


def test_empty() -> None:
    empty = RegionPredictions.empty(5, 7, num_concepts=2, token_dim=11, embedding_dim=13)
    assert_same(empty, make()[[]])
    assert empty.to_coco() == []
    assert list(empty) == []


def test_repr_is_short() -> None:
    assert repr(make()) == "RegionPredictions(3 regions of 5 x 7 pixels: [cat, ant, dog])"
    many = RegionPredictions.concatenate([make(), make()])
    assert repr(many).endswith("[cat, ant, dog, cat, ant, ...])")


# --- formats of others --------------------------------------------------------------------------


def test_to_coco() -> None:
    regions = make(iou_scores=[0.5, 0.1, 2.0])
    annotations = regions.to_coco(42, {"cat": 17, "ant": 90, "dog": 1}, first_id=100)
    first = annotations[0]
    assert first | {"segmentation": None, "concept_scores": None} == {
        "id": 100,
        "image_id": 42,
        "category_id": 17,
        "segmentation": None,
        "area": 8,
        "bbox": [2.0, 1.0, 4.0, 2.0],
        "iscrowd": 0,
        "score": 0.5,
        "caption": 'a "red" cat',
        "concepts": ["cat", "dog"],
        "concept_scores": None,
    }
    scores = np.array(first["concept_scores"], np.float32)
    np.testing.assert_array_equal(scores, regions.concept_scores[0])
    np.testing.assert_array_equal(decode_rle(first["segmentation"]), regions.masks[0])
    assert [(one["id"], one["category_id"], one["area"]) for one in annotations] == [
        (100, 17, 8), (101, 90, 4), (102, 1, 0),
    ]  # fmt: skip
    assert json.loads(json.dumps(annotations)) == annotations
    assert {one["category_id"] for one in regions.to_coco()} == {1}


def test_to_coco_is_read_by_pycocotools() -> None:
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    from pycocotools.coco import COCO

    regions = make()[:2]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": 1, "height": HEIGHT, "width": WIDTH}],
        "annotations": regions.to_coco(),
        "categories": [{"id": 1, "name": "region"}],
    }
    coco.createIndex()
    masks = [coco.annToMask(annotation) for annotation in coco.loadAnns(coco.getAnnIds(1))]
    np.testing.assert_array_equal(masks, regions.masks)


def test_to_coco_needs_an_id_per_concept() -> None:
    with pytest.raises(ValueError, match=r"category_ids: expected an id.*got none for 'ant'; add"):
        make().to_coco(category_ids={"cat": 1, "dog": 2})
    with pytest.raises(ValueError, match=r"'a region without concepts'"):
        make(concepts=None, concept_scores=None).to_coco(category_ids={"cat": 1})


def test_to_supervision() -> None:
    pytest.importorskip("supervision", reason="supervision is not installed")
    regions = make()
    detections = regions.to_supervision()
    np.testing.assert_array_equal(detections.xyxy, regions.boxes_xyxy)
    np.testing.assert_array_equal(detections.mask, regions.masks)
    np.testing.assert_array_equal(detections.confidence, regions.iou_scores)
    assert list(detections.data["class_name"]) == ["cat", "ant", "dog"]
    np.testing.assert_array_equal(detections.class_id, [1, 0, 2])
    assert list(detections.data["caption"]) == ['a "red" cat', "", "ein Hündchen"]
    assert len(RegionPredictions.empty(5, 7).to_supervision()) == 0


def test_to_supervision_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"pip install tokenize-anything\[app\]"):
        make().to_supervision()


@pytest.mark.parametrize(
    "regions",
    [
        make(),
        make(captions=None, concepts=None, concept_scores=None),
        RegionPredictions(
            masks=np.ones((1, 5, 7), bool), iou_scores=np.array([-1e-38], np.float32)
        ),
        RegionPredictions.empty(5, 7, num_concepts=2, token_dim=3, embedding_dim=4),
        RegionPredictions.empty(1, 1),
    ],
)
def test_json_gives_the_same_record_back(regions: RegionPredictions) -> None:
    assert_same(RegionPredictions.from_json(regions.to_json()), regions)


def test_json_is_readable_by_others() -> None:
    regions = make(iou_scores=np.array([0.1, 0.5, 1], np.float32))
    content = json.loads(regions.to_json())
    assert content["image_size"] == {"height": HEIGHT, "width": WIDTH}
    first = content["regions"][0]
    assert first["iou_score"] == 0.1  # not the nearest float32 in float64 digits
    assert first["box_xyxy"] == [2, 1, 6, 3]
    assert first["caption"] == 'a "red" cat'
    assert content["regions"][1]["caption"] is None
    assert first["mask"]["size"] == [HEIGHT, WIDTH]


def test_json_without_vectors() -> None:
    regions = make()
    text = regions.to_json(include_vectors=False)
    assert (json.loads(text)["token_dim"], json.loads(text)["embedding_dim"]) == (0, 0)
    short = RegionPredictions.from_json(text)
    assert_same(short, make(semantic_tokens=None, semantic_embeddings=None, mask_tokens=None))


@pytest.mark.parametrize("regions", [make(), make()[:0]])
def test_json_of_before_mask_tokens_is_read(regions: RegionPredictions) -> None:
    content = json.loads(regions.to_json())
    del content["mask_token_dim"]
    for region in content["regions"]:
        del region["mask_token"]
    older = RegionPredictions.from_json(json.dumps(content))
    assert older.mask_tokens.shape == (len(regions), 0)
    np.testing.assert_array_equal(older.semantic_tokens, regions.semantic_tokens)


def changed_json(**changes: Any) -> str:
    return json.dumps({**json.loads(make().to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"regions: expected JSON, got '\{'"),
        ("[]", r"expected JSON of format 'tokenize_anything.regions.1'.*to_json"),
        ('{"format": "other"}', r"expected JSON of format"),
        (changed_json(regions=[{}]), r"missing or damaged entries \(KeyError: 'mask'\)"),
        (changed_json(image_size=3), r"missing or damaged entries \(TypeError"),
        (changed_json(image_size={"height": 7, "width": 5}), r"masks of image_size \(7, 5\), got"),
        (make().to_json().replace('"mask_index": 3', '"mask_index": 9'), r"mask_index must lie"),
        (make().to_json().replace('"size": [5, 7]', '"size": [5, 9]', 1), r"5 \* 9 = 45, got 35"),
    ],
)
def test_damaged_json(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegionPredictions.from_json(text)


def test_draw_is_the_overlay_of_drawing() -> None:
    from tokenize_anything.drawing import draw_regions

    image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    drawn = make().draw(image, alpha=0.3)
    np.testing.assert_array_equal(drawn, draw_regions(image, make(), alpha=0.3))
    assert (drawn != 90).any()
