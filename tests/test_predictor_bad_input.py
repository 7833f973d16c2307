"""What users hand to the predictor by mistake: a clear error, or the answer they meant."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_image_files import png_header
from tests.tiny import tiny_config
from tests.tiny_predictor import assert_same, make_photo, tiny_predictor
from tokenize_anything import EncodedImage, PointPrompts, TAPPredictor
from tokenize_anything.image_loading import load_image

HEIGHT, WIDTH = 41, 67
CLICK = PointPrompts.from_points([[7, 9]])
DIM, SEMANTIC_DIM = tiny_config().decoder_dim, tiny_config().semantic_dim


@pytest.fixture(scope="module")
def predictor() -> TAPPredictor:
    return tiny_predictor()


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return make_photo(HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def encoded(predictor: TAPPredictor, photo: np.ndarray) -> EncodedImage:
    return predictor.encode_images(photo)


def mask_of(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
    mask = np.zeros(shape, dtype)
    mask[..., 3:9, 5:8] = 1
    return mask


# --- prompts that cannot be ---------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
BAD_PROMPTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "none": ({}, ValueError, r"prompts: expected points, boxes, masks or prompts, got none of the"),
    "none, and a cure": ({}, ValueError, r"an empty list, such as points=\[\], asks for no"),
    "labels alone": ({"labels": [1]}, ValueError, r"labels: expected points to go with them"),
    "NaN": ({"points": [[NAN, 3]]}, ValueError, r"region 0: expected finite coordinates, got \[\["),
    "infinite": ({"points": [[3, INF]]}, ValueError, r"region 0: expected finite coordinates"),
    "too large": ({"points": [[1e39, 3]]}, ValueError, r"region 0: expected finite coordinates"),
    "negative": (
        {"points": [[3, 4], [-1, 3]]}, ValueError,
        r"region 1: point 0 at \(-1.0, 3.0\) is outside the image; .* width 67 and height 41"),
    "outside": ({"points": [[3, 42]]}, ValueError, r"point 0 at \(3.0, 42.0\) is outside the im"),
    "x and y swapped": ({"points": [[20, 60]]}, ValueError, r"as \(x, y\) in its original pixels"),
    "second click outside": (
        {"points": [[[3, 4], [68, 4]]]}, ValueError, r"region 0: point 1 at \(68.0, 4.0\) is out"),
    "one flat point": ({"points": [3, 4]}, ValueError, r"points: .*write \[\[x, y\]\] for a sing"),
    "three numbers": ({"points": [[3, 4, 1]]}, ValueError, r"points: expected \(R,2\) or \(R,N"),
    "a number": ({"points": 5}, ValueError, r"points: expected \(R,2\) .* got shape \(\)"),
    "a string": ({"points": "3,4"}, TypeError, r"points: expected numbers, got dtype <U3"),
    "strings": ({"points": [["3", "4"]]}, TypeError, r"points: expected numbers, got dtype <U1"),
    "booleans": ({"points": [[True, False]]}, TypeError, r"points: expected numbers, got .*bool"),
    "complex": ({"points": [[1j, 2]]}, TypeError, r"points: expected numbers, got dtype complex"),
    "a hole": ({"points": [[3, None]]}, TypeError, r"points: expected numbers, got dtype object"),
    "a mapping": ({"points": {"x": 3}}, TypeError, r"points: expected numbers, got dtype object"),
    "ragged": (
        {"points": [[[3, 4]], [[5, 6], [7, 8]]]}, ValueError, r"points: expected a rectangular ar"),
    "prompts as points": ({"points": CLICK}, TypeError, r"points: .* pass it as prompts=\.\.\."),
    "label 5": ({"points": [[3, 4]], "labels": [5]}, ValueError, r"labels: expected 0 background"),
    "label -1": ({"points": [[3, 4]], "labels": [-1]}, ValueError, r"labels: .* padding, got -1"),
    "label 0.5": ({"points": [[3, 4]], "labels": [0.5]}, ValueError, r"labels: .*, got 0.5"),
    "label of a corner": (
        {"points": [[3, 4]], "labels": [2]}, ValueError, r"labels: .*; use from_boxes for boxes"),
    "label as text": ({"points": [[3, 4]], "labels": ["1"]}, TypeError, r"labels: expected integ"),
    "too many labels": (
        {"points": [[3, 4]], "labels": [1, 0]}, ValueError, r"labels: expected one label per clic"),
    "box NaN": ({"boxes": [[1, 2, NAN, 4]]}, ValueError, r"region 0: expected finite coordinates"),
    "box x1 < x0": (
        {"boxes": [[30, 2, 10, 20]]}, ValueError,
        r"region 0: expected x0 < x1 and y0 < y1, got box \[30.0, 2.0, 10.0, 20.0\]; swap its cor"),
    "box y1 < y0": ({"boxes": [[3, 20, 10, 2]]}, ValueError, r"expected x0 < x1 and y0 < y1, got"),
    "box of no width": (
        {"boxes": [[3, 2, 3, 20]]}, ValueError, r"expected a box with area.*use a click for a sin"),
    "flat box": ({"boxes": [1, 2, 3, 4]}, ValueError, r"boxes_xyxy: .*write \[\[x0, y0, x1"),
    "box of text": ({"boxes": [["1", "2", "3", "4"]]}, TypeError, r"boxes_xyxy: expected numbers"),
    "box elsewhere": (
        {"boxes": [[70, 2, 90, 20]]}, ValueError, r"box \[70.0, 2.0, 90.0, 20.0\] does not overla"),
    "empty mask": (
        {"masks": np.zeros((HEIGHT, WIDTH))}, ValueError, r"masks: expected at least one nonz"),
    "one empty mask": (
        {"masks": np.stack([mask_of(HEIGHT, WIDTH), np.zeros((HEIGHT, WIDTH))])}, ValueError,
        r"got none in mask 1; draw it or leave it out"),
    "mask of another size": (
        {"masks": mask_of(40, WIDTH)}, ValueError,
        r"masks: expected the image's size, height 41 and width 67, got shape \(40, 67\); resize"),
    "mask turned": ({"masks": mask_of(WIDTH, HEIGHT)}, ValueError, r"got shape \(67, 41\); resize"),
    "mask of NaN": ({"masks": np.full((HEIGHT, WIDTH), NAN)}, ValueError, r"masks: .*got NaN or"),
    "mask with channels": (
        {"masks": mask_of(3, HEIGHT, WIDTH).transpose(1, 2, 0)}, ValueError, r"image's size"),
    "masks with two stacks": (
        {"masks": mask_of(1, 1, HEIGHT, WIDTH)}, ValueError, r"masks: .*got shape \(1, 1, 41, 6"),
    "mask as path": ({"masks": "mask.png"}, TypeError, r"masks: .* got the path 'mask.png'; r"),
    "mask of text": ({"masks": np.full((41, 67), "a")}, TypeError, r"masks: expected booleans"),
    "prompts as list": (
        {"prompts": [CLICK]}, TypeError, r"prompts: expected a PointPrompts, got list; a list bel"),
    "prompts as text": ({"prompts": "7,9"}, TypeError, r"got str; build it with PointPrompts.from"),
    "prompts as array": (
        {"prompts": np.zeros((1, 2))}, TypeError, r"got ndarray; build it with PointPrompts.from_"),
    "prompts outside": (
        {"prompts": PointPrompts.from_points([[700, 3]])}, ValueError, r"\(700.0, 3.0\) is out"),
    "top_k 0": ({"points": [[3, 4]], "top_k": 0}, ValueError, r"top_k: expected at least 1, got 0"),
    "top_k as text": ({"points": [[3, 4]], "top_k": "5"}, TypeError, r"top_k: expected a whole nu"),
    "generation": (
        {"points": [[3, 4]], "generation": {"num_beams": 3}}, TypeError,
        r"generation: expected a GenerationConfig, got dict; write GenerationConfig\("),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_prompts_that_cannot_be(
    predictor: TAPPredictor, photo: np.ndarray, encoded: EncodedImage, name: str
) -> None:
    given, kind, words = BAD_PROMPTS[name]
    for image in (photo, encoded):
        with pytest.raises(kind, match=words):
            predictor.predict_mask_concept_caption(image, **given)


@pytest.mark.parametrize("name", ["none", "outside", "ragged", "empty mask", "prompts as list"])
def test_errors_name_the_image(predictor: TAPPredictor, photo: np.ndarray, name: str) -> None:
    given, kind, words = BAD_PROMPTS[name]
    lists: dict[str, Any] = {argument: [None, value] for argument, value in given.items()}
    lists["prompts"] = [CLICK, *lists.get("prompts", [None, None])[1:]]
    with pytest.raises(kind, match=rf"^images\[1\]: .*{words}"):
        predictor.predict_mask_concept_caption([photo, photo], **lists)


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ({"points": [[[3, 4]]]}, ValueError, r"points: expected one entry for each of 2 images, "),
        ({"points": [[[3, 4]]] * 3}, ValueError, r"got 3; write None for an image without"),
        ({"prompts": [CLICK]}, ValueError, r"prompts: expected one entry for each of 2 images, go"),
        ({"prompts": PointPrompts.from_points([[3, 4], [5, 6]])}, TypeError,
         r"prompts: expected a list with one entry for each of 2 images, got PointPrompts"),
        ({"masks": "ab"}, TypeError, r"masks: expected a list .*, got str"),
        ({"boxes": {0: [], 1: []}}, TypeError, r"boxes: expected a list .*, got dict"),
        ({"points": 3}, TypeError, r"points: expected a list .*, got int"),
        ({"points": np.float32(3)}, TypeError, r"points: expected a list .*, got float32"),
        ({"points": torch.tensor(3)}, TypeError, r"points: expected a list .*, got Tensor"),
        ({"points": [[3, 4], [5, 6]]}, ValueError, r"images\[0\]: points: .*write \[\[x, y\]\]"),
        ({"points": [[[3, 4]]] * 2, "labels": [[1], [7]]}, ValueError, r"images\[1\]: labels: "),
        ({}, ValueError, r"images\[0\]: prompts: expected points, boxes, masks or prompts"),
    ],
)  # fmt: skip
def test_lists_that_do_not_match(
    predictor: TAPPredictor, photo: np.ndarray, given: dict[str, Any], kind: Any, words: str
) -> None:
    with pytest.raises(kind, match=words):
        predictor.predict_mask_concept_caption([photo, photo], **given)


def test_prompts_are_checked_before_any_photo_is_read(predictor: TAPPredictor) -> None:
    with pytest.raises(ValueError, match=r"images\[1\]: points: expected"):
        predictor.predict_mask_concept_caption(["absent.png"] * 2, points=[[[3, 4]], [3]])


# --- prompts that look odd and are fine ---------------------------------------------------------


@pytest.mark.parametrize(
    ("odd", "plain"),
    [
        ({"points": [[WIDTH, HEIGHT]]}, {"points": np.array([[67.0, 41.0]])}),
        ({"points": [[3, 4]], "labels": [True]}, {"points": [[3, 4]]}),
        ({"points": [[3, 4]], "labels": [1.0]}, {"points": [[3, 4]]}),
        ({"points": [[[3, 4]]]}, {"points": [[3, 4]]}),
        ({"masks": mask_of(HEIGHT, WIDTH) * 255}, {"masks": mask_of(HEIGHT, WIDTH, dtype=bool)}),
        ({"masks": torch.tensor(mask_of(1, HEIGHT, WIDTH))}, {"masks": mask_of(HEIGHT, WIDTH)}),
        ({"masks": -0.5 * mask_of(HEIGHT, WIDTH)}, {"masks": mask_of(HEIGHT, WIDTH)}),
        ({"masks": mask_of(HEIGHT, WIDTH).tolist()}, {"masks": mask_of(HEIGHT, WIDTH)}),
        ({"masks": Image.fromarray(mask_of(HEIGHT, WIDTH))}, {"masks": mask_of(HEIGHT, WIDTH)}),
    ],
)  # fmt: skip
def test_odd_prompts_mean_the_plain_ones(
    predictor: TAPPredictor, encoded: EncodedImage, odd: dict[str, Any], plain: dict[str, Any]
) -> None:
    assert_same(
        predictor.predict_mask_concept_caption(encoded, **odd),
        predictor.predict_mask_concept_caption(encoded, **plain),
    )


def test_a_box_may_stick_out(predictor: TAPPredictor, encoded: EncodedImage) -> None:
    found = predictor.predict_mask_concept_caption(encoded, boxes=[[-50, -3.5, 1e4, 20]])
    assert found.masks.shape == (1, HEIGHT, WIDTH)
    assert found.mask_index.tolist() == [0]


# --- photos -------------------------------------------------------------------------------------


def save_photos(folder: Path) -> None:
    rgb = Image.fromarray(make_photo(23, 31))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    rgb.save(folder / "turned.jpg", exif=exif)
    rgb.convert("L").save(folder / "gray.png")
    rgb.convert("RGBA").save(folder / "alpha.png")
    rgb.convert("CMYK").save(folder / "print.jpg")
    rgb.convert("P").save(folder / "palette.gif")
    rgb.convert("1").save(folder / "bits.png")
    rgb.save(folder / "日本 ñ.webp")
    deep = np.asarray(rgb.convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray(make_photo(1, 1)).save(folder / "dot.png")
    Image.fromarray(make_photo(5000, 1)).save(folder / "tall.png")
    Image.fromarray(make_photo(1, 5000)).save(folder / "flat.png")


@pytest.mark.parametrize(
    ("name", "size_hw"),
    [
        ("turned.jpg", (31, 23)), ("gray.png", (23, 31)), ("alpha.png", (23, 31)),
        ("print.jpg", (23, 31)), ("palette.gif", (23, 31)), ("bits.png", (23, 31)),
        ("日本 ñ.webp", (23, 31)), ("deep.png", (23, 31)), ("dot.png", (1, 1)),
        ("tall.png", (5000, 1)), ("flat.png", (1, 5000)),
    ],
)  # fmt: skip
def test_photos_of_every_kind(
    predictor: TAPPredictor, tmp_path: Path, name: str, size_hw: tuple[int, int]
) -> None:
    save_photos(tmp_path)
    height, width = size_hw
    given: dict[str, Any] = {
        "points": [[width / 2, height / 2], [width, 0]],
        "boxes": [[0, 0, width, height]],
        "masks": np.ones(size_hw),
    }
    found = predictor.predict_mask_concept_caption(tmp_path / name, **given)
    assert found.masks.shape == (4, height, width)
    assert np.isfinite(found.semantic_tokens).all()
    boxes = found.boxes_xyxy
    assert ((boxes >= 0) & (boxes <= [width, height, width, height])).all()
    rgb = load_image(tmp_path / name)
    assert rgb.shape == (height, width, 3)
    assert_same(predictor.predict_mask_concept_caption(rgb, **given), found)


def save_bad_photos(folder: Path) -> None:
    Image.fromarray(make_photo(230, 310)).save(folder / "whole.jpg")
    (folder / "cut.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:2000])
    (folder / "text.jpg").write_text("a photo of a cat")
    (folder / "empty.png").write_bytes(b"")
    (folder / "bomb.png").write_bytes(png_header(60000, 60000))
    (folder / "folder.jpg").mkdir()


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("cut.jpg", ValueError, r"cut.jpg': the image cannot be decoded .*; it is truncated or da"),
        ("text.jpg", ValueError, r"text.jpg': expected an image, got bytes in no format Pillow "),
        ("empty.png", ValueError, r"empty.png': expected an image, got bytes in no format Pillow"),
        ("bomb.png", ValueError, r"bomb.png': too many pixels \(.*; shrink it, or raise PIL.Imag"),
        ("folder.jpg", ValueError, r"expected an image file, got '.*folder.jpg', which is a"),
        ("absent.jpg", FileNotFoundError, r"no file at '.*absent.jpg'; relative paths start at t"),
    ],
)
def test_files_that_are_no_photos(
    predictor: TAPPredictor, photo: np.ndarray, tmp_path: Path, name: str, kind: Any, words: str
) -> None:
    save_bad_photos(tmp_path)
    path = tmp_path / name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(kind, match=rf"^image: .*{words}"):
            predictor.predict_mask_concept_caption(path, points=[[3, 4]])
        with pytest.raises(kind, match=rf"^images\[1\]: .*{words}"):
            predictor.predict_mask_concept_caption([photo, str(path)], points=[[[3, 4]]] * 2)
        with pytest.raises(kind, match=rf"^images\[1\]: .*{words}"):
            predictor.encode_images([photo, path])


@pytest.mark.parametrize(
    ("image", "kind", "words"),
    [
        (None, TypeError, r"image: expected one image as a path, .*, got NoneType"),
        (7, TypeError, r"image: expected one image as a path, .*, got int"),
        (b"photo.jpg", TypeError, r"image: expected one image as a path, .*, got bytes"),
        ({"image": 3}, TypeError, r"image: expected one image as a path, .*, got dict"),
        (iter(["a.png"]), TypeError, r"image: expected one image as a path, .*, got list_iterator"),
        ("", ValueError, r"image: expected the path of an image file, got the empty path ''"),
        ("https://example.org/a.jpg", ValueError, r"image: expected a local path, got the URL 'ht"),
        (
            np.zeros((4, 5, 3)),
            ValueError,
            r"image: expected uint8 pixels 0..255, got float64 of sh",
        ),
        (
            torch.zeros(4, 5, 3),
            ValueError,
            r"image: expected uint8 pixels 0..255, got torch.float3",
        ),
        (np.zeros((4, 5), bool), ValueError, r"image: .*a mask is no image"),
        (np.zeros((3, 40, 50), np.uint8), ValueError, r"image: .* this looks like channels first"),
        (
            np.zeros((2, 4, 5, 3), np.uint8),
            ValueError,
            r"image: .* looks like a batch, pass a list",
        ),
        (
            np.zeros((0, 5, 3), np.uint8),
            ValueError,
            r"image: expected at least one pixel, got shap",
        ),
        (
            np.zeros((4, 5, 3), np.int64),
            ValueError,
            r"image: expected uint8 pixels 0..255, got int",
        ),
        ([[[1, 2, 3]]], TypeError, r"images\[0\]: expected one image as a path, .*, got list"),
    ],
)
def test_things_that_are_no_photos(
    predictor: TAPPredictor, image: Any, kind: Any, words: str
) -> None:
    is_many = isinstance(image, list)
    points = [[[0, 0]]] if is_many else [[0, 0]]
    with pytest.raises(kind, match=words):
        predictor.predict_mask_concept_caption(image, points=points)
    with pytest.raises(kind, match=words):
        predictor.encode_images(image)


# --- steps --------------------------------------------------------------------------------------


def test_steps_in_the_wrong_order(predictor: TAPPredictor, encoded: EncodedImage) -> None:
    steps: Any = predictor
    with pytest.raises(
        TypeError, match=r"encoded: expected an EncodedImage, got str; encode_image"
    ):
        steps.decode_regions("photo.jpg", CLICK)
    with pytest.raises(TypeError, match=r"encoded: expected an EncodedImage, got list; encode_ima"):
        steps.decode_regions([encoded], CLICK)
    with pytest.raises(TypeError, match=r"prompts: expected a PointPrompts, got list"):
        steps.decode_regions(encoded, [[7, 9]])
    with pytest.raises(ValueError, match=r"point 0 at \(7.0, 90.0\) is outside the image"):
        steps.decode_regions(encoded, PointPrompts.from_points([[7, 90]]))
    with pytest.raises(TypeError, match=r"image: expected one image .*, got EncodedImage"):
        steps.encode_images(encoded)


@pytest.mark.parametrize(
    "overrides",
    [{"image_size": 96}, {"image_size": 96, "patch_size": 16}, {"decoder_dim": 32}],
)
def test_a_photo_encoded_by_another_model(encoded: EncodedImage, overrides: dict[str, int]) -> None:
    other = tiny_predictor(**overrides)
    words = r"encoded: expected features \(.*, got \(64, 6, 6\) of 48; encode the photo with this"
    with pytest.raises(ValueError, match=words):
        other.decode_regions(encoded, CLICK)
    with pytest.raises(ValueError, match=words):
        other.predict_mask_concept_caption(encoded, prompts=CLICK)


@pytest.mark.parametrize(
    ("values", "kind", "words"),
    [
        (torch.zeros(2, 4, 5), ValueError, r"got \(2, 4, 5\); choose one of the four slots of eac"),
        (np.zeros(5), ValueError, r"expected shape \(R,.*\), got \(5,\)"),
        (np.zeros((2, 5)), ValueError, r"expected shape \(R,.*\), got \(2, 5\)"),
        ([["a"]], TypeError, r"expected numbers, got dtype <U1"),
        (None, TypeError, r"expected numbers, got dtype object"),
        ([[1.0], [2.0, 3.0]], ValueError, r"expected a rectangular array"),
    ],
)
def test_vectors_that_do_not_fit(
    predictor: TAPPredictor, values: Any, kind: Any, words: str
) -> None:
    with pytest.raises(kind, match=rf"semantic_embeddings: .*{words}"):
        predictor.describe_concepts(values)
    with pytest.raises(kind, match=rf"semantic_tokens: .*{words}"):
        predictor.write_captions(values)


def test_options_of_the_steps(predictor: TAPPredictor) -> None:
    steps: Any = predictor
    with pytest.raises(ValueError, match=r"top_k: expected at least 1, got 0"):
        steps.describe_concepts(np.zeros((1, SEMANTIC_DIM)), top_k=0)
    with pytest.raises(TypeError, match=r"generation: expected a GenerationConfig, got int"):
        steps.write_captions(np.zeros((1, DIM)), generation=3)
