"""Masks for boxes without one: which boxes get them, which masks they are, what comes of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.photos import write_photos
from tests.tiny_predictor import tiny_predictor
from tests.training.tiny_runs import data_config
from tokenize_anything import RegionPredictions, TAPPredictor
from tokenize_anything.build import load_model
from tokenize_anything.checkpoints import save_model
from tokenize_anything.data.click_dataset import masked_regions
from tokenize_anything.data.region_dataset import decode_region
from tokenize_anything.data.samples import ImageRecord, RegionAnnotation
from tokenize_anything.modeling import TAP
from tokenize_anything.training.box_outlines import outline_boxes
from tokenize_anything.training.click_config import ClickConfig
from tokenize_anything.training.click_training import ClickTrainer
from tokenize_anything.training.training_data import open_data

ALL = {"min_score": -10.0, "min_side": 1.0}


@pytest.fixture(scope="module")
def predictor() -> TAPPredictor:
    return tiny_predictor(zoom=0.5, view_dim=3, view_size=64)


@pytest.fixture(scope="module")
def model(predictor: TAPPredictor) -> TAP:
    return predictor.model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("outlines") / "set"
    write_photos(root)
    return root


@pytest.fixture
def records(folder: Path, tmp_path: Path) -> list[ImageRecord]:
    """Of four photos; each has two regions with a mask and a box alone."""
    return list(open_data(data_config(folder), tmp_path).records)


def ask(predictor: TAPPredictor, path: Path, region: RegionAnnotation) -> RegionPredictions:
    box = [region.box_xyxy]
    return predictor.predict_mask_concept_caption(str(path), boxes=box, captions=False)


def boxes_alone(record: ImageRecord) -> list[RegionAnnotation]:
    return [r for r in record.regions if r.rle is None and not r.is_whole_image]


def test_a_box_gets_the_mask_that_its_prompt_has(
    predictor: TAPPredictor, records: list[ImageRecord]
) -> None:
    outlined = outline_boxes(predictor.model, records, **ALL)
    count = 0
    for before, after in zip(records, outlined, strict=True):
        assert not boxes_alone(after)
        for old, new in zip(before.regions, after.regions, strict=True):
            if old.rle is not None or old.is_whole_image:
                assert new is old
                continue
            assert dataclasses.replace(new, rle=None) == old
            found = ask(predictor, before.path, old)
            np.testing.assert_array_equal(decode_region(new, after), found.masks[0])
            count += 1
    assert count == 4
    assert [len(boxes_alone(record)) for record in records] == [1] * 4  # nothing was changed


def test_unsure_masks_and_small_boxes_are_left_out(
    predictor: TAPPredictor, records: list[ImageRecord]
) -> None:
    model, scores = predictor.model, []
    for record in records:
        (region,) = boxes_alone(record)
        scores.append(float(ask(predictor, record.path, region).iou_scores[0]))
    threshold = float(np.median(scores))
    outlined = outline_boxes(model, records, min_score=threshold, min_side=1.0)
    found = [not boxes_alone(record) for record in outlined]
    assert found == [score >= threshold for score in scores] and len(set(found)) == 2
    for side, is_outlined in ((17.0, True), (17.5, False)):  # of 20.25 x 17
        outlined = outline_boxes(model, records, min_score=-10.0, min_side=side)
        assert {not boxes_alone(record) for record in outlined} == {is_outlined}


def test_the_box_of_a_true_mask_stays_without(model: TAP, records: list[ImageRecord]) -> None:
    """Shifted by a tenth it is the same region; shifted by half, another one."""
    record = records[0]
    x0, y0, x1, y1 = masked_regions(record)[0].box_xyxy
    for share, is_outlined in ((0.05, False), (0.5, True)):
        shift = share * (x1 - x0)
        box = RegionAnnotation((x0 + shift, y0, x1 + shift, y1))
        photo = dataclasses.replace(record, regions=(*masked_regions(record), box))
        (found,) = outline_boxes(model, [photo], **ALL)
        assert (found.regions[-1].rle is not None) == is_outlined


def test_photos_without_boxes_are_not_read(model: TAP, tmp_path: Path) -> None:
    whole = RegionAnnotation((0, 0, 9, 7), is_whole_image=True)
    gone = [ImageRecord(tmp_path / "gone.png", 7, 9, regions) for regions in ((), (whole,))]
    assert outline_boxes(model, gone, **ALL) == gone
    box = ImageRecord(tmp_path / "gone.png", 7, 9, (RegionAnnotation((1, 1, 8, 6)),))
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        outline_boxes(model, [box], **ALL)


def test_a_box_beside_its_photo_is_named(model: TAP, records: list[ImageRecord]) -> None:
    record = records[0]
    box = RegionAnnotation((record.width + 3.0, 2.0, record.width + 19.0, 17.0))
    photo = dataclasses.replace(record, regions=(box,))
    with pytest.raises(ValueError, match=rf"{record.path.name}: .* does not overlap the image"):
        outline_boxes(model, [photo], **ALL)


@pytest.mark.parametrize(("is_on", "count"), [(False, 2), (True, 3)])
def test_clicks_are_learnt_on_outlined_boxes_where_that_is_asked_for(
    model: TAP, folder: Path, tmp_path: Path, is_on: bool, count: int
) -> None:
    path = save_model(model, tmp_path / "tiny.safetensors")
    config = ClickConfig(
        data=data_config(folder), output_folder=str(tmp_path / "run"), init_from=str(path),
        click_size=64, batch_size=2, num_steps=2, num_workers=0, precision="float32",
        outline_boxes=is_on, min_outline_score=0.0,
    )  # fmt: skip
    trainer = ClickTrainer(config)
    assert {len(masked_regions(record)) for record in trainer.dataset.records} == {count}
    after = load_model(trainer.run(), device="cpu", dtype="float32").state_dict()
    before = {name: value for name, value in model.state_dict().items() if "segmenter" in name}
    assert before and all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_outline_score": 1.5}, r"min_outline_score: expected 0 to 1, got 1\.5"),
        ({"min_outline_side": 0.0}, r"min_outline_side: expected more than 0, got 0\.0"),
    ],
)
def test_bad_settings_are_refused(
    folder: Path, tmp_path: Path, changes: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ClickConfig(data=data_config(folder), output_folder=str(tmp_path), **changes)
