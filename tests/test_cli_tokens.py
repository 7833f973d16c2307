"""`tap tokens` as a user types it, on real files and a tiny model with random weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.data.photos import write_photos as write_coco
from tests.downstream.tiny_tokens import read_entries, read_rows, write_photos
from tests.test_cli import error_of, make_vocabulary
from tests.tiny import tiny_tap, tiny_tokenizer
from tests.tiny_predictor import sharpen
from tokenize_anything.checkpoints import save_model
from tokenize_anything.cli import main, make_parser
from tokenize_anything.companions import Companions

pytest.importorskip("lance", reason="needs tokenize-anything[search]")
SEARCH = ["--points-per-side", "2", "--max-overlap", "0.5", "--min-iou", "0.2"]


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models that think well of their masks, with a vocabulary and a tokenizer."""
    tensors, metadata = Companions(make_vocabulary(), tiny_tokenizer()).pack()
    paths = []
    for number in range(2):
        model = sharpen(tiny_tap())
        with torch.no_grad():
            model.image_decoder.iou_head.layers[-1].bias += 2.0 + number
        path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
        paths.append(save_model(model, path, metadata=metadata, extra_tensors=tensors))
    return paths


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a folder of photos, whose bytes must not change."""
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", 4)
    before = {path: path.read_bytes() for path in (tmp_path / "photos").rglob("*.png")}
    yield tmp_path / "photos"
    assert {path: path.read_bytes() for path in before} == before


def tokens(model: Path, *words: str) -> int:
    return main(["tokens", "build", *words, "--model", str(model)])


def test_a_folder_is_built_and_verified(photos, model_files, capsys):
    assert tokens(model_files[0], "photos", "--out", "a.lance", *SEARCH) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = read_rows("a.lance")
    assert lines[0].startswith(
        f"a.lance: {len(rows['source'])} regions of 4 photos, tokens of tap@"
    )
    assert lines[1:] == ["4 photos done now, 0 removed"]
    assert set(rows["source"]) <= {"0.png", "1.png", "it's/2.png", "3.png"}
    assert tokens(model_files[0], "photos", "--out", "a.lance", *SEARCH) == 0
    assert "0 photos done now, 0 removed" in capsys.readouterr().out
    assert main(["tokens", "verify", "a.lance"]) == 0
    assert capsys.readouterr().out.endswith("sound; --root DIR compares the photos too\n")
    assert main(["tokens", "verify", "a.lance", "--root", "photos"]) == 0
    assert capsys.readouterr().out.endswith("sound\n")
    assert main(["tokens", "verify", "a.lance", "--root", "photos/it's"]) == 2
    printed = capsys.readouterr()
    assert "photo 0.png: not in photos/it's any more; run the build again" in printed.out
    assert "STORE: 4 problems in a.lance, see above" in printed.err


@pytest.mark.parametrize(
    "word, more, names",
    [
        ("photos/*.png", [], ["0.png", "1.png", "3.png"]),
        ("photos/**/2.png", [], ["it's/2.png"]),
        ("photos/1.png", [], ["1.png"]),
        ("photos/1.png", ["--root", "."], ["photos/1.png"]),
        ("some.txt", [], ["photos/1.png", "photos/it's/2.png"]),
    ],
)
def test_photos_are_named_from_their_root(photos, model_files, word, more, names):
    Path("some.txt").write_text("photos/1.png\nphotos/it's\n")
    assert tokens(model_files[0], word, "--out", "a.lance", "--no-captions", *more, *SEARCH) == 0
    assert sorted(read_entries("a.lance")) == names
    assert set(read_rows("a.lance")["caption"]) <= {""}


def test_a_coco_file_brings_the_prompts(tmp_path, model_files, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path, 2)
    words = ["photos.json", "--images", "images", "--prompt", "mask", "--out", "a.lance"]
    assert tokens(model_files[0], *words, "--vectors", "float16") == 0
    assert read_rows("a.lance")["region_id"] == [1, 2, 4, 5]
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "2 annotations that cannot be used:"
    assert lines[3] == "  0.png: region 3: no mask, which is asked for as the prompt"


def test_another_model_is_refused_by_both_names(photos, model_files, capsys):
    assert tokens(model_files[0], "photos", "--out", "a.lance", *SEARCH) == 0
    assert tokens(model_files[1], "photos", "--out", "a.lance", *SEARCH) == 2
    error = capsys.readouterr().err
    assert error.count("'tap@") == 2
    assert "which are not comparable; choose another store" in error


def test_bad_photos_are_named_or_stop(photos, model_files, capsys):
    (photos / "bad.png").write_bytes(b"no picture")
    words = ["photos", "--out", "a.lance", "--no-captions", *SEARCH]
    assert tokens(model_files[0], *words, "--on-bad", "stop") == 2
    assert "photo bad.png: photo: expected an image" in capsys.readouterr().err
    assert tokens(model_files[0], *words) == 0
    printed = capsys.readouterr().out
    assert "1 photos that cannot be used:\n  bad.png: photo: expected an image" in printed
    (photos / "bad.png").unlink()
    assert tokens(model_files[0], *words, "--on-bad", "stop") == 0


@pytest.mark.parametrize(
    "words, message",
    [
        (["nothing", "--out", "a.lance"], "PHOTOS: nothing at nothing; expected a photo"),
        (["photos", "--out", "no/a.lance"], "--out: the folder .*/no does not exist; create it"),
        (["photos", "--out", "a.lance", "--images", "photos"], "--images, --prompt: they go with"),
        (["a.json", "--out", "a.lance"], "--images: name the folder of the photos of a.json"),
        (
            ["a.json", "--out", "a.lance", "--images", "photos", "--min-iou", "0.5"],
            "PHOTOS: the regions of a.json are those of its annotations; drop the options",
        ),
        (["photos", "--out", "a.lance", "--beams", "2", "--no-captions"], "--beams: there are no"),
        (["photos", "--out", "a.lance", "--root", "other"], "root: photos/0.png does not lie bel"),
    ],
)
def test_wrong_words_are_explained(photos, capsys, words, message):
    assert main(["tokens", "build", *words]) == 2
    assert re.search(message, error_of(capsys))
    assert not Path("a.lance").exists()


def test_ray_options_are_read():
    words = [
        "tokens",
        "build",
        "p",
        "--out",
        "s",
        "--ray",
        "local",
        "--workers",
        "3",
        "--cpus",
        "2",
    ]
    arguments = make_parser().parse_args(words)
    assert (arguments.ray, arguments.workers, arguments.cpus, arguments.gpus) == ("local", 3, 2, 0)
