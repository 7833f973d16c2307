"""`tap evaluate captioning`, `recognition` and `video`, from a command to its table."""

import json
import pickle
import re

import pytest

from tests.data.photos import write_photos
from tests.evaluation.oracles import clip_labels, write_coco_clip, write_davis
from tokenize_anything.cli import EXIT_ERROR, EXIT_OK, main


@pytest.fixture(autouse=True)
def _needs_the_extra():
    for package in ("pycocoevalcap", "matplotlib", "faster_coco_eval"):
        pytest.importorskip(package, reason=f"{package} is not installed")


@pytest.fixture
def described(tmp_path):
    """Four photos, every masked region with one caption."""
    path = write_photos(tmp_path / "set")
    content = json.loads(path.read_text())
    for each in content["annotations"]:
        if "segmentation" in each:
            each["caption"] = each.pop("captions", [f"a shape of kind {each.get('category_id')}"])[
                0
            ]
    path.write_text(json.dumps(content))
    return path


def table(capsys, *words):
    """Run a command; its table as numbers by metric."""
    code = main(["evaluate", *map(str, words), "--no-progress"])
    captured = capsys.readouterr()
    assert code == EXIT_OK, captured.err
    rows = re.findall(r"^(\S.*?)  +(-?[\d.]+)$", captured.out, re.MULTILINE)
    return {name: float(value) for name, value in rows}


def error_of(capsys, *words):
    assert main(["evaluate", *map(str, words), "--no-progress"]) == EXIT_ERROR
    return capsys.readouterr().err


def test_captioning_with_the_built_in_model(described, capsys, tmp_path):
    out = tmp_path / "run"
    words = ("captioning", "--data", described, "--plain-words", "--out", out, "--max-images", 2)
    found = table(capsys, *words, "--prompt", "random", "--num-beams", 2)
    assert found["regions"] == 4 and "CIDEr (plain words)" in found and "METEOR" not in found
    rows = json.loads((out / "results.json").read_text())
    assert len(rows) == 4 and all(isinstance(row["caption"], str) for row in rows)
    written = json.loads((out / "metrics.json").read_text())
    assert found == pytest.approx({name: round(value, 3) for name, value in written.items()})
    assert "holds another evaluation" in error_of(capsys, *words, "--prompt", "random")


def test_the_three_forms_of_described_boxes(described, capsys, tmp_path):
    content = json.loads(described.read_text())
    regions = [each for each in content["annotations"] if "caption" in each]
    refs = [
        {"ann_id": each["id"], "split": "val", "sentences": [{"sent": each["caption"]}] * 2}
        for each in regions
    ]
    (tmp_path / "refs.p").write_bytes(pickle.dumps(refs, 2))
    phrases = [
        {"id": image["id"], "regions": [
            {"region_id": each["id"], "phrase": each["caption"],
             **dict(zip(("x", "y", "width", "height"), each["bbox"], strict=True))}
            for each in regions if each["image_id"] == image["id"]
        ]} for image in content["images"]
    ]  # fmt: skip
    (tmp_path / "phrases.json").write_text(json.dumps(phrases))
    (tmp_path / "splits.json").write_text(json.dumps({"val": [1, 2, 3, 4], "test": []}))
    for image in content["images"]:
        photo = described.parent / "images" / image["file_name"]
        (described.parent / "images" / f"{image['id']}.jpg").write_bytes(photo.read_bytes())

    shared = ("--images", described.parent / "images", "--model", "baseline:constant",
              "--plain-words", "--split", "val")  # fmt: skip
    coco = table(capsys, "captioning", "--data", described, *shared)
    densecap = ("--data", tmp_path / "phrases.json", "--splits", tmp_path / "splits.json")
    refcoco = ("--data", tmp_path / "refs.p", "--instances", described)
    assert coco["regions"] == 8 and coco["CIDEr (plain words)"] > 0
    assert table(capsys, "captioning", *densecap, *shared) == coco
    assert table(capsys, "captioning", *refcoco, *shared) == coco
    both = (*refcoco, "--splits", tmp_path / "splits.json")
    assert "--splits: expected either it or --instances" in error_of(
        capsys, "captioning", *both, *shared
    )
    assert "'test' lists 0 photos" in error_of(
        capsys, "captioning", *densecap, *shared[:-2], "--split", "test"
    )


def test_recognition_writes_a_report(described, capsys, tmp_path):
    out = tmp_path / "run"
    words = ("recognition", "--data", described, "--plain-words", "--max-images", 2)
    found = table(capsys, *words, "--out", out)
    assert (found["regions"], found["filled box mean IoU"] > 0) == (4, True)
    assert "tap_tiny on photos.json" in (out / "report.html").read_text()
    rule = table(capsys, *words, "--model", "baseline:ellipse", "--with-boxes")
    assert rule["box mean IoU"] == rule["ellipse in box mean IoU"]
    assert rule["concept top-1"] == rule["commonest name"]
    assert rule["regions"] > rule["regions with a mask"] == 4


def test_video_from_both_forms(capsys, tmp_path):
    labels = clip_labels(4)
    davis = write_davis(tmp_path / "davis", {"shapes": labels})
    path = write_coco_clip(tmp_path, labels)
    for name in ("still", "flow", "filled_box"):
        words = ("--model", f"baseline:{name}", "--margin", "0")
        found = table(capsys, "video", "--data", davis, *words, "--out", tmp_path / name)
        assert (found["clips"], found["objects"]) == (1, 2)
        assert 0 < found["J&F"] < 100
        assert table(capsys, "video", "--data", path, "--images", tmp_path, *words) == found
        assert len(list((tmp_path / name / "masks" / "shapes").iterdir())) == 4
    words = ("--data", path, "--images", tmp_path, "--model", "baseline:ellipse", "--prompt")
    by_points, by_both = (table(capsys, "video", *words, each) for each in ("points", "box_points"))
    assert 0 < by_points["J"] < by_both["J"] < 100  # points lie inside, so the ellipse shrinks


def test_bad_words(described, capsys, tmp_path):
    (described.parent / "images" / "0.png").unlink()
    words = ("captioning", "--data", described, "--model", "baseline:constant", "--plain-words")
    assert re.search(r"1 photos are missing: .*0\.png; .*--skip-missing", error_of(capsys, *words))
    assert table(capsys, *words, "--skip-missing")["missing photos"] == 1
    words = ("--data", described, "--model", "baseline:none")
    assert "expected a baseline among constant" in error_of(capsys, "captioning", *words)
    assert "among still, flow, filled_box" in error_of(capsys, "video", *words)
    words = ("--data", described, "--model", "baseline:still")
    assert "has no annotation with a `sequence`" in error_of(capsys, "video", *words)
    assert "no list of clips" in error_of(capsys, "video", "--data", tmp_path, *words[2:])
