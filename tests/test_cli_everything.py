"""`tap everything` as a user types it, on real files and a tiny model with random weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_cli import error_of, make_vocabulary
from tests.tiny import tiny_tap, tiny_tokenizer
from tests.tiny_predictor import make_photo, sharpen
from tokenize_anything import TAPPredictor
from tokenize_anything.checkpoints import save_model
from tokenize_anything.cli import main
from tokenize_anything.cli_photos import find_photos
from tokenize_anything.companions import Companions
from tokenize_anything.everything_config import EverythingConfig
from tokenize_anything.regions import RegionPredictions

SIZES_HW = {"a.png": (41, 67), "b.jpg": (53, 29), "sub/ç d.png": (23, 31)}
SEARCH = ["--points-per-side", "4", "--max-overlap", "0.5", "--min-iou", "0.2"]
CONFIG = EverythingConfig(points_per_side=4, max_overlap=0.5, min_iou=0.2)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that thinks well of its masks, with a vocabulary and a tokenizer."""
    model = sharpen(tiny_tap())
    with torch.no_grad():
        model.image_decoder.iou_head.layers[-1].bias += 2.0
    tensors, metadata = Companions(make_vocabulary(), tiny_tokenizer()).pack()
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    return save_model(model, path, metadata=metadata, extra_tensors=tensors)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a folder of photos, whose bytes must not change."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    (folder / "notes.md").write_text("no picture")
    for seed, (name, (height, width)) in enumerate(SIZES_HW.items()):
        Image.fromarray(make_photo(height, width, seed)).save(folder / name)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    yield folder
    assert {path: path.read_bytes() for path in before} == before


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Sizes of the photos that were searched so far."""
    sizes: list[tuple[int, int]] = []
    search = TAPPredictor.predict_everything

    def count(self: TAPPredictor, images: Any, **options: Any) -> Any:
        sizes.extend(image.shape[:2] for image in images)
        return search(self, images, **options)

    monkeypatch.setattr(TAPPredictor, "predict_everything", count)
    return sizes


def everything(model_file: Path, *words: str) -> int:
    return main(["everything", *words, "--model", str(model_file), *SEARCH])


def read_coco(path: str = "found/regions.json") -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(path).read_text())
    return content


# --- one photo ----------------------------------------------------------------------------------


def test_one_photo_gives_a_table_and_a_picture(photos, model_file, capsys):
    assert everything(model_file, "photos/a.png", "--save", "o.png", "--top-k", "2") == 0
    predictor = TAPPredictor.from_pretrained(model_file)
    regions = predictor.predict_everything("photos/a.png", config=CONFIG, top_k=2)
    assert len(regions) >= 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"a.png, 67 x 41 pixels, {model_file}"
    assert lines[2].split() == ["#", "part", "concept", "score", "IoU", "area", "caption"]
    first = [line for line in lines[3:] if line[:3].strip().isdecimal()]
    assert len(first) == len(regions)
    for line, parent in zip(first, regions.parent_index, strict=True):
        assert (f" of {parent + 1} " in line) == (parent >= 0)
    assert lines[-1] == "wrote o.png"
    drawn = regions.draw(np.asarray(Image.open("photos/a.png")))
    np.testing.assert_array_equal(np.asarray(Image.open("o.png")), drawn)


def test_nothing_found_is_said(photos, model_file, capsys):
    assert everything(model_file, "photos/a.png", "--stability-offset", "99",
                      "--min-stability", "1") == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert "no region: no mask has a predicted IoU of 0.2 and a stability of 1; lower" in printed
    assert everything(model_file, "photos", "--out", "found", "--stability-offset", "99",
                      "--min-stability", "1", "--pictures") == 0  # fmt: skip
    content = read_coco()
    assert (len(content["images"]), content["annotations"]) == (3, [])
    assert "0 regions in 3 photos" in capsys.readouterr().out


# --- many photos --------------------------------------------------------------------------------


def test_a_folder_gives_one_coco_file(photos, model_file, capsys):
    assert everything(model_file, "photos", "--out", "found", "--batch", "2") == 0
    content = read_coco()
    assert [image["file_name"] for image in content["images"]] == list(SIZES_HW)
    assert [(i["height"], i["width"]) for i in content["images"]] == list(SIZES_HW.values())
    names = [category["name"] for category in content["categories"]]
    assert names == list(make_vocabulary().names)
    ids = [annotation["id"] for annotation in content["annotations"]]
    assert ids == list(range(1, len(ids) + 1))
    predictor = TAPPredictor.from_pretrained(model_file)
    for image in content["images"]:
        own = [one for one in content["annotations"] if one["image_id"] == image["id"]]
        found = RegionPredictions.from_coco(own, image["height"], image["width"])
        expected = predictor.predict_everything(photos / image["file_name"], config=CONFIG)
        np.testing.assert_array_equal(found.masks, expected.masks)
        np.testing.assert_array_equal(found.iou_scores, expected.iou_scores)
        np.testing.assert_array_equal(found.parent_index, expected.parent_index)
        assert (found.concepts, found.captions) == (expected.concepts, expected.captions)
        assert [names[one["category_id"] - 1] for one in own] == [n[0] for n in found.concepts]
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"{len(ids)} regions in 3 photos of {photos}", "wrote found/regions.json"]
    assert {path.name for path in Path("found").iterdir()} == {
        "regions.json", "run.json", "rows.0.jsonl",
    }  # fmt: skip


def test_the_file_is_one_of_pycocotools(photos, model_file):
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    from pycocotools.coco import COCO

    words = ["photos", "--no-captions", "--min-region-area", "0"]
    assert everything(model_file, *words, "--out", "codes") == 0
    assert everything(model_file, *words, "--out", "outlines", "--polygons") == 0
    codes, outlines = (COCO(f"{name}/regions.json") for name in ("codes", "outlines"))
    assert len(codes.anns) == len(outlines.anns) > 5
    for number, annotation in codes.anns.items():
        other = outlines.anns[number]
        mask = codes.annToMask(annotation)
        assert mask.sum() == annotation["area"]
        assert isinstance(other["segmentation"], list)
        assert (outlines.annToMask(other) >= mask).all()  # holes are filled


def test_an_interrupted_run_goes_on(photos, model_file, searched, monkeypatch, capsys):
    words = ["photos", "--batch", "1"]
    assert everything(model_file, *words, "--out", "whole") == 0
    searched.clear()
    search = TAPPredictor.predict_everything

    def stop(self: TAPPredictor, images: Any, **options: Any) -> Any:
        if len(searched) == 1:
            raise KeyboardInterrupt
        return search(self, images, **options)

    monkeypatch.setattr(TAPPredictor, "predict_everything", stop)
    assert everything(model_file, *words, "--out", "found") == 130
    monkeypatch.setattr(TAPPredictor, "predict_everything", search)
    assert not Path("found/regions.json").exists()
    with Path("found/rows.0.jsonl").open("ab") as stream:
        stream.write(b'{"key": "cut short')  # as a killed process may leave it
    searched.clear()
    assert everything(model_file, *words, "--out", "found") == 0
    assert searched == [SIZES_HW["b.jpg"], SIZES_HW["sub/ç d.png"]]
    for name in ("regions.json", "rows.0.jsonl", "run.json"):
        assert Path("found", name).read_bytes() == Path("whole", name).read_bytes()
    assert "interrupted" in capsys.readouterr().err


def test_only_new_and_changed_photos_are_searched(photos, model_file, searched, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("1", "2", "3"):
        Image.fromarray(make_photo(20 + int(name), 30, int(name))).save(copy / f"{name}.png")
    assert everything(model_file, "copy", "--out", "found", "--no-captions") == 0
    (copy / "1.png").unlink()
    Image.fromarray(make_photo(35, 33, 9)).save(copy / "2.png")
    Image.fromarray(make_photo(37, 33, 9)).save(copy / "4.png")
    searched.clear()
    assert everything(model_file, "copy", "--out", "found", "--no-captions") == 0
    assert searched == [(35, 33), (37, 33)]
    assert everything(model_file, "copy", "--out", "anew", "--no-captions") == 0
    # some processors round by where in memory a photo lies
    anew = json.loads(
        Path("anew/regions.json").read_text(),
        parse_float=lambda number: pytest.approx(float(number), abs=1e-5),
    )
    assert json.loads(Path("found/regions.json").read_text()) == anew


def test_a_folder_of_other_settings_is_refused(photos, model_file, capsys):
    words = ["photos/a.png", "--out", "found", "--no-captions"]
    assert everything(model_file, *words) == 0
    before = {path: path.read_bytes() for path in Path("found").iterdir()}
    capsys.readouterr()
    assert everything(model_file, *words, "--min-stability", "0.5") == 2
    message = error_of(capsys)
    assert "found" in message
    assert "'min_stability': 0.5" in message or "search" in message
    assert {path: path.read_bytes() for path in Path("found").iterdir()} == before
    assert everything(model_file, *words, "--points-per-batch", "3") == 0  # changes nothing


def test_files_asked_for_later_need_no_search(photos, model_file, searched, capsys):
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    words = ["photos", "--out", "found"]
    assert everything(model_file, *words) == 0
    searched.clear()
    more = ["--pictures", "--label-studio", "--image-url", "/x/", "--yolo", "--voc"]
    assert everything(model_file, *words, *more) == 0
    assert searched == []
    content = read_coco()
    tasks = json.loads(Path("found/label_studio.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [f"/x/{name}" for name in SIZES_HW]
    labels = sum(
        1 for task in tasks for one in task["predictions"][0]["result"]
        if one["from_name"] == "label" and "-" not in one["id"]
    )  # fmt: skip
    assert labels == len(content["annotations"])
    assert "<PolygonLabels" in Path("found/label_studio.xml").read_text()
    for name, (height, width) in SIZES_HW.items():
        assert Image.open(Path("found/pictures", name)).size == (width, height)
    yolo = supervision.DetectionDataset.from_yolo(
        "found/yolo/images", "found/yolo/labels", "found/yolo/data.yaml"
    )
    assert yolo.classes == list(make_vocabulary().names)
    assert len(yolo) == len(list(Path("found/voc/annotations").glob("*.xml"))) == 3
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "wrote found/pictures", "wrote found/yolo", "wrote found/voc",
    ]  # fmt: skip


def test_a_model_without_words(photos, tmp_path, capsys):
    model = tiny_tap()
    with torch.no_grad():
        model.image_decoder.iou_head.layers[-1].bias += 2.0
    path = save_model(model, tmp_path / "bare.safetensors")
    assert everything(path, "photos/a.png", "--out", "found", "--label-studio") == 0
    content = read_coco()
    assert content["categories"] == [{"id": 1, "name": "region"}]
    assert {one["category_id"] for one in content["annotations"]} == {1}
    assert "no text tokenizer" in capsys.readouterr().err


# --- which photos -------------------------------------------------------------------------------


def test_photos_of_folders_patterns_and_lists(photos, tmp_path):
    (tmp_path / "list.txt").write_text("photos/b.jpg\n\nphotos/*.png\n", encoding="utf-8")
    every = [photos / name for name in SIZES_HW]

    def found(*words: str) -> list[Path]:
        return [path.resolve() for path in find_photos(words, option="PHOTO")]

    assert found("photos") == every
    assert found(str(photos / "b.jpg"), "photos") == [every[1], every[0], every[2]]
    assert found("photos/*.png") == [every[0]]
    assert found("photos/**/*.png") == [every[0], every[2]]
    assert found("list.txt") == [every[1], every[0]]
    assert found("photos/a.png", "photos/../photos/a.png") == [every[0]]
    (photos / "sub" / "[1].png").write_bytes(b"")
    assert found("photos/sub/[1].png") == [photos / "sub" / "[1].png"]
    (photos / "sub" / "[1].png").unlink()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gone.jpg"], "PHOTO: nothing at gone.jpg; expected a photo, a folder, a pattern"),
        (["*.xyz"], "PHOTO: nothing at *.xyz"),
        (["empty"], "PHOTO: no picture in empty or below"),
        (["blank.txt"], "PHOTO: expected a photo per line, got none in blank.txt"),
        (["nested.txt"], "PHOTO: nested.txt names another list, blank.txt"),
        (["missing.txt"], "PHOTO: no file at missing.txt"),
        (["photos"], "--out: 3 photos need a folder for the results; add --out DIR"),
        (["photos", "--save", "o.png"], "--out: 3 photos need"),
        (["photos/a.png", "--yolo"], "--yolo: it goes into the folder of --out; add --out DIR"),
        (["photos", "--out", "o", "--save", "o.png"], "--save: it goes without --out"),
        (["photos/a.png", "--save", "o.txt"], "--save: expected a name ending in .png"),
        (["photos/a.png", "--save", "photos/a.png"], "--save: photos/a.png is a file this"),
        (["photos/a.png", "--min-iou", "7"], "EverythingConfig: min_iou must lie in 0..1, got 7"),
        (["photos/a.png", "--crop-layers", "x"], "argument --crop-layers: invalid int value: 'x'"),
        (["photos/a.png", "--no-captions", "--beams", "2"], "--beams: there are no captions"),
        (["photos", "twice", "--out", "o", "--voc"], "--voc: photos/a.png and twice/a.bmp would"),
        (["bad.jpg"], "PHOTO: file 'bad.jpg'"),
        (["bad.jpg", "--out", "o"], "--skip-unreadable leaves such files out"),
    ],
)
def test_bad_calls(photos, model_file, tmp_path, capsys, words, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "twice").mkdir()
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    (tmp_path / "blank.txt").write_text("\n")
    (tmp_path / "nested.txt").write_text("blank.txt\n")
    Image.fromarray(make_photo(9, 9)).save(tmp_path / "twice" / "a.bmp")
    assert main(["everything", "--model", str(model_file), *words]) == 2
    assert message in error_of(capsys)


def test_unreadable_files_can_be_left_out(photos, model_file, tmp_path, capsys):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    words = ["bad.jpg", "photos/a.png", "--out", "found", "--no-captions"]
    assert everything(model_file, *words, "--skip-unreadable") == 0
    assert [image["file_name"] for image in read_coco()["images"]] == ["photos/a.png"]
    printed = capsys.readouterr()
    assert "tap: warning: left out: PHOTO: file 'bad.jpg'" in printed.err
    assert "in 1 photos" in printed.out


def test_the_options_are_those_of_the_config(photos, model_file, capsys):
    with pytest.raises(SystemExit):
        main(["everything", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, value in vars(EverythingConfig()).items():
        assert f"--{name.replace('_', '-')}" in text
        assert value is None or f"({value:g})" in text
