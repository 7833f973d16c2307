"""The page on a run: its parts, its pictures, and what counts as worst."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from tests.data.photos import write_photos
from tests.tiny_predictor import make_photo, tiny_predictor
from tokenize_anything.contact_sheets import TILE_SIDE, contact_sheet
from tokenize_anything.evaluation.recognition import evaluate_recognition, recognition_items
from tokenize_anything.evaluation.report import report_run, worst_rows, write_report
from tokenize_anything.evaluation.report_pictures import (
    OTHERS,
    confusion_counts,
    make_tile,
)
from tokenize_anything.evaluation.runner import RunnerConfig


@pytest.fixture(autouse=True)
def _needs_the_extra():
    for package in ("pycocoevalcap", "matplotlib"):
        pytest.importorskip(package, reason=f"{package} is not installed")


def row(name, concept, score=0.5, iou=0.5, caption="a dog", reference="a dog"):
    return {
        "name": name, "concepts": [concept], "concept_scores": [score], "ious": {"box": iou},
        "iou_score": 0.7, "area_share": 0.1, "caption": caption, "references": [reference],
    }  # fmt: skip


def test_the_page_of_a_run(tmp_path):
    path, out = write_photos(tmp_path / "set"), tmp_path / "run"
    folder = path.parent / "images"
    predictor = tiny_predictor()
    config = RunnerConfig(out=out, show_progress=False)
    metrics = list(evaluate_recognition(predictor, path, folder, config=config))
    page = report_run(out, recognition_items(path, folder), title="tiny <model> on photos")
    text = page.read_text(encoding="utf-8")
    assert "<h1>tiny &lt;model&gt; on photos</h1>" in text
    for name, _ in metrics:
        assert f"<td>{name}</td>" in text
    kinds = re.findall(r"data:image/(\w+);base64,([^']+)'", text)
    assert [kind for kind, _ in kinds] == ["png"] * 3 + ["jpeg"] * 3
    for _, content in kinds:
        with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
            assert np.array(picture.convert("RGB")).std() > 1
    assert "http" not in text  # everything is inside


def test_a_run_that_did_not_finish_has_no_page(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results\.json is missing; .*not finished"):
        report_run(tmp_path, [], title="none")
    with pytest.raises(ValueError, match="rows: expected at least one region"):
        write_report(tmp_path / "page.html", title="none", metrics=[], rows=[], items=[])
    assert list(tmp_path.iterdir()) == []


def test_confusion_counts_by_hand():
    rows = [row("dog", "dog"), row("dog", "cat"), row("dog", "dog"), row("cat", "dog"),
            row("cow", "pig"), row("cow", "cow"), row(None, "dog")]  # fmt: skip
    names, counts = confusion_counts(rows)
    assert names == ["dog", "cow", "cat", OTHERS]
    assert counts.tolist() == [[2, 0, 1, 0], [0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
    names, counts = confusion_counts(rows, max_names=1)
    assert names == ["dog", OTHERS] and counts.tolist() == [[2, 1], [1, 2]]
    names, counts = confusion_counts(rows[:4])
    assert names == ["dog", "cat"] and counts.tolist() == [[2, 1], [1, 0]]


def test_worst_come_first():
    rows = [
        row("dog", "cat", 0.9, 0.8, "a dog on grass", "a dog on grass"),
        row("cat", "cow", 0.95, 0.1, "a dog", "one cat sleeps here"),
        row("cow", "cow", 0.99, 0.4, "a very wrong caption", "the cow eats grass"),
    ]
    found = worst_rows(rows, count=2)
    masks, names, captions = found.values()
    assert masks == [rows[1], rows[2]]
    assert names == [rows[1], rows[0]]
    assert captions == [rows[2], rows[1]]  # of equals the longer
    bare = {**rows[0], "name": None, "ious": {}, "caption": None}
    assert worst_rows([bare]) == {}


def test_tiles_show_both_outlines_around_the_box():
    photo = np.full((60, 90, 3), 128, np.uint8)
    truth, found = np.zeros((60, 90), bool), np.zeros((60, 90), bool)
    truth[20:40, 30:50], found[25:45, 35:55] = True, True
    tile = make_tile(photo, truth, found, (30, 20, 50, 40), ["IoU 0.39", "true: box"])
    assert max(tile.picture.shape[:2]) == TILE_SIDE
    greens = (tile.picture[..., 1] > 200).sum()
    reds = (tile.picture[..., 0] > 200).sum()
    assert greens > 100 and reds > 100
    without = make_tile(photo, None, found, (30, 20, 50, 40), [])
    assert (without.picture[..., 1] > 200).sum() == 0
    corner = make_tile(photo, truth, found, (89, 59, 91, 61), [])  # at the very edge
    assert corner.picture.size > 0


def test_contact_sheet_places_tiles_in_rows():
    photo = make_photo(40, 50)
    mask = np.zeros((40, 50), bool)
    mask[10:20, 10:20] = True
    tile = make_tile(photo, mask, mask, (10, 10, 20, 20), ["a line that is far too long " * 4])
    one, five = contact_sheet([tile]), contact_sheet([tile] * 5)
    assert five.size == (4 * one.size[0], 2 * one.size[1])
    pixels = np.array(five)
    first = pixels[:TILE_SIDE, :TILE_SIDE]
    again = pixels[one.size[1] : one.size[1] + TILE_SIDE, :TILE_SIDE]
    np.testing.assert_array_equal(first, again)
    assert (pixels[one.size[1] :, one.size[0] :] == 255).all()
