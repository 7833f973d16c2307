"""The commands as a user types them, on real files and a tiny model with random weights."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import tiny_tap, tiny_tokenizer
from tokenize_anything import (
    ConceptVocabulary,
    PointPrompts,
    RegionPredictions,
    TAPPredictor,
    __version__,
)
from tokenize_anything.build import BUILT_IN_WEIGHTS
from tokenize_anything.checkpoints import read_extra_tensors, read_header, save_model
from tokenize_anything.cli import main
from tokenize_anything.cli_prompts import read_sketch
from tokenize_anything.cli_table import format_table, printable
from tokenize_anything.companions import Companions
from tokenize_anything.published_format import save_published_checkpoint

HEIGHT, WIDTH = 41, 67
NAMES = ("cup", "spoon", "table", "café au lait", "saucer")
ROOT = Path(__file__).parents[1]
BUILT_IN = ROOT / "tokenize_anything" / BUILT_IN_WEIGHTS["tap_tiny"]


def make_vocabulary(names: tuple[str, ...] = NAMES, dim: int = 29) -> ConceptVocabulary:
    generator = torch.Generator().manual_seed(5)
    return ConceptVocabulary(names, 3 * torch.randn(dim, len(names), generator=generator))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A native file with its own vocabulary and tokenizer."""
    tensors, metadata = Companions(make_vocabulary(), tiny_tokenizer()).pack()
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    return save_model(tiny_tap(), path, metadata=metadata | {"card": "kept"}, extra_tensors=tensors)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory with a photo and a sketch, whose bytes must not change."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    noise = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    sketch = np.zeros((HEIGHT, WIDTH), np.uint8)
    sketch[7:9, 11:50] = 1
    Image.fromarray(sketch).save(tmp_path / "sketch.png")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    yield tmp_path
    assert {path: path.read_bytes() for path in before} == before


def predict(model_file: Path, *words: str) -> int:
    return main(["predict", "photo.png", "--model", str(model_file), *words])


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line a failed command prints."""
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("tap: error: ")
    assert printed.err.count("\n") == 1
    return printed.err


# --- tap predict --------------------------------------------------------------------------------


def test_predict_writes_what_the_predictor_says(folder, model_file, capsys):
    words = ["--point", "33,20", "--box", "-3,2.5,30,39", "--point", "20,30,0"]
    words += ["--sketch", "sketch.png", "--top-k", "2", "--json", "regions.json"]
    assert predict(model_file, *words, "--vectors") == 0
    answer = json.loads((folder / "regions.json").read_text())
    assert answer["file_name"] == "photo.png"
    assert answer["model"] == str(model_file)
    assert answer["image_size"] == {"height": HEIGHT, "width": WIDTH}
    assert [row["kind"] for row in answer["prompts"]] == ["point", "box", "sketch"]
    assert answer["prompts"][0]["points"] == [[33, 20, 1]]
    assert answer["prompts"][1]["points"] == [[-3, 2.5, 2], [30, 39, 3], [20, 30, 0]]
    # 78 pixels in reading order, cut at tenths: 7, 15, 23, 31, 39, 46, 54, 62, 70.
    columns_rows = [(18, 7), (26, 7), (34, 7), (42, 7), (11, 8), (18, 8), (26, 8), (34, 8), (42, 8)]
    assert answer["prompts"][2]["points"] == [[x, y, 1] for x, y in columns_rows]

    regions = RegionPredictions.from_json((folder / "regions.json").read_text())
    predictor = TAPPredictor.from_pretrained(model_file)
    expected = predictor.predict_mask_concept_caption(
        np.asarray(Image.open("photo.png")),
        prompts=PointPrompts.concatenate(
            [
                PointPrompts.from_points([[33, 20]]),
                PointPrompts.from_boxes([[-3, 2.5, 30, 39]], [[20, 30]], [[0]]),
                PointPrompts.from_masks(np.asarray(Image.open("sketch.png"))),
            ]
        ),
        top_k=2,
    )
    np.testing.assert_array_equal(regions.masks, expected.masks)
    np.testing.assert_array_equal(regions.semantic_tokens, expected.semantic_tokens)
    np.testing.assert_array_equal(regions.concept_scores, expected.concept_scores)
    assert regions.concepts == expected.concepts
    assert regions.captions == expected.captions
    assert regions.mask_index[1] == 0  # a box keeps its own slot, with a click too

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("photo.png, 67 x 41 pixels")
    assert lines[2].split() == ["#", "prompt", "concept", "score", "IoU", "area", "caption"]
    assert lines[3].split()[:3] == ["1", "point", "33,20"]
    assert lines[5].split()[:2] == ["2", "box"]
    assert lines[-1] == "wrote regions.json"


def test_predict_leaves_vectors_out_unless_asked(folder, model_file):
    assert predict(model_file, "--point", "33,20", "--json", "regions.json") == 0
    regions = RegionPredictions.from_json((folder / "regions.json").read_text())
    assert regions.semantic_tokens.shape[1] == 0
    assert regions.captions[0] is not None
    assert sum("counts" in line for line in Path("regions.json").read_text().splitlines()) == 1


@pytest.mark.parametrize(("name", "kind"), [("über.png", "PNG"), ("o.JPG", "JPEG")])
def test_predict_saves_the_overlay_with_prompts(folder, model_file, name, kind):
    (folder / name).write_text("an older file")
    assert predict(model_file, "--box", "5,6,50,30", "--no-captions", "--save", name) == 0
    with Image.open(name) as picture:
        assert (picture.format, picture.size) == (kind, (WIDTH, HEIGHT))
        if kind == "PNG":
            assert picture.getpixel((5, 18)) == (255, 255, 255)  # the left edge of the box
    assert {path.name for path in folder.iterdir()} == {"photo.png", "sketch.png", name}


def test_predict_without_captions_prints_no_caption_column(folder, model_file, capsys):
    assert predict(model_file, "--point", "3,4", "--no-captions") == 0
    assert "caption" not in capsys.readouterr().out


def test_predict_looks_again_as_told(folder, model_file):
    words = ["--box", "11,7,19,13", "--json", "r.json"]
    predictor = TAPPredictor.from_pretrained(model_file)
    found = []
    for zoom in (0.4, 0.0, None):
        assert (
            predict(model_file, *words, *(["--zoom", str(zoom)] if zoom is not None else [])) == 0
        )
        found.append(RegionPredictions.from_json(Path("r.json").read_text()))
        told = predictor.predict_mask_concept_caption(
            "photo.png", boxes=[[11, 7, 19, 13]], zoom=zoom
        )
        np.testing.assert_array_equal(found[-1].masks, told.masks)
    assert (found[0].masks != found[1].masks).any()
    np.testing.assert_array_equal(found[1].masks, found[2].masks)  # this model looks once


def test_predict_picks_among_names_of_a_text_file(folder, model_file, capsys):
    (folder / "names.txt").write_text("\ufeff\n café au lait \r\n\ntable\n", encoding="utf-8")
    words = ["--point", "3,4", "--concepts", "names.txt", "--top-k", "9", "--json", "r.json"]
    assert predict(model_file, *words) == 0
    regions = RegionPredictions.from_json((folder / "r.json").read_text())
    assert sorted(regions.concepts[0]) == ["café au lait", "table"]
    assert regions.concept_scores[0].sum() == pytest.approx(1, abs=1e-5)
    assert "café au lait" in capsys.readouterr().out


def test_predict_takes_another_vocabulary(folder, model_file):
    make_vocabulary(("left", "right", "middle")).save("other.safetensors")
    words = ["--point", "3,4", "--concepts", "other.safetensors", "--top-k", "9"]
    assert predict(model_file, *words, "--json", "r.json") == 0
    regions = RegionPredictions.from_json((folder / "r.json").read_text())
    assert sorted(regions.concepts[0]) == ["left", "middle", "right"]


def test_predict_warns_once_where_captions_are_missing(folder, tmp_path_factory, capsys):
    bare = save_model(tiny_tap(), tmp_path_factory.mktemp("bare") / "bare.safetensors")
    assert predict(bare, "--point", "3,4") == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("tap: warning: no text tokenizer for ")
    assert printed.err.count("\n") == 1
    assert "concept" not in printed.out
    assert predict(bare, "--point", "3,4", "--no-captions") == 0
    assert capsys.readouterr().err == ""


def test_predict_beams_change_the_search(folder, model_file, monkeypatch):
    seen = []
    original = TAPPredictor.write_captions

    def spy(self, tokens, *, generation=None):
        seen.append(generation.num_beams)
        return original(self, tokens, generation=generation)

    monkeypatch.setattr(TAPPredictor, "write_captions", spy)
    assert predict(model_file, "--point", "3,4", "--beams", "3") == 0
    assert seen == [3]


def test_predict_takes_a_photo_of_a_non_ascii_name_and_orientation(folder, model_file):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown with sides swapped
    os.mkdir("фото")
    Image.open("photo.png").save("фото/日本.jpg", exif=exif)
    words = ["--point", "40,66", "--json", "фото/ответ.json"]
    assert main(["predict", "фото/日本.jpg", "--model", str(model_file), *words]) == 0
    answer = json.loads(Path("фото/ответ.json").read_text())
    assert answer["file_name"] == "日本.jpg"
    assert answer["image_size"] == {"height": WIDTH, "width": HEIGHT}


WRONG_WORDS = [
    ([], "no prompt: say where to look with --point X,Y or --box X0,Y0,X1,Y1 or --sketch FILE"),
    (["--point", "3"], r"--point: expected X,Y or X,Y,LABEL in pixels, got '3'; see `tap predict"),
    (["--point", "3,4,2"], r"expected the label 1 \(on the region\) or 0 \(not on it\)"),
    (["--point", "3,x"], "expected X,Y or X,Y,LABEL"),
    (["--point", "nan,4"], "--point nan,4: .*finite"),
    (["--point", "68,4"], "--point 68,4: .*outside the image.*width 67 and height 41"),
    (["--point", "-1,4"], "--point -1,4: .*outside"),
    (["--point", "3,4", "--point", "5,99,0"], "--point 3,4 without 5,99: .*outside"),
    (["--point", "3,4,0"], "--point 3,4,0: a click with label 0 cuts from the region before it"),
    (["--box", "1,2,3"], "--box: expected X0,Y0,X1,Y1 in pixels, got '1,2,3'"),
    (["--box", "9,2,3,8"], r"--box 9,2,3,8: .*x0 < x1"),
    (["--box", "9,2,9,8"], r"--box 9,2,9,8: .*area"),
    (["--box", "-9,-9,-1,-1"], "--box -9,-9,-1,-1: .*does not overlap"),
    (["--sketch", "none.png"], "--sketch none.png: .*no file at 'none.png'"),
    (["--sketch", "small.png"], "--sketch small.png: .*height 41 and width 67.*shape"),
    (["--sketch", "black.png"], "--sketch black.png: .*at least one nonzero pixel"),
    (["--sketch", "lossy.jpg"], "--sketch lossy.jpg: .*JPEG.*save the sketch as PNG"),
    (["--sketch", "text.png"], "--sketch text.png: .*no format Pillow can read"),
    (["--point", "3,4", "--top-k", "0"], "--top-k: expected a whole number from 1, got '0'"),
    (["--point", "3,4", "--beams", "many"], "--beams: expected a whole number from 1, got 'many'"),
    (["--point", "3,4", "--beams", "2", "--no-captions"], "--beams: .*drop one"),
    (["--point", "3,4", "--zoom", "2"], r"zoom: expected 0 to 1, .*got 2\.0"),
    (["--point", "3,4", "--vectors"], "--vectors: .*add --json FILE"),
    (["--point", "3,4", "--save", "o.gif"], r"--save: expected a name ending in \.png.*'o\.gif'"),
    (["--point", "3,4", "--save", "photo.png"], "--save: photo.png is a file this command reads"),
    (
        ["--sketch", "sketch.png", "--save", "./sketch.png"],
        "--save: sketch.png is a file this command reads; choose another name",
    ),
    (["--point", "3,4", "--json", "a.png", "--save", "a.png"], "a.png is the file of --json"),
    (["--point", "3,4", "--json", "."], "--json: expected a file name, got ., which is a folder"),
    (["--point", "3,4", "--json", "no/a.json"], "--json: the folder .*no does not exist"),
    (["--point", "3,4", "--concepts", "no.txt"], "--concepts: no file at no.txt"),
    (["--point", "3,4", "--concepts", "empty.txt"], "--concepts: expected one name per line"),
    (["--point", "3,4", "--concepts", "latin.txt"], "--concepts: latin.txt is not UTF-8"),
    (["--point", "3,4", "--concepts", "alien.txt"], "'unicorn'.*not among the 5 names"),
    (["--point", "3,4", "--concepts", "no.pkl"], "concepts: no file at no.pkl"),
    (["--point", "3,4", "--text-tokenizer", "no.model"], "no.model is no file"),
    (["--point", "3,4", "--model", "tap_vit_x"], "unknown model 'tap_vit_x'; did you mean"),
    (["--point", "3,4", "--model", "no.pkl"], "no.pkl: no such file"),
    (["--point", "3,4", "--device", "abacus"], "device: expected 'auto', 'cpu'"),
    (["--point", "3,4", "--dtype", "int8"], "dtype: expected one of"),
    (["--poi", "3,4"], "unrecognized arguments"),
]


@pytest.mark.parametrize(("words", "message"), WRONG_WORDS)
def test_predict_explains_wrong_words_in_one_line(folder, model_file, capsys, words, message):
    blank = np.zeros((HEIGHT, WIDTH), np.uint8)
    Image.fromarray(blank).save("black.png")
    Image.fromarray(blank[:, :-1] + 1).save("small.png")
    Image.fromarray(blank + 1).save("lossy.jpg")
    Path("text.png").write_text("no picture")
    Path("empty.txt").write_text("\n \n")
    Path("latin.txt").write_bytes("café".encode("latin-1"))
    Path("alien.txt").write_text("cup\nunicorn\n")
    before = sorted(os.listdir())
    assert predict(model_file, *words) == 2
    assert re.search(message, error_of(capsys))
    assert sorted(os.listdir()) == before


WRONG_PHOTOS = [
    ("missing.png", "PHOTO: no file at 'missing.png'"),
    (".", "PHOTO: expected an image file, got '.', which is a folder"),
    ("text.png", "PHOTO: .*no format Pillow can read"),
    ("cut.png", "PHOTO: .*truncated or damaged"),
    ("https://example.org/a.png", "PHOTO: expected a local path, got the URL"),
]


@pytest.mark.parametrize(("photo", "message"), WRONG_PHOTOS)
def test_predict_explains_wrong_photos(folder, model_file, capsys, photo, message):
    Path("text.png").write_text("no picture")
    Path("cut.png").write_bytes(Path("photo.png").read_bytes()[:900])
    assert main(["predict", photo, "--model", str(model_file), "--point", "3,4"]) == 2
    assert re.search(message, error_of(capsys))


@pytest.fixture
def read_only_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder nobody may write into; root may write anywhere but into the kernel's."""
    if os.geteuid() == 0:
        if not os.path.isdir("/sys"):
            pytest.skip("needs a read-only folder for root: /sys, or another user")
        yield Path("/sys")
        return
    folder = tmp_path / "read-only"
    folder.mkdir()
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


@pytest.mark.parametrize(("option", "name"), [("--json", "a.json"), ("--save", "a.png")])
def test_predict_reports_a_read_only_folder_before_the_model_loads(
    folder, read_only_folder, capsys, option, name
):
    path = str(read_only_folder / name)
    words = ["predict", "photo.png", "--point", "3,4", "--model", "missing.pkl", option, path]
    assert main(words) == 2
    assert re.search(rf"{option}: cannot write into {read_only_folder} \(", error_of(capsys))


def test_predict_reports_wrong_prompts_before_the_model_loads(folder, capsys):
    assert main(["predict", "photo.png", "--model", "missing.pkl", "--point", "99,4"]) == 2
    assert "--point 99,4: " in error_of(capsys)


def test_predict_writes_nothing_when_a_later_step_fails(folder, model_file, capsys, monkeypatch):
    def fail(self, image, **options):
        raise ValueError("no paint")

    monkeypatch.setattr(RegionPredictions, "draw", fail)
    before = sorted(os.listdir())
    assert predict(model_file, "--point", "3,4", "--json", "a.json", "--save", "a.png") == 2
    assert "no paint" in error_of(capsys)
    assert sorted(os.listdir()) == before


def test_predict_leaves_a_link_in_place(folder, model_file):
    Path("target.json").write_text("old")
    os.symlink("target.json", "link.json")
    assert predict(model_file, "--point", "3,4", "--json", "link.json") == 0
    assert os.path.islink("link.json")
    assert len(RegionPredictions.from_json(Path("target.json").read_text())) == 1


def test_predict_refuses_a_device_as_output(folder, model_file, capsys):
    assert predict(model_file, "--point", "3,4", "--json", os.devnull) == 2
    assert "--json: expected a file name, got /dev/null, which is not a regular file" in error_of(
        capsys
    )


def test_predict_uses_the_built_in_model(folder, capsys):
    words = ["--point", "33,20", "--box", "5,6,50,30", "--sketch", "sketch.png"]
    assert main(["predict", "photo.png", *words]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.startswith("photo.png, 67 x 41 pixels, tap_tiny\n")


# --- sketches -----------------------------------------------------------------------------------

STROKE = np.zeros((5, 7), bool)
STROKE[1, 2:6] = True


def colors(background: tuple[int, ...], stroke: tuple[int, ...]) -> np.ndarray:
    return np.where(STROKE[..., None], np.uint8(stroke), np.uint8(background))


SKETCHES = {
    "labels 0 and 1": Image.fromarray(STROKE.astype(np.uint8)),
    "one bit": Image.fromarray(STROKE),
    "sixteen bits": Image.fromarray(STROKE.astype(np.uint16)),
    "dark blue on black": Image.fromarray(colors((0, 0, 0), (0, 0, 3))),
    "black on transparent": Image.fromarray(colors((255, 255, 255, 0), (0, 0, 0, 255))),
    "faint on transparent": Image.fromarray(colors((9, 9, 9, 0), (9, 9, 9, 1))),
    "opaque colours": Image.fromarray(colors((0, 0, 0, 255), (255, 0, 0, 255))),
    "palette": Image.fromarray(colors((0, 0, 0), (250, 10, 10))).quantize(2),
}


@pytest.mark.parametrize("name", SKETCHES)
def test_read_sketch_finds_what_is_drawn(tmp_path, name):
    SKETCHES[name].save(tmp_path / "sketch.png")
    np.testing.assert_array_equal(read_sketch(str(tmp_path / "sketch.png")), STROKE)


# --- the table ----------------------------------------------------------------------------------


def test_table_aligns_and_wraps():
    masks = np.zeros((2, 4, 5), bool)
    masks[0, 0] = True
    regions = RegionPredictions(
        masks=masks,
        iou_scores=[0.876, 0.5],
        concepts=[["cup", "bowl"], ["dining table", "\x1b[2Jx"]],
        concept_scores=[[0.9, 0.05], [0.25, 0.125]],
        captions=["a cup of coffee on a saucer", None],
    )
    table = format_table(regions, ["point 3,4", "box 0,0,5,5"], width=67)
    assert table.splitlines() == [
        "#  prompt       concept       score   IoU   area  caption",
        "1  point 3,4    cup            0.90  0.88  25.0%  a cup of coffee",
        "                bowl           0.05               on a saucer",
        "2  box 0,0,5,5  dining table   0.25  0.50   0.0%  -",
        "                ?[2Jx          0.12",
    ]


def test_table_leaves_out_what_there_is_not():
    regions = RegionPredictions(masks=np.ones((1, 2, 3), bool), iou_scores=[1.0])
    assert format_table(regions, ["sketch a.png"], width=10).splitlines() == [
        "#  prompt         IoU    area",
        "1  sketch a.png  1.00  100.0%",
    ]


@pytest.mark.parametrize(
    ("text", "shown"), [("a\nb\tc", "a b c"), ("\x1b[31m", "?[31m"), ("日本 é", "日本 é")]
)
def test_printable_stays_in_one_line(text, shown):
    assert printable(text) == shown


# --- tap convert --------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return save_published_checkpoint(tiny_tap(), tmp_path / "published.pkl")


def regions_of(path: str | Path, image: np.ndarray) -> RegionPredictions:
    predictor = TAPPredictor.from_pretrained(path)
    return predictor.predict_mask_concept_caption(image, points=[[9, 12]], boxes=[[1, 2, 30, 31]])


def test_convert_puts_everything_into_one_file(folder, published, model_file, capsys):
    make_vocabulary().save("concepts.safetensors")
    Path("pieces.model").write_bytes(tiny_tokenizer().to_bytes())
    words = ["--concepts", "concepts.safetensors", "--text-tokenizer", "pieces.model"]
    assert main(["convert", "published.pkl", "new.safetensors", *words, "--dtype", "float32"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("wrote new.safetensors: ")
    assert "float32, images of 48, 5 concepts, a text tokenizer of 43 pieces" in printed
    image = np.asarray(Image.open("photo.png"))
    found, expected = regions_of("new.safetensors", image), regions_of(model_file, image)
    np.testing.assert_allclose(found.semantic_tokens, expected.semantic_tokens, atol=1e-4)
    assert found.concepts == expected.concepts
    # The published format does not say how long captions may be; the paper's length is assumed.
    for text, start in zip(found.captions, expected.captions, strict=True):
        assert text is not None and start is not None
        assert text.startswith(start)


def test_convert_keeps_what_a_native_file_holds(folder, model_file, capsys):
    assert main(["convert", str(model_file), "half.safetensors"]) == 0
    assert "float16, images of 48, 5 concepts, a text tokenizer of 43" in capsys.readouterr().out
    assert read_header("half.safetensors").metadata == read_header(model_file).metadata
    before, after = read_extra_tensors(model_file), read_extra_tensors("half.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_convert_replaces_the_vocabulary_of_a_native_file(folder, model_file):
    make_vocabulary(("left", "right")).save("two.safetensors")
    words = [str(model_file), "new.safetensors", "--concepts", "two.safetensors"]
    assert main(["convert", *words]) == 0
    predictor = TAPPredictor.from_pretrained("new.safetensors")
    assert predictor.concepts is not None
    assert predictor.concepts.names == ("left", "right")
    assert predictor.text_tokenizer == tiny_tokenizer()


def test_convert_goes_back_to_the_published_format(folder, published, capsys):
    assert main(["convert", "published.pkl", "a.safetensors", "--dtype", "float32"]) == 0
    assert "no concepts (--concepts), no text tokenizer" in capsys.readouterr().out
    assert main(["convert", "a.safetensors", "b.pkl", "--dtype", "float32"]) == 0
    image = np.asarray(Image.open("photo.png"))
    with pytest.warns(UserWarning, match="no text tokenizer"):
        back, first = regions_of("b.pkl", image), regions_of("published.pkl", image)
    np.testing.assert_array_equal(back.semantic_tokens, first.semantic_tokens)
    np.testing.assert_array_equal(back.masks, first.masks)


WRONG_CONVERSIONS = [
    (["published.pkl"], "required: DESTINATION"),
    (
        ["published.pkl", "new.pth"],
        r"DESTINATION: expected a name ending in \.safetensors or \.pkl",
    ),
    (["published.pkl", "no/new.safetensors"], "DESTINATION: the folder .*no does not exist"),
    (["published.pkl", "published.pkl"], "DESTINATION: published.pkl is a file this command reads"),
    (["missing.pkl", "new.safetensors"], "missing.pkl: no such file"),
    (["photo.png", "new.safetensors"], "photo.png: expected a .safetensors file, or a published"),
    (["code.pkl", "new.safetensors"], "os.system|posix.system"),
    (["published.pkl", "new.safetensors", "--dtype", "int8"], "dtype: expected one of"),
    (["published.pkl", "new.pkl", "--concepts", "c.safetensors"], "--concepts: .*no place for it"),
    (["published.pkl", "new.pkl", "--text-tokenizer", "t.model"], "--text-tokenizer: .*no place"),
    (["published.pkl", "new.safetensors", "--concepts", "c.safetensors"], "expected weights of 29"),
    (["published.pkl", "new.safetensors", "--text-tokenizer", "no.model"], "no.model is no file"),
]


@pytest.mark.parametrize(("words", "message"), WRONG_CONVERSIONS)
def test_convert_explains_what_is_wrong(folder, published, capsys, words, message):
    make_vocabulary(("a", "b"), dim=31).save("c.safetensors")
    Path("code.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert main(["convert", *words]) == 2
    assert re.search(message, error_of(capsys))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


# --- the front door -----------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["predict", "--help"], ["convert", "--help"]])
def test_help_is_printed(capsys, words):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("usage: tap")


def test_version_is_the_package_s(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"tap {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"), [([], "required: COMMAND"), (["paint"], "invalid choice: 'paint'")]
)
def test_unknown_commands_are_explained(capsys, words, message):
    assert main(words) == 2
    assert message in error_of(capsys)


def test_ctrl_c_stops_quietly(folder, model_file, capsys, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(TAPPredictor, "predict_mask_concept_caption", interrupt)
    assert predict(model_file, "--point", "3,4", "--json", "a.json") == 130
    assert capsys.readouterr().err == "tap: interrupted\n"
    assert not Path("a.json").exists()


def test_mistakes_of_the_program_are_not_hidden(folder, model_file, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("impossible")

    monkeypatch.setattr(TAPPredictor, "predict_mask_concept_caption", fail)
    with pytest.raises(RuntimeError, match="impossible"):
        predict(model_file, "--point", "3,4")


def test_process_survives_a_closed_pipe_and_a_poor_terminal(folder, model_file):
    Image.open("photo.png").save("日本.png")
    command = [sys.executable, "-m", "tokenize_anything.cli", "predict", "日本.png"]
    command += ["--model", str(model_file), "--point", "3,4", "--no-captions"]
    poor = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=poor, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("\\u65e5\\u672c.png, 67 x 41 pixels")

    with subprocess.Popen(
        command, env=poor, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
