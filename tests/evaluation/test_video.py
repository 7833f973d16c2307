"""Following masks through clips: readers, prompts, memory, files, oracle and baselines."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.oracles import clip_labels, paint_frames, write_coco_clip, write_davis
from tests.tiny_predictor import tiny_predictor
from tokenize_anything.evaluation.rule_predictor import RulePredictor, draw_filled_box
from tokenize_anything.evaluation.runner import RunnerConfig
from tokenize_anything.evaluation.video import (
    clip_items,
    clips_digest,
    evaluate_tracker,
    evaluate_video,
)
from tokenize_anything.evaluation.video_data import (
    label_palette,
    read_coco_clips,
    read_davis,
    save_labels,
)
from tokenize_anything.evaluation.video_scores import score_clip, summarize
from tokenize_anything.evaluation.video_tracking import (
    LOWEST_CLAIM,
    FlowTracker,
    PromptTracker,
    StillTracker,
    TrackingConfig,
    claim_pixels,
    fuse_masks,
    make_prompts,
    trusted_masks,
)

QUIET = RunnerConfig(show_progress=False)
TRUTH = {"shapes": clip_labels(5), "other": clip_labels(4)[::-1]}


KNOWN = {
    frame.tobytes(): labels
    for clip in TRUTH.values()
    for frame, labels in zip(paint_frames(clip), clip, strict=True)
}


class OracleTracker:
    """Knows the labels of every frame by its pixels."""

    def start(self, rgb, labels):
        np.testing.assert_array_equal(labels, KNOWN[rgb.tobytes()])

    def step(self, rgb):
        return KNOWN[rgb.tobytes()]


class CoinTracker:
    """Object 1, object 2 or background, by chance."""

    def start(self, rgb, labels):
        self.rng = np.random.default_rng(0)

    def step(self, rgb):
        return self.rng.integers(0, 3, rgb.shape[:2], dtype=np.uint8)


def colour_rule(rgb, coords_xy, labels):
    """What has the colour under the centre of the prompt: finds the shapes without learning."""
    x, y = coords_xy[labels != 4].mean(axis=0).astype(int)
    return (np.abs(rgb.astype(int) - rgb[y, x]).sum(axis=-1) < 60) & (rgb.std(axis=-1) > 40)


@pytest.fixture
def davis(tmp_path):
    return write_davis(tmp_path / "davis", TRUTH)


# --- files --------------------------------------------------------------------------------------


def test_davis_folders(davis):
    first, second = read_davis(davis)
    assert (first.name, second.name, len(first.frames), len(second.frames)) == (
        "shapes", "other", 5, 4
    )  # fmt: skip
    assert [frame.name for frame in second.frames] == ["00000", "00001", "00002", "00003"]
    for frame, labels in zip(first.frames, TRUTH["shapes"], strict=True):
        np.testing.assert_array_equal(frame.read_labels(labels.shape), labels)


def test_coco_clips(tmp_path):
    path = write_coco_clip(tmp_path, TRUTH["shapes"])
    (clip,) = read_coco_clips(path, tmp_path)
    assert (clip.name, [frame.name for frame in clip.frames][:2]) == ("shapes", ["00000", "00001"])
    for frame, labels in zip(clip.frames, TRUTH["shapes"], strict=True):
        np.testing.assert_array_equal(frame.read_labels(labels.shape), labels)
    content = json.loads(path.read_text())
    for change, message in (
        (lambda each: each.update(track_id=0), "track_id: expected 1 to 254, got 0"),
        (lambda each: each.update(image_id=99), "expected a listed image and a mask"),
        (lambda each: each.pop("sequence"), "has no annotation with a `sequence`"),
    ):
        annotations = [dict(each) for each in content["annotations"]]
        for each in annotations:
            change(each)
        path.write_text(json.dumps({**content, "annotations": annotations}))
        with pytest.raises(ValueError, match=message):
            read_coco_clips(path, tmp_path)


def test_labels_are_indexed_pictures_with_the_palette_of_the_benchmark(tmp_path):
    labels = TRUTH["shapes"][0]
    save_labels(tmp_path / "a" / "00000.png", labels)
    with Image.open(tmp_path / "a" / "00000.png") as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.array(picture), labels)
        colours = np.array(picture.convert("RGB"))
    assert colours[labels == 0].max() == 0
    assert {tuple(each) for each in colours[labels == 1]} == {(128, 0, 0)}
    palette = label_palette()
    assert palette[[2, 3, 4, 9, 255]].tolist() == [
        [0, 128, 0], [128, 128, 0], [0, 0, 128], [192, 0, 0], [224, 224, 192]
    ]  # fmt: skip


def test_bad_davis_folders(davis, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no list of clips at .*train\.txt"):
        read_davis(davis, "train")
    (clip, _) = read_davis(davis)
    with pytest.raises(ValueError, match=r"expected the size of .*00000\.jpg, \(9, 9\)"):
        clip.frames[0].read_labels((9, 9))
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(clip.frames[0].labels)
    with pytest.raises(ValueError, match="expected an indexed PNG, got mode RGB"):
        clip.frames[0].read_labels((5, 5))
    clip.frames[0].labels.unlink()
    with pytest.raises(ValueError, match="first frame of shapes has no labels"):
        read_davis(davis)
    listing = davis / "ImageSets" / "2017" / "val.txt"
    listing.write_text("nothing\n")
    with pytest.raises(FileNotFoundError, match="no frames in"):
        read_davis(davis)
    listing.write_text("")
    with pytest.raises(ValueError, match="lists no clip"):
        read_davis(davis)


# --- tracking -----------------------------------------------------------------------------------


def masks_of(labels):
    return np.stack([labels == number for number in (1, 2)])


def test_prompts_from_masks():
    masks = masks_of(TRUTH["shapes"][0])  # the ball covers columns 5..23 and rows 5..23
    box = make_prompts(masks, TrackingConfig("box", margin=0.1))
    np.testing.assert_allclose(box.coords_xy[0], [[3.1, 3.1], [25.9, 25.9]], atol=1e-5)
    far = make_prompts(masks, TrackingConfig("box", margin=1.0))
    assert far.coords_xy.min() == 0 and far.coords_xy[..., 0].max() <= 61
    points = make_prompts(masks, TrackingConfig("points"))
    assert points.labels[0].tolist() == [1] * 9 + [4]
    assert all(masks[0][int(y), int(x)] for x, y in points.coords_xy[0, :9])
    both = make_prompts(masks, TrackingConfig("box_points", margin=0.1))
    assert both.labels[1].tolist() == [2, 3] + [1] * 9
    np.testing.assert_array_equal(both.coords_xy[:, :2], box.coords_xy)


def test_fusion_takes_the_surer_object():
    logits = np.array([[[2.0, -1.0, 0.5, 0.0]], [[1.0, -2.0, 3.0, -1.0]]])
    assert fuse_masks(logits).tolist() == [[1, 0, 2, 0]]


def test_overlapping_predictions_are_not_trusted():
    masks = np.zeros((3, 10, 10), bool)
    masks[0, :, :6], masks[1, :, 2:8], masks[2, :, 9:] = True, True, True
    assert trusted_masks(masks, 0.4).tolist() == [False, False, True]  # IoU 40 / 80
    assert trusted_masks(masks, 0.5).tolist() == [True, True, True]
    assert trusted_masks(np.zeros((1, 4, 4), bool), 0.4).tolist() == [True]


def test_a_mistaken_memory_is_not_kept():
    """Where both objects get the same mask, or none, the prompts stay those of the frame before."""
    labels = TRUTH["shapes"][0]
    rgb = paint_frames([labels])[0]

    def same(rgb, coords_xy, point_labels):
        return np.ones(rgb.shape[:2], bool)

    for draw in (same, lambda rgb, *_: np.zeros(rgb.shape[:2], bool)):
        tracker = PromptTracker(RulePredictor("rule", draw))
        tracker.start(rgb, labels)
        tracker.step(rgb)
        np.testing.assert_array_equal(tracker.memory, masks_of(labels))
    tracker = PromptTracker(RulePredictor("rule", draw_filled_box), TrackingConfig(margin=0.0))
    tracker.start(rgb, labels)
    found = tracker.step(rgb)
    np.testing.assert_array_equal(tracker.memory, masks_of(found))
    assert (found[5:24, 5:24] == 1).all()


def test_object_numbers_may_have_gaps_and_void_is_no_object():
    labels = np.where(TRUTH["shapes"][0] == 2, 7, TRUTH["shapes"][0])
    labels[-1] = 255
    tracker = PromptTracker(RulePredictor("rule", draw_filled_box))
    rgb = paint_frames([TRUTH["shapes"][0]])[0]
    tracker.start(rgb, labels)
    assert set(np.unique(tracker.step(rgb))) == {0, 1, 7}
    tracker.start(rgb, np.zeros_like(labels))
    assert not tracker.step(rgb).any()


def test_still_and_flow():
    frames = paint_frames(TRUTH["shapes"])
    scores = {}
    for tracker in (StillTracker(), FlowTracker()):
        tracker.start(frames[0], TRUTH["shapes"][0])
        found = [TRUTH["shapes"][0], *(tracker.step(rgb) for rgb in frames[1:])]
        scores[type(tracker)] = dict(summarize(score_clip("c", TRUTH["shapes"], found)))["J&F"]
    assert scores[StillTracker] < scores[FlowTracker]
    still = [TRUTH["shapes"][0]] * 5
    assert scores[StillTracker] == dict(summarize(score_clip("c", TRUTH["shapes"], still)))["J&F"]


# --- the protocol -------------------------------------------------------------------------------


def test_an_oracle_scores_100_and_chance_little(davis):
    found = dict(evaluate_tracker(OracleTracker, read_davis(davis), name="oracle", config=QUIET))
    assert (found["clips"], found["objects"]) == (2, 4)
    assert [found[name] for name in ("J&F", "J", "F", "J recall", "F recall")] == [100] * 5
    assert (found["J decay"], found["F decay"]) == (0, 0)
    chance = dict(evaluate_tracker(CoinTracker, read_davis(davis), name="coin", config=QUIET))
    # An object of share s of the picture: s/3 in both masks, s + 1/3 - s/3 in one.
    shares = [
        float((frame == number).mean())
        for clip in TRUTH.values()
        for number in (1, 2)
        for frame in clip[1:-1]
    ]
    expected = np.mean([100 * (s / 3) / (s + 1 / 3 - s / 3) for s in shares])
    assert chance["J"] == pytest.approx(expected, abs=2)


def test_prompting_follows_the_shapes(davis):
    """A rule that finds a shape by its colour keeps it through the clip, by every prompt."""
    for prompt in ("box", "points", "box_points"):
        predictor, protocol = RulePredictor("colour", colour_rule), TrackingConfig(prompt)
        found = dict(evaluate_video(predictor, read_davis(davis), protocol=protocol, config=QUIET))
        assert found["J"] > 95, prompt
    box = RulePredictor("box", draw_filled_box)
    protocol = TrackingConfig(margin=0.0)
    found = dict(evaluate_video(box, read_davis(davis), protocol=protocol, config=QUIET))
    still = dict(evaluate_tracker(StillTracker, read_davis(davis), name="still", config=QUIET))
    assert found["J"] < still["J"] < 95


def test_models_that_look_twice_do_so_at_each_frame(davis):
    """Their masks are those of the predictor; of two that meet, the surer one gets the pixel."""
    predictor = tiny_predictor(zoom=0.5, view_dim=3, view_size=32)
    rgb = paint_frames(TRUTH["shapes"])[1]
    encoded = predictor.encode_images(rgb)
    prompts = make_prompts(TRUTH["shapes"][0][None] == [[[1]], [[2]]], TrackingConfig())
    claims = claim_pixels(predictor, encoded, prompts)
    found = predictor.predict_mask_concept_caption(encoded, prompts=prompts, captions=False)
    np.testing.assert_array_equal(claims > 0, found.masks)
    assert found.masks.any(axis=(1, 2)).all()
    for claim, mask, score in zip(claims, found.masks, found.iou_scores, strict=True):
        np.testing.assert_allclose(claim[mask], max(score, LOWEST_CLAIM), rtol=1e-5)
    once = claim_pixels(tiny_predictor(), encoded, prompts)
    assert len(np.unique(once[0])) > 100  # logits
    tracker = PromptTracker(predictor)
    tracker.start(paint_frames(TRUTH["shapes"])[0], TRUTH["shapes"][0])
    labels = tracker.step(rgb)
    np.testing.assert_array_equal(labels, fuse_masks(claims))


def test_results_are_written_as_the_toolkit_reads_them_and_resume(davis, tmp_path):
    out = tmp_path / "run"
    predictor, config = tiny_predictor(), RunnerConfig(out=out, show_progress=False)
    metrics = dict(evaluate_video(predictor, read_davis(davis), config=config))
    written = sorted(path.relative_to(out) for path in out.glob("masks/*/*.png"))
    assert len(written) == 9 and Path("masks/other/00003.png") in written
    again = []
    for name, truth in TRUTH.items():
        found = [
            np.array(Image.open(out / "masks" / name / f"{n:05d}.png")) for n in range(len(truth))
        ]
        np.testing.assert_array_equal(found[0], truth[0])
        again += score_clip(name, truth, found)
    assert dict(summarize(again)) == {
        name: value for name, value in metrics.items() if name not in ("clips", "objects")
    }
    (out / "rows.0.jsonl").write_bytes((out / "rows.0.jsonl").read_bytes()[:-20])
    assert dict(evaluate_video(predictor, read_davis(davis), config=config)) == metrics
    with pytest.raises(ValueError, match="holds another evaluation"):
        protocol = TrackingConfig("points")
        list(evaluate_video(predictor, read_davis(davis), protocol=protocol, config=config))


def test_digest_tells_labels_apart_but_not_folders(davis, tmp_path):
    digest = clips_digest(read_davis(davis))
    moved = davis.rename(tmp_path / "moved")
    assert clips_digest(read_davis(moved)) == digest
    save_labels(moved / "Annotations" / "480p" / "other" / "00002.png", TRUTH["other"][0])
    assert clips_digest(read_davis(moved)) != digest
    path = write_coco_clip(tmp_path / "coco", TRUTH["shapes"])
    digest = clips_digest(read_coco_clips(path, tmp_path))
    content = json.loads(path.read_text())
    content["annotations"][3]["segmentation"] = content["annotations"][1]["segmentation"]
    path.write_text(json.dumps(content))
    assert clips_digest(read_coco_clips(path, tmp_path)) != digest


def test_clips_without_labels_are_followed_but_not_scored(davis, tmp_path):
    for path in (davis / "Annotations" / "480p" / "other").glob("0000[1-9].png"):
        path.unlink()
    config = RunnerConfig(out=tmp_path / "run", show_progress=False)
    found = dict(evaluate_tracker(StillTracker, read_davis(davis), name="still", config=config))
    assert (found["clips"], found["objects"]) == (2, 2)
    assert len(list((tmp_path / "run" / "masks" / "other").glob("*.png"))) == 4
    (davis / "ImageSets" / "2017" / "val.txt").write_text("other\n")
    found = dict(evaluate_tracker(StillTracker, read_davis(davis), name="still", config=QUIET))
    assert found == {"clips": 1, "objects": 0}


def test_missing_frames_are_listed(davis):
    clips = read_davis(davis)
    clips[0].frames[2].photo.unlink()
    assert len(clip_items(clips)[0].paths) == 5
    with pytest.raises(FileNotFoundError, match=r"1 photos are missing: .*shapes/00002\.jpg"):
        list(evaluate_tracker(StillTracker, clips, name="still", config=QUIET))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "mask"}, r"prompt: expected one of \('box', 'points', 'box_points'\)"),
        ({"margin": -0.1}, "margin: expected 0 to 1, got -0.1"),
        ({"overlap_limit": 0}, "overlap_limit: expected above 0 to 1, got 0"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        TrackingConfig(**options)
