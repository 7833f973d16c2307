"""Captioning through the runner: prompts, oracle and chance, and bad input."""

import json

import cv2
import numpy as np
import pytest

from tests.data.photos import write_photos
from tests.evaluation.oracles import oracle_of
from tests.tiny_predictor import tiny_predictor
from tokenize_anything import GenerationConfig, PointPrompts
from tokenize_anything.evaluation.caption_data import read_coco_captions
from tokenize_anything.evaluation.captioning import (
    PROMPT_KINDS,
    CaptioningConfig,
    CaptioningTask,
    best_constant,
    caption_items,
    described_digest,
    evaluate_captioning,
    keep_on_photo,
)
from tokenize_anything.evaluation.rule_predictor import RulePredictor, draw_filled_box
from tokenize_anything.evaluation.runner import RunnerConfig
from tokenize_anything.image_transform import load_image

QUIET = RunnerConfig(show_progress=False, group_size=3)
PLAIN = CaptioningConfig(plain_words=True)
TEXTS = (
    "a red ball in the grass",
    "two small dogs that run",
    "an old man with one hat",
    "people fly kites at beaches",
    "its black cat sleeps under tables",
    "seven cups stand beside him",
    "green trees grow near water",
    "my car has four wheels",
)


@pytest.fixture
def described(tmp_path):
    """Four photos with two captioned regions each, no two captions with a word in common."""
    path = write_photos(tmp_path)
    content = json.loads(path.read_text())
    regions = [each for each in content["annotations"] if "segmentation" in each]
    for each, text in zip(regions, TEXTS, strict=True):
        each.pop("captions", None)
        each["caption"] = text
    path.write_text(json.dumps({**content, "annotations": regions}))
    return path


def run(predictor, path, protocol=PLAIN, config=QUIET):
    images = read_coco_captions(path, path.parent / "images")
    return dict(evaluate_captioning(predictor, images, protocol=protocol, config=config))


@pytest.fixture(autouse=True)
def _needs_the_scorer(request):
    if "described" in request.fixturenames:
        pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed")


@pytest.mark.parametrize("kind", PROMPT_KINDS)
def test_an_oracle_is_perfect_by_every_prompt(described, kind):
    oracle = oracle_of(described, described.parent / "images", with_names=False)
    found = run(oracle, described, CaptioningConfig(prompt=kind, plain_words=True))
    assert found["regions"] == 8
    for name in ("BLEU-1", "BLEU-4", "ROUGE-L"):
        assert found[f"{name} (plain words)"] == pytest.approx(100, abs=1e-5)
    assert found["CIDEr (plain words)"] == pytest.approx(1000, abs=1e-6)


def test_chance_and_constants(described):
    """Captions of other regions share no word here, a constant is right once in eight."""
    oracle = oracle_of(described, described.parent / "images", with_names=False)
    oracle.answers = oracle.captions[1:] + oracle.captions[:1]
    found = run(oracle, described)
    assert found["ROUGE-L (plain words)"] == found["CIDEr (plain words)"] == 0
    constant = RulePredictor("constant", draw_filled_box, caption=TEXTS[3])
    found = run(constant, described)
    assert found["CIDEr (plain words)"] == pytest.approx(1000 / 8, abs=15)
    empty = RulePredictor("silent", draw_filled_box)
    assert all(value < 1e-4 for name, value in run(empty, described).items() if name != "regions")


def test_best_constant_beats_the_commonest():
    references = [["a man"]] * 4 + [[f"a red car {n}"] for n in range(3)] + [["a red car"]] * 3
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed")
    assert best_constant(references) == "a red car"


def prompts_of(kind, described, seed=0):
    (image, *_), config = read_coco_captions(described, described.parent / "images"), None
    config = CaptioningConfig(prompt=kind, seed=seed, plain_words=True)
    task = CaptioningTask(oracle_of(described, described.parent / "images"), config)
    photo = task.load(caption_items([image])[0])
    encoded = task.predictor.encode_images(photo.rgb)
    return task._prompts(photo, encoded), image, encoded


def test_prompts(described):
    prompts, image, _ = prompts_of("centre", described)
    for row, region in enumerate(image.regions):
        x0, y0, x1, y1 = region.box_xyxy
        np.testing.assert_allclose(prompts.coords_xy[row, 0], [(x0 + x1) / 2, (y0 + y1) / 2])
    first, image, _ = prompts_of("random", described)
    again, _, _ = prompts_of("random", described)
    other, _, _ = prompts_of("random", described, seed=1)
    np.testing.assert_array_equal(first.coords_xy, again.coords_xy)
    assert (first.coords_xy[:, 0] != other.coords_xy[:, 0]).all()
    for row, region in enumerate(image.regions):
        x, y = first.coords_xy[row, 0]
        assert region.box_xyxy[0] <= x <= region.box_xyxy[2]
        assert region.box_xyxy[1] <= y <= region.box_xyxy[3]


def test_prompts_in_the_predicted_mask(described):
    predictor = oracle_of(described, described.parent / "images")
    nine, _, encoded = prompts_of("mask", described)
    masks = [each.mask for each in predictor.known[encoded.features.numpy().tobytes()]]
    np.testing.assert_array_equal(
        nine.coords_xy, PointPrompts.from_masks(np.stack(masks)).coords_xy
    )
    one, _, _ = prompts_of("mask_point", described)
    for row, mask in enumerate(masks):
        x, y = one.coords_xy[row, 0].astype(int)
        assert mask[y, x]


def test_an_empty_predicted_mask_is_asked_for_by_its_box(described):
    predictor = oracle_of(described, described.parent / "images")
    for regions in predictor.known.values():
        object.__setattr__(regions[1], "mask", None)
    (image, *_) = read_coco_captions(described, described.parent / "images")
    task = CaptioningTask(predictor, CaptioningConfig(prompt="mask", plain_words=True))
    photo = task.load(caption_items([image])[0])
    prompts = task._prompts(photo, predictor.encode_images(photo.rgb))
    assert prompts.is_box.tolist() == [False, True]
    np.testing.assert_allclose(prompts.coords_xy[1, :2].ravel(), image.regions[1].box_xyxy)


def test_rows_hold_what_the_predictor_says(described, tmp_path):
    """The model through the runner, with beams, in groups, and resumed: the same captions."""
    predictor, out = tiny_predictor(), tmp_path / "run"
    beams = GenerationConfig(num_beams=2)
    protocol = CaptioningConfig(generation=beams, plain_words=True)
    config = RunnerConfig(out=out, group_size=3, show_progress=False)
    metrics = run(predictor, described, protocol, config)
    rows = json.loads((out / "results.json").read_text())
    images = read_coco_captions(described, described.parent / "images")
    place = 0
    for image in images:
        boxes = [region.box_xyxy for region in image.regions]
        wanted = predictor.predict_mask_concept_caption(
            load_image(str(image.path)), boxes=boxes, generation=beams
        )
        for row, region in enumerate(image.regions):
            found = rows[place]
            assert (found["region_id"], found["image_id"]) == (region.region_id, image.image_id)
            assert found["caption"] == wanted.captions[row]
            assert found["caption_score"] == pytest.approx(wanted.caption_scores[row], abs=1e-5)
            assert found["iou_score"] == pytest.approx(wanted.iou_scores[row], abs=1e-5)
            assert found["references"] == list(region.references)
            place += 1
    assert place == len(rows) == 8
    lines = (out / "rows.0.jsonl").read_bytes().splitlines(keepends=True)
    (out / "rows.0.jsonl").write_bytes(lines[0] + lines[1][:20])  # as if it had been killed
    assert run(predictor, described, protocol, config) == metrics
    assert json.loads((out / "results.json").read_text()) == rows
    with pytest.raises(ValueError, match=r"holds another evaluation .*prompt"):
        run(predictor, described, CaptioningConfig(prompt="centre", generation=beams), config)


def test_missing_photos_are_listed_or_left_out(described):
    (described.parent / "images" / "2.png").unlink()
    oracle = oracle_of_rest(described)
    with pytest.raises(FileNotFoundError, match=r"1 photos are missing: .*2\.png.*skip-missing"):
        run(oracle, described)
    with pytest.warns(UserWarning, match=r"1 photos are missing and left out: .*2\.png"):
        found = run(oracle, described, config=RunnerConfig(skip_missing=True, show_progress=False))
    assert (found["regions"], found["missing photos"]) == (6.0, 1.0)


def oracle_of_rest(described):
    """The photo that is not there needs no oracle."""
    photo = np.zeros((9, 9, 3), np.uint8)
    path = described.parent / "images" / "2.png"
    cv2.imwrite(str(path), photo)
    oracle = oracle_of(described, described.parent / "images", with_names=False)
    path.unlink()
    return oracle


@pytest.mark.parametrize(
    ("box", "moved"),
    [
        ((2.5, 3, 9, 11), (2.5, 3, 9, 11)),
        ((-4, -4, 100, 100), (-4, -4, 100, 100)),  # overlaps: as annotated
        ((50, 3, 60, 9), (29, 3, 30, 9)),
        ((-9, 3, -2, 9), (0, 3, 1, 9)),
        ((4, 5, 4, 8), (4, 5, 5, 8)),
        ((30, 20, 30, 20), (29, 19, 30, 20)),
    ],
)
def test_boxes_off_the_photo_move_to_its_nearest_pixels(box, moved):
    found = keep_on_photo(box, 20, 30)
    assert found == moved
    PointPrompts.from_boxes([found]).validate_for_image(20, 30)


def test_digest_tells_texts_apart_but_not_folders(described):
    images = read_coco_captions(described, described.parent / "images")
    assert described_digest(images) == described_digest(read_coco_captions(described, "elsewhere"))
    described.write_text(described.read_text().replace("black cat", "white cat"))
    changed = read_coco_captions(described, described.parent / "images")
    assert described_digest(images) != described_digest(changed)


def test_bad_settings(described):
    with pytest.raises(ValueError, match=r"prompt: expected one of \('box', .* got 'boxes'"):
        CaptioningConfig(prompt="boxes")
    with pytest.raises(ValueError, match="seed: expected an integer from 0, got -1"):
        CaptioningConfig(seed=-1)
    predictor = tiny_predictor()
    predictor.text_tokenizer = None
    with pytest.raises(ValueError, match="text_tokenizer: the model has none"):
        run(predictor, described)
    with pytest.raises(ValueError, match="empty split"):
        list(evaluate_captioning(tiny_predictor(), [], protocol=PLAIN, config=QUIET))
