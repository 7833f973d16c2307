"""The networks for views in bfloat16 beside a float32 model: when, where, and what it changes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.tiny import tiny_config, tiny_tap, tiny_tokenizer
from tests.tiny_predictor import make_mixed_prompts, make_photo, tiny_predictor, tiny_vocabulary
from tokenize_anything import EverythingConfig, TAPPredictor
from tokenize_anything.build import has_bfloat16_units, load_model
from tokenize_anything.checkpoints import save_model
from tokenize_anything.companions import Companions

HEIGHT, WIDTH = 149, 211
PARTS = ("view_segmenter", "click_segmenter", "view_namer")
SIZES = {"zoom": 0.5, "view_dim": 3, "view_size": 96, "click_size": 64, "namer_size": 64}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors, metadata = Companions(tiny_vocabulary(), tiny_tokenizer()).pack()
    target = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    model = tiny_tap(tiny_config(**SIZES))
    return save_model(model, target, metadata=metadata, extra_tensors=tensors)


@pytest.mark.parametrize(
    ("facts", "has_units"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, True),  # Intel
        ({"amx_bf16": False, "avx512_bf16": True}, True),  # AMD
        ({"amx_bf16": False, "avx512_bf16": False, "avx2": True}, False),
    ],
)
def test_only_a_dtype_left_open_and_a_fitting_cpu_give_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, facts: dict[str, bool], has_units: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: facts, raising=False)
    assert has_bfloat16_units() == has_units
    for dtype, expected in (("auto", has_units), ("float32", False), ("bfloat16", False)):
        assert load_model(path, device="cpu", dtype=dtype).fast_views == expected
        predictor = TAPPredictor.from_pretrained(path, device="cpu", dtype=dtype)
        assert predictor.model.fast_views == expected
        if dtype != "bfloat16":
            assert {p.dtype for p in predictor.model.parameters()} == {torch.float32}


def test_a_torch_that_does_not_know_the_cpu_gives_it_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert not has_bfloat16_units()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not has_bfloat16_units()


def spy(model: nn.Module) -> dict[str, set[torch.dtype]]:
    """Dtypes that the linear layers and convolutions of each part compute in."""
    seen: dict[str, set[torch.dtype]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            part = seen.setdefault(name.partition(".")[0], set())

            def note(_: nn.Module, __: Any, output: Any, part: Any = part) -> None:
                part.add(output.dtype)

            module.register_forward_hook(note)
    return seen


@pytest.mark.parametrize("fast", [True, False])
def test_these_networks_alone_compute_in_bfloat16(fast: bool) -> None:
    predictor, photo = tiny_predictor(**SIZES), make_photo(HEIGHT, WIDTH)
    prompts = make_mixed_prompts(HEIGHT, WIDTH)
    exact = predictor.predict_mask_concept_caption(photo, prompts=prompts)
    predictor.model.fast_views = fast
    seen = spy(predictor.model)
    found = predictor.predict_mask_concept_caption(photo, prompts=prompts)
    for part, dtypes in seen.items():
        is_fast = fast and part in PARTS
        assert dtypes == {torch.bfloat16 if is_fast else torch.float32}, part
    assert set(PARTS) < set(seen)
    assert not torch.is_autocast_enabled("cpu")
    # windows of a click that score alike may change places when they are rounded
    same = np.mean(found.masks != exact.masks, axis=(1, 2)) <= (0.05 if fast else 1e-4)
    assert same.sum() >= (5 if fast else 7)
    for name in ("iou_scores", "semantic_tokens", "semantic_embeddings", "mask_tokens"):
        value, known = getattr(found, name), getattr(exact, name)
        assert value.dtype == known.dtype == np.float32
        near = (0.05 if fast else 1e-4) * np.abs(known).max()  # networks with hooks do not fold
        np.testing.assert_allclose(value[same], known[same], atol=near, rtol=0)


@pytest.mark.parametrize("fast", [True, False])
def test_the_automatic_mode_computes_so_too(fast: bool) -> None:
    predictor = tiny_predictor(**SIZES)
    predictor.model.fast_views = fast
    seen = spy(predictor.model)
    config = EverythingConfig(points_per_side=3)
    predictor.predict_everything(make_photo(HEIGHT, WIDTH), config=config)
    expected = {torch.bfloat16 if fast else torch.float32}
    assert seen["click_segmenter"] == expected and seen["image_encoder"] == {torch.float32}


def test_it_leaves_the_precision_of_its_caller(path: Path) -> None:
    """Without it the networks run as everything around them does; a copy runs alike."""
    model = load_model(path, device="cpu", dtype="float32")
    with torch.autocast("cpu", torch.bfloat16), model.view_precision():
        assert torch.is_autocast_enabled("cpu")
    with model.view_precision():
        assert not torch.is_autocast_enabled("cpu")
    model.fast_views = True
    with copy.deepcopy(model).view_precision():
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
        assert torch.is_autocast_enabled("cpu")
