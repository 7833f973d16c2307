"""Tokens of the annotations of a COCO file: prompts, ids, boxes, what is left out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.photos import annotate, coco, draw_shape, write_json, write_photos
from tests.downstream.tiny_tokens import CountingMaker, read_entries, read_rows
from tokenize_anything import RegionPredictions
from tokenize_anything.downstream.token_build import TokenReport, TokenWork, build_tokens
from tokenize_anything.downstream.token_check import verify_tokens
from tokenize_anything.downstream.token_maker import TokenMaker
from tokenize_anything.downstream.token_photos import CocoPhotos
from tokenize_anything.geometry import decode_rle

pytest.importorskip("lance", reason="needs tokenize-anything[search]")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Four photos of two shapes and one box without mask each; ids 1 to 12."""
    return write_photos(tmp_path)


@pytest.fixture(scope="module")
def maker() -> CountingMaker:
    return CountingMaker()


def build(file: Path, maker: TokenMaker, kind: str = "box", block: int = 3) -> TokenReport:
    photos = CocoPhotos.open(file, file.parent / "images", kind)
    return build_tokens(photos, maker, file.parent / f"{kind}.lance", TokenWork(block=block))


def edit(file: Path, change: Any) -> None:
    content = json.loads(file.read_text())
    change(content)
    write_json(file, content)


def answer_plainly(file: Path, maker: TokenMaker, kind: str) -> dict[int, RegionPredictions]:
    """Every annotation that can be used alone, by its id."""
    content, found = json.loads(file.read_text()), {}
    for image in content["images"]:
        path = file.parent / "images" / image["file_name"]
        for annotation in content["annotations"]:
            if annotation["image_id"] != image["id"]:
                continue
            x, y, w, h = annotation["bbox"]
            prompt: dict[str, Any] = {"boxes": [[x, y, x + w, y + h]]}
            if kind == "mask":
                if "segmentation" not in annotation:
                    continue
                prompt = {"masks": decode_rle(annotation["segmentation"])}
            found[annotation["id"]] = maker.predictor.predict_mask_concept_caption(path, **prompt)
    return found


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_every_annotation_is_a_prompt_and_keeps_its_id(
    file: Path, maker: CountingMaker, kind: str
) -> None:
    report = build(file, maker, kind)
    expected = answer_plainly(file, maker, kind)
    rows = read_rows(file.parent / f"{kind}.lance")
    assert sorted(rows["region_id"]) == sorted(expected)
    assert len(expected) == (12 if kind == "box" else 8)
    for row, region_id in enumerate(rows["region_id"]):
        region = expected[region_id]
        for column, name in (
            ("semantic_token", "semantic_tokens"),
            ("semantic_embedding", "semantic_embeddings"),
            ("mask_token", "mask_tokens"),
            ("iou_score", "iou_scores"),
            ("caption_score", "caption_scores"),
        ):
            wanted = getattr(region, name)[0]
            np.testing.assert_allclose(rows[column][row], wanted, atol=2e-5, err_msg=column)
        assert rows["caption"][row] == region.captions[0]
        assert rows["concept"][row] == region.concepts[0][0]
        if region.masks.any():
            assert rows["box_xyxy"][row] == region.boxes_xyxy[0].tolist()
        assert rows["source"][row] == f"{(region_id - 1) // 3}.png"
    if kind == "mask":
        assert report.left_out == tuple(
            f"{n}.png: region {3 * n + 3}: no mask, which is asked for as the prompt"
            for n in range(4)
        )
    assert verify_tokens(file.parent / f"{kind}.lance", file.parent / "images").problems == ()


def test_an_empty_mask_leaves_the_box_of_the_annotation(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = TokenMaker._predict

    def erase(self: TokenMaker, photos: Any) -> Any:
        return [
            dataclasses.replace(record, masks=np.zeros_like(record.masks), boxes_xyxy=None)
            for record in predict(self, photos)
        ]

    monkeypatch.setattr(TokenMaker, "_predict", erase)

    def widen(content: Any) -> None:
        content["annotations"][2]["bbox"] = [-3.5, 7.0, 900.0, 17.0]

    edit(file, widen)
    build(file, CountingMaker())
    rows = read_rows(file.parent / "box.lance")
    boxes = dict(zip(rows["region_id"], rows["box_xyxy"], strict=True))
    assert boxes[6] == [5.5, 7.0, 25.75, 24.0]
    assert boxes[3] == [0.0, 7.0, 61.0, 24.0]  # within the photo, 47 x 61
    assert verify_tokens(file.parent / "box.lance").problems == ()


@pytest.mark.parametrize(
    "key, value, is_done", [("bbox", [2, 3, 21, 17], True), ("captions", ["new"], False)]
)
def test_a_changed_annotation_is_done_again(
    file: Path, maker: CountingMaker, key: str, value: Any, is_done: bool
) -> None:
    build(file, maker)
    maker.worked_on = []
    edit(file, lambda content: content["annotations"][4].update({key: value}))
    assert build(file, maker).num_done == is_done
    assert maker.worked_on == ["1.png"] * is_done
    rows = read_rows(file.parent / "box.lance")
    assert sorted(rows["region_id"]) == list(range(1, 13))


def test_a_region_may_move_to_another_photo(file: Path, maker: CountingMaker) -> None:
    build(file, maker)
    edit(file, lambda content: content["annotations"][0].update(image_id=3))
    assert build(file, maker).num_done == 2
    rows = read_rows(file.parent / "box.lance")
    assert dict(zip(rows["region_id"], rows["source"], strict=True))[1] == "2.png"


def test_photos_that_lose_their_annotations_leave(file: Path, maker: CountingMaker) -> None:
    build(file, maker)

    def drop(content: Any) -> None:
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 2]

    edit(file, drop)
    report = build(file, maker)
    assert (report.num_done, report.num_removed, report.num_regions) == (0, 1, 9)
    assert sorted(read_entries(file.parent / "box.lance")) == ["0.png", "2.png", "3.png"]


def test_annotations_without_id_get_one_and_bad_ones_are_named(
    file: Path, maker: CountingMaker
) -> None:
    def change(content: Any) -> None:
        first = content["annotations"][0]
        del first["id"]
        content["annotations"][1]["iscrowd"] = 1
        content["annotations"][2]["bbox"] = [4, 4, 1, 9]

    edit(file, change)
    report = build(file, maker)
    rows = read_rows(file.parent / "box.lance")
    ids = [i for i, s in zip(rows["region_id"], rows["source"], strict=True) if s == "0.png"]
    assert len(ids) == 1 and ids[0] > 12
    assert report.left_out == (
        "0.png: region 2: a crowd, not one region",
        f"{file.parent / 'images' / '0.png'}: region 3: expected a box of at least 2 pixels a "
        "side, got [4, 4, 1, 9]",
    )
    assert build(file, maker).left_out == report.left_out


def test_a_photo_of_another_size_is_left_out(file: Path, maker: CountingMaker) -> None:
    edit(file, lambda content: content["images"][1].update(height=54))
    (problem,) = build(file, maker).problems
    assert problem == (
        "1.png: photo: expected (54, 43) (height, width) as its entry says, got (53, 43)"
    )


def test_masks_that_cannot_be_prompts_are_left_out(tmp_path: Path, maker: CountingMaker) -> None:
    write_photos(tmp_path, 1)
    mask = draw_shape("ball", 47, 61, (30, 20))
    whole = annotate(mask, 7, 1)
    empty = {**annotate(mask, 8, 1), "segmentation": annotate(~mask & mask, 8, 1)["segmentation"]}
    other = {**annotate(mask, 9, 1), "segmentation": annotate(mask[:-1], 9, 1)["segmentation"]}
    image = {"id": 1, "file_name": "0.png", "height": 47, "width": 61}
    file = write_json(tmp_path / "masks.json", coco([image], [whole, empty, other]))
    report = build(file, maker, "mask")
    assert report.left_out == (
        "0.png: region 8: its mask is empty",
        "0.png: region 9: expected a mask of (47, 61) (height, width), got (46, 61)",
    )
    assert read_rows(tmp_path / "mask.lance")["region_id"] == [7]


def test_what_is_no_usable_file_is_refused(file: Path) -> None:
    images = file.parent / "images"
    with pytest.raises(ValueError, match=r"prompt: expected 'box' or 'mask', got 'point'"):
        CocoPhotos.open(file, images, "point")
    edit(file, lambda content: content["annotations"][3].update(id=2))
    with pytest.raises(ValueError, match=r"has the annotation ids 2 more than once; number them"):
        CocoPhotos.open(file, images)
    with pytest.raises(FileNotFoundError, match="annotations: no file at"):
        CocoPhotos.open(file.with_name("none.json"), images)
