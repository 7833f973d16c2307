"""Recognition on people's own data: rows, figures by hand, oracle, chance, and what is refused."""

import json

import numpy as np
import pytest

from tests.data.photos import SHAPES, draw_shape, write_photos
from tests.evaluation.oracles import oracle_of
from tests.evaluation.tiny_truth import CoinNames
from tests.tiny_predictor import NAMES, make_photo, tiny_predictor
from tokenize_anything.evaluation.caption_scores import cider
from tokenize_anything.evaluation.recognition import RecognitionConfig, evaluate_recognition
from tokenize_anything.evaluation.recognition_scores import recognition_metrics, says_name
from tokenize_anything.evaluation.region_truth import (
    list_true_images,
    load_true_images,
    read_true_images,
)
from tokenize_anything.evaluation.rule_predictor import RulePredictor, draw_ellipse
from tokenize_anything.evaluation.runner import RunnerConfig
from tokenize_anything.geometry import encode_rle, innermost_point, mask_iou, masks_to_boxes

QUIET = RunnerConfig(show_progress=False, group_size=3)


@pytest.fixture(autouse=True)
def _needs_the_scorer():
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed")


def evaluate(predictor, path, **options):
    folder = path.parent / "images"
    return dict(evaluate_recognition(predictor, path, folder, **{"config": QUIET, **options}))


# --- names in captions --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "name", "is_said"),
    [
        ("A dog on a mat.", "dog", True),
        ("two dogs run", "dog", True),
        ("a hotdog", "dog", False),
        ("a doge", "dog", False),
        ("wooden benches", "bench", True),
        ("ripe cherries", "cherry", True),
        ("sharp knives", "knife", True),
        ("book shelves", "shelf", True),
        ("a single shoe", "shoes", True),
        ("a teddy bear", "teddy bear", True),
        ("teddy bears", "teddy bear", True),
        ("a bear and a teddy", "teddy bear", False),
        ("teddies bear", "teddy bear", False),
        ("a red bow", "bow_(decorative_ribbons)", True),
        ("a wine-glass", "wine glass", True),
        ("", "dog", False),
        ("a dog", "()", False),
    ],
)
def test_says_name(caption, name, is_said):
    assert says_name(caption, name) is is_said


# --- figures ------------------------------------------------------------------------------------


def row(name="dog", concepts=("dog", "cat"), scores=(0.9, 0.1), iou=0.5, share=0.5, **more):
    ious = {} if iou is None else {"box": iou, "point": iou / 2}
    return {
        "name": name, "concepts": list(concepts), "concept_scores": list(scores), "ious": ious,
        "iou_score": 0.7, "area_share": share, "caption": "a dog", "references": ["a dog"], **more,
    }  # fmt: skip


def test_figures_by_hand():
    rows = [
        row(),
        row(name="cat", concepts=["dog", "cat"], scores=[0.6, 0.4], iou=0.1, share=0.001),
        row(name="dog", concepts=["cow", "pig"], scores=[0.8, 0.2], iou=None, share=None),
        row(name=None, iou=0.9, share=0.02, caption="a red cow", references=["a red cow here"]),
    ]
    found = dict(recognition_metrics(rows))
    assert found["regions"] == 4 and found["regions with a mask"] == 3
    assert found["box mean IoU"] == pytest.approx(0.5)
    assert found["point mean IoU"] == pytest.approx(0.25)
    assert (found["small objects"], found["medium objects"], found["large objects"]) == (1, 1, 1)
    assert found["box mean IoU, small objects"] == pytest.approx(0.1)
    assert found["box mean IoU, medium objects"] == pytest.approx(0.9)
    assert found["box mean IoU, large objects"] == pytest.approx(0.5)
    assert found["named regions"] == 3
    assert found["concept top-1"] == pytest.approx(1 / 3)
    assert found["concept top-5"] == found["commonest name"] == pytest.approx(2 / 3)
    captions, references = ["a dog"] * 3 + ["a red cow"], [["a dog"]] * 3 + [["a red cow here"]]
    assert found["caption CIDEr"] == pytest.approx(cider(captions, references))
    assert found["best constant caption CIDEr"] == pytest.approx(
        max(cider([text] * 4, references) for text in ("a dog", "a red cow here"))
    )
    assert found["caption says the name"] == pytest.approx(2 / 3)
    # dog at 0.9 is said; cow at 0.8, and dog at 0.9 where the caption has a cow, are not
    assert found["sure concepts"] == 3
    assert found["caption says a sure concept"] == pytest.approx(1 / 3)
    # All claim 0.7: one bin, 0.5 measured. Names: 0.9 right, 0.6 and 0.8 wrong, bins of their own.
    assert found["iou_scores calibration error"] == pytest.approx(0.2)
    assert found["concept_scores calibration error"] == pytest.approx((0.1 + 0.6 + 0.8) / 3)


def test_what_the_data_lacks_is_left_out():
    rows = [row(name=None, concepts=[], scores=[], iou=None, share=None, caption=None)] * 2
    assert dict(recognition_metrics(rows)) == {"regions": 2, "regions with a mask": 0}


def test_names_by_chance():
    """Names drawn evenly from K: right in one of K, and in five of K among five."""
    rng, names = np.random.default_rng(0), [f"name {n}" for n in range(20)]
    rows = [
        row(name=names[rng.integers(20)], concepts=rng.permutation(names)[:5], scores=[0.2] * 5)
        for _ in range(3000)
    ]
    found = dict(recognition_metrics(rows))
    assert found["concept top-1"] == pytest.approx(1 / 20, abs=0.015)
    assert found["concept top-5"] == pytest.approx(5 / 20, abs=0.03)


# --- the protocol -------------------------------------------------------------------------------


def test_an_oracle_is_perfect(tmp_path):
    path = write_photos(tmp_path / "set")
    found = evaluate(oracle_of(path, path.parent / "images"), path)
    assert found["regions"] == 8
    kinds = [f"{kind} mean IoU" for kind in ("box", "point", "mask")]
    for name in (*kinds, "concept top-1", "concept top-5", "caption says the name"):
        assert found[name] == 1.0, name
    assert found["iou_scores calibration error"] == 0.0
    references = [["a ball"], ["a brick"], ["a kite"]]
    assert found["caption CIDEr"] > found["best constant caption CIDEr"] > 0
    assert cider([text for (text,) in references], references) <= 10


def test_chance_scores_what_chance_gives(tmp_path):
    path = write_photos(tmp_path / "set", count=60)
    found = evaluate(CoinNames(["ball", "brick", "kite"]), path)
    images = read_true_images(path, path.parent / "images")
    masks = [region.mask for image in load_true_images(images) for region in image.regions]
    # Half of the mask is hit, and half of all pixels outside are in the union.
    wanted = [mask.sum() / (mask.sum() + mask.size) for mask in masks]
    for kind in ("box", "point", "mask"):
        assert found[f"{kind} mean IoU"] == pytest.approx(np.mean(wanted), abs=0.005)
    assert found["named regions"] == 90
    assert found["concept top-1"] == pytest.approx(1 / 3, abs=0.15)
    assert found["concept top-5"] == 1  # of three names


def test_a_rule_gets_what_its_baseline_gets(tmp_path):
    path = write_photos(tmp_path / "set")
    found = evaluate(RulePredictor("ellipse", draw_ellipse), path)
    assert found["box mean IoU"] == pytest.approx(found["ellipse in box mean IoU"])
    assert "concept top-1" not in found


def test_boxes_without_mask_count_when_asked_for(tmp_path):
    path = write_photos(tmp_path / "set")
    oracle = oracle_of(path, path.parent / "images")
    assert "regions with a mask" not in evaluate(oracle, path)
    found = evaluate(oracle, path, protocol=RecognitionConfig(with_boxes=True))
    assert (found["regions"], found["regions with a mask"]) == (12, 8)
    assert (found["named regions"], found["concept top-1"]) == (10, 1.0)


def test_rows_hold_what_the_predictor_says(tmp_path):
    """The model through the runner, in groups of photos of other sizes, and resumed."""
    path, out = write_photos(tmp_path / "set"), tmp_path / "run"
    predictor = tiny_predictor()
    config = RunnerConfig(out=out, group_size=3, show_progress=False)
    metrics = evaluate(predictor, path, config=config)
    rows = json.loads((out / "results.json").read_text())
    place = 0
    for image in load_true_images(list_true_images(path, path.parent / "images")):
        regions = image.regions
        wanted = predictor.predict_mask_concept_caption(
            image.path, boxes=[region.box_xyxy for region in regions], top_k=5
        )
        points = [innermost_point(region.mask) for region in regions]
        by_point = predictor.predict_mask_concept_caption(image.path, points=points)
        masks = np.stack([region.mask for region in regions])
        by_mask = predictor.predict_mask_concept_caption(image.path, masks=masks)
        for index, region in enumerate(regions):
            found = rows[place]
            assert found["annotation_id"] == region.annotation_id
            assert found["segmentation"] == encode_rle(wanted.masks[index])
            assert found["concepts"] == wanted.concepts[index]
            assert found["caption"] == wanted.captions[index]
            np.testing.assert_allclose(
                found["concept_scores"], wanted.concept_scores[index], atol=1e-5
            )
            for kind, answer in (("box", wanted), ("point", by_point), ("mask", by_mask)):
                overlap = mask_iou(answer.masks[index][None], region.mask[None])[0, 0]
                assert found["ious"][kind] == pytest.approx(overlap, abs=1e-3)
            assert found["area_share"] == pytest.approx(region.mask.mean())
            place += 1
    assert place == len(rows) == metrics["regions"]
    assert rows[0]["concepts"][0] in NAMES
    (out / "rows.0.jsonl").write_bytes((out / "rows.0.jsonl").read_bytes()[:-30])
    assert evaluate(predictor, path, config=config) == metrics
    assert json.loads((out / "results.json").read_text()) == rows


def test_without_words_masks_are_scored(tmp_path):
    path, predictor = write_photos(tmp_path / "set", 2), tiny_predictor()
    predictor.concepts = predictor.text_tokenizer = None
    found = evaluate(predictor, path)
    assert found["regions"] == 4 and "box mean IoU" in found
    assert not {"concept top-1", "caption CIDEr", "caption says the name"} & set(found)


def test_polygons_and_photos_without_a_size(tmp_path):
    """COCO's own form of masks; a photo whose masks are all empty is left out."""
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")
    from PIL import Image

    mask = draw_shape("brick", 40, 50, (20, 15))
    x0, y0, x1, y1 = masks_to_boxes(mask[None])[0].tolist()
    polygon = [x0, y0, x1, y0, x1, y1, x0, y1]
    box = [x0, y0, x1 - x0, y1 - y0]
    empty = encode_rle(np.zeros((9, 12), bool))
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 50},
                   {"id": 2, "file_name": "b.png"}],
        "annotations": [{"id": 1, "image_id": 1, "bbox": box, "segmentation": [polygon],
                         "category_id": 2, "caption": "a brick in a wall"},
                        {"id": 2, "image_id": 2, "bbox": [0, 0, 4, 4], "segmentation": empty}],
        "categories": [{"id": 2, "name": SHAPES[1]}],
    }  # fmt: skip
    (tmp_path / "images").mkdir()
    Image.fromarray(make_photo(40, 50)).save(tmp_path / "images" / "a.png")
    Image.fromarray(make_photo(9, 12)).save(tmp_path / "images" / "b.png")
    path = tmp_path / "own.json"
    path.write_text(json.dumps(content))
    first, second = load_true_images(list_true_images(path, tmp_path / "images"))
    np.testing.assert_array_equal(first.regions[0].mask, mask)
    assert first.regions[0].references == ("a brick in a wall",) and second.regions == ()
    assert evaluate(tiny_predictor(), path)["regions"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["annotations"][0].update(image_id=77),
            "annotation 1: expected a bbox and the",
        ),
        (lambda c: c["annotations"][0].pop("bbox"), "annotation 1: expected a bbox and the"),
        (lambda c: c["categories"][0].update(name=" "), "category 1 has no name"),
        (lambda c: c["annotations"].clear(), "has no region with a mask"),
    ],
)
def test_damaged_data(tmp_path, change, message):
    path = write_photos(tmp_path / "set", 2)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        evaluate(tiny_predictor(), path)


def test_missing_photos_are_listed_or_left_out(tmp_path):
    path = write_photos(tmp_path / "set")
    oracle = oracle_of(path, path.parent / "images")
    (path.parent / "images" / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 photos are missing: .*1\.png"):
        evaluate(oracle, path)
    with pytest.warns(UserWarning, match="left out"):
        found = evaluate(oracle, path, config=RunnerConfig(skip_missing=True, show_progress=False))
    assert (found["regions"], found["missing photos"]) == (6, 1)


def test_java_metrics_are_named_when_they_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    path = write_photos(tmp_path / "set", 2)
    oracle = oracle_of(path, path.parent / "images")
    with pytest.warns(UserWarning, match="no Java: METEOR"):
        found = evaluate(oracle, path, protocol=RecognitionConfig(java_metrics=True))
    assert "caption METEOR (PTB)" not in found and "caption CIDEr" in found
