"""Scores of held-out masks against the long way round, and which photos are looked at."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.photos import write_photos
from tests.tiny import tiny_config, tiny_tap
from tokenize_anything import PointPrompts, TAPPredictor
from tokenize_anything.data.coco_lvis import read_regions
from tokenize_anything.geometry import decode_rle, masks_to_boxes
from tokenize_anything.training.config import DataConfig, MaskValidationConfig
from tokenize_anything.training.distributed import Processes
from tokenize_anything.training.mask_validation import MaskValidator, middle_point

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("validation") / "set"
    write_photos(root, count=7)
    return root


def make_validator(
    folder: Path, processes: Processes | None = None, **changes: int
) -> MaskValidator:
    data = DataConfig(
        annotation_files=(str(folder / "photos.json"),), image_folder=str(folder / "images")
    )
    return MaskValidator(MaskValidationConfig(data=data, **changes), processes or Processes(CPU))


def test_scores_are_those_of_the_predictor(folder: Path) -> None:
    model = tiny_tap(tiny_config())
    predictor = TAPPredictor(model)
    records, _ = read_regions([folder / "photos.json"], folder / "images")
    ious: dict[str, list[float]] = {"box_iou": [], "point_iou": []}
    for record in records:
        masks = np.stack([decode_rle(region.rle) for region in record.regions if region.rle])
        points = [middle_point(mask) for mask in masks]
        asked = {
            "box_iou": PointPrompts.from_boxes(masks_to_boxes(masks)),
            "point_iou": PointPrompts.from_points(points),
        }
        for name, prompts in asked.items():
            found = predictor.predict_mask_concept_caption(str(record.path), prompts=prompts)
            for one, truth in zip(found.masks, masks, strict=True):
                ious[name].append(float((one & truth).sum() / (one | truth).sum()))
    scores = make_validator(folder).run(model.train())
    assert not model.training
    assert len(ious["box_iou"]) == 14
    for name, values in ious.items():
        assert scores[name] == pytest.approx(np.mean(values), abs=1e-6), name
    assert scores["mean_iou"] == pytest.approx((scores["box_iou"] + scores["point_iou"]) / 2)
    assert make_validator(folder).run(model) == scores


def test_photos_are_spread_evenly(folder: Path) -> None:
    validator = make_validator(folder, max_images=3)
    assert [record.path.name for record in validator.records] == ["0.png", "3.png", "6.png"]
    assert len(make_validator(folder, max_images=100).records) == 7


def test_processes_share_the_photos(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each of three processes adds to the sum; together they are one process alone."""
    model = tiny_tap(tiny_config())
    parts = []
    monkeypatch.setattr(Processes, "sum", lambda self, values: parts.append(values) or values)
    alone = make_validator(folder).run(model)
    whole = parts.pop()
    for rank in range(3):
        make_validator(folder, Processes(CPU, rank, 3)).run(model)
    assert [int(part[2]) for part in parts] == [6, 4, 4]
    torch.testing.assert_close(torch.stack(parts).sum(dim=0), whole)
    assert alone["box_iou"] == float(whole[0] / whole[2])


def test_low_precision_is_near(folder: Path) -> None:
    model = tiny_tap(tiny_config())
    exact = make_validator(folder).run(model)
    near = make_validator(folder).run(model, torch.bfloat16)
    assert near != exact
    for name, value in exact.items():
        assert near[name] == pytest.approx(value, abs=0.05)


@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (1, 7), (5, 7)])
def test_the_middle_of_a_rectangle(shape: tuple[int, int]) -> None:
    mask = np.zeros((11, 13), dtype=bool)
    mask[2 : 2 + shape[0], 3 : 3 + shape[1]] = True
    assert middle_point(mask) == (3 + shape[1] // 2, 2 + shape[0] // 2)


def test_the_middle_lies_in_the_mask() -> None:
    for seed in range(50):
        mask = np.random.default_rng(seed).random((7, 9)) < 0.1
        mask[3, 4] |= not mask.any()
        x, y = middle_point(mask)
        assert mask[y, x]


def test_data_without_masks_is_refused(folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "photos.json").read_text())
    for annotation in content["annotations"]:
        annotation.pop("segmentation", None)
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    data = DataConfig(annotation_files=(str(tmp_path / "boxes.json"),), image_folder="")
    with pytest.raises(ValueError, match=r"validation\.data: expected regions with masks in"):
        MaskValidator(MaskValidationConfig(data=data), Processes(CPU))


def test_a_missing_photo_is_named(folder: Path) -> None:
    validator = make_validator(folder)
    record = dataclasses.replace(validator.records[0], path=folder / "gone.png")
    validator.records = [record]
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        validator.run(tiny_tap(tiny_config()))
