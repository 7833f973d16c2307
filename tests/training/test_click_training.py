"""Training of the click segmenter on drawn photos: what learns, resuming, prompts."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.photos import write_json, write_photos
from tests.tiny import tiny_config, tiny_tap, tiny_tokenizer
from tests.tiny_predictor import tiny_vocabulary
from tests.training.states import assert_resumes
from tests.training.tiny_clicks import SIDE, make_batch
from tests.training.tiny_runs import data_config
from tokenize_anything import TAPPredictor
from tokenize_anything.build import load_model
from tokenize_anything.checkpoints import save_model
from tokenize_anything.cli import main
from tokenize_anything.click_windows import coords_in_windows
from tokenize_anything.companions import Companions
from tokenize_anything.data.click_dataset import ClickBatch, ClickSamplingConfig
from tokenize_anything.data.prompt_sampling import PromptSamplingConfig, SampledPrompts
from tokenize_anything.modeling import TAP, ClickOutputs
from tokenize_anything.modeling.click_segmenter import NUM_WINDOWS
from tokenize_anything.training.click_config import ClickConfig
from tokenize_anything.training.click_training import (
    ClickTrainer,
    middle_clicks,
    window_losses,
)
from tokenize_anything.training.config import DataConfig, load_config, save_config
from tokenize_anything.training.optimizer import OptimizerConfig
from tokenize_anything.training.step_draws import StepDraws

WIDTH = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clicks") / "set"
    write_photos(root)
    return root


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a segmenter, its concepts and its tokenizer."""
    tensors, metadata = Companions(tiny_vocabulary(), tiny_tokenizer()).pack()
    model = tiny_tap(tiny_config(zoom=0.5, view_dim=WIDTH, view_size=64))
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    return save_model(model, path, metadata=metadata, extra_tensors=tensors)


@pytest.fixture
def make_config(folder: Path, model_path: Path, tmp_path: Path) -> Any:
    def make(**changes: Any) -> ClickConfig:
        values: dict[str, Any] = dict(
            data=data_config(folder),
            output_folder=str(tmp_path / "run"),
            init_from=str(model_path),
            click_size=SIDE,
            clicks=ClickSamplingConfig(clicks_per_image=2),
            optimizer=OptimizerConfig(peak_lr=3e-3, warmup_steps=2),
            batch_size=2,
            num_steps=6,
            second_stage_probability=0.7,
            precision="float32",
            num_workers=0,
            save_every=100,
            log_every=1,
        )
        return ClickConfig(**(values | changes))

    return make


def load(path: Path) -> TAP:
    return load_model(path, device="cpu", dtype="float32")


def read_rows(run: Path) -> list[dict[str, str]]:
    with (run / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# --- runs ------------------------------------------------------------------------------------


def test_it_learns_to_answer_clicks(make_config: Any) -> None:
    config = make_config(
        num_steps=100,
        fresh=True,
        second_stage_probability=0.2,
        clicks=ClickSamplingConfig(clicks_per_image=3, colour=0.1),
        optimizer=OptimizerConfig(peak_lr=1e-2, warmup_steps=5),
    )
    rows = read_rows(ClickTrainer(config).run().parent)
    start, end = (
        {name: np.mean([float(row[name]) for row in part]) for name in ("loss", "chosen_iou")}
        for part in (rows[:9], rows[-9:])
    )
    assert start["chosen_iou"] < 0.35 and end["chosen_iou"] > 0.6
    assert end["loss"] < 0.7 * start["loss"]


def test_nothing_else_of_the_model_changes(make_config: Any, model_path: Path) -> None:
    path = ClickTrainer(make_config()).run()
    before, after = load(model_path), load(path)
    assert after.config == dataclasses.replace(before.config, click_size=SIDE)
    state = after.state_dict()
    for name, value in before.state_dict().items():
        assert torch.equal(state[name], value), name
    assert {name for name in state if name not in before.state_dict()} == {
        name for name in state if name.startswith("click_segmenter.")
    }
    predictor = TAPPredictor.from_pretrained(path, device="cpu")
    assert predictor.concepts is not None and predictor.concepts.names == tiny_vocabulary().names
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    found = predictor.predict_mask_concept_caption(image, points=[[7, 9]])
    assert found.captions[0] is not None and np.isfinite(found.semantic_embeddings).all()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_killed_and_resumed_equals_uninterrupted(
    make_config: Any, tmp_path: Path, num_workers: int
) -> None:
    parts = str(tmp_path / "parts")
    assert_resumes(
        ClickTrainer,
        make_config(output_folder=str(tmp_path / "whole")),
        make_config(output_folder=parts, save_every=3, num_workers=num_workers),
    )


@pytest.mark.parametrize("fresh", [False, True])
def test_it_starts_from_the_segmenter(make_config: Any, model_path: Path, fresh: bool) -> None:
    """With all that both networks have; windows tell each other nothing yet."""
    segmenter = load(model_path).view_segmenter
    assert segmenter is not None
    source = segmenter.state_dict()
    started = ClickTrainer(make_config(fresh=fresh)).part.state_dict()
    shared = [name for name in source if not name.startswith("semantic_head.")]
    assert {name for name in started if name not in shared} == {
        name for name in started if name.startswith(("exchanges.", "mixer."))
    }
    weights = [name for name in shared if source[name].ndim > 1]
    assert len(weights) > 30
    assert all(torch.equal(started[name], source[name]) != fresh for name in weights)
    assert all(torch.equal(started[name], source[name]) for name in shared) != fresh
    silent = [name for name in started if name.startswith(("exchanges.", "mixer.fc2."))]
    assert silent and not any(started[name].any() for name in silent)


def test_an_existing_network_goes_on(make_config: Any, tmp_path: Path) -> None:
    """Whatever the size of its windows; only `fresh` replaces it."""
    path = ClickTrainer(make_config()).run()
    trained = load(path).click_segmenter
    assert trained is not None
    for size, fresh, is_same in ((SIDE, False, True), (128, False, True), (SIDE, True, False)):
        config = make_config(
            init_from=str(path), click_size=size, fresh=fresh, output_folder=str(tmp_path / "b")
        )
        trainer = ClickTrainer(config)
        assert trainer.model.config.click_size == size
        started = trainer.part.state_dict()
        equal = [torch.equal(value, started[n]) for n, value in trained.state_dict().items()]
        assert all(equal) == is_same


def test_a_model_without_a_segmenter_is_refused(make_config: Any, tmp_path: Path) -> None:
    path = save_model(tiny_tap(tiny_config()), tmp_path / "plain.safetensors")
    message = "click_size must be 0 where view_dim is 0 (`tap train views` comes first), got 64"
    with pytest.raises(ValueError, match=re.escape(message)):
        ClickTrainer(make_config(init_from=str(path)))


def test_a_broken_loss_names_its_photos(make_config: Any) -> None:
    trainer = ClickTrainer(make_config())
    with torch.no_grad():
        trainer.part.mask_head.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 0, images \['\d.png'"):
        trainer.run()


def test_half_precision_runs(make_config: Any) -> None:
    rows = read_rows(ClickTrainer(make_config(precision="bfloat16", num_steps=2)).run().parent)
    assert len(rows) == 2 and all(math.isfinite(float(row["loss"])) for row in rows)


# --- prompts ---------------------------------------------------------------------------------


def test_first_clicks_lie_in_the_middle() -> None:
    found = middle_clicks(5, SIDE, torch.device("cpu"))
    assert found.coords_xy.shape == (5, 2, 2) and not found.is_box.any()
    assert found.labels.tolist() == [[1, 4]] * 5
    assert (found.coords_xy[:, 0] == (SIDE - 1) / 2).all()


def draw_steps(trainer: ClickTrainer, batch: ClickBatch, count: int) -> list[SampledPrompts]:
    pixels = torch.zeros(len(batch), NUM_WINDOWS, 3, SIDE, SIDE)
    found = []
    for trainer.step in range(count):
        generator = torch.Generator().manual_seed(trainer.step)
        found.append(trainer._draw_prompts(batch, pixels, generator))
    return found


def home_masks(batch: ClickBatch) -> np.ndarray:
    return np.stack([batch.masks[row, home] > 127 for row, home in enumerate(batch.home)])


def pixels_of(prompts: SampledPrompts, row: int, label: int, skip: int = 0) -> np.ndarray:
    """Whole pixels (n,2) of the home window of points with a label, but the first `skip`."""
    coords = prompts.coords_xy[row, skip:][prompts.labels[row, skip:] == label].numpy()
    np.testing.assert_allclose(coords, coords.round(), atol=1e-4)
    return coords.round().astype(int)


@pytest.mark.parametrize("interactive", [0.0, 1.0])
def test_later_clicks_lie_where_they_should(make_config: Any, interactive: float) -> None:
    """On the region; as corrections, where a mask that covers all is wrong: beside the region."""
    trainer = ClickTrainer(
        make_config(
            second_stage_probability=0.8,
            prompts=PromptSamplingConfig(interactive_probability=interactive, max_corrections=5),
        )
    )
    with torch.no_grad():
        trainer.part.mask_head.bias.fill_(1e4)  # all is region
    trainer.part.train()
    batch = ClickBatch.join([trainer.dataset[0, index] for index in range(3)])
    truth, counts = home_masks(batch), set()
    before = {name: value.clone() for name, value in trainer.part.state_dict().items()}
    for step, prompts in enumerate(draw_steps(trainer, batch, 12)):
        draws = StepDraws.at(0, step, trainer.config.prompts, 0.8)
        more = draws.num_clicks if draws.has_second_stage else 0
        assert draws.is_interactive == bool(interactive)
        assert prompts.labels.shape[1] == 2 + more and not prompts.is_box.any()
        counts.add(more)
        for row in range(len(batch)):
            assert prompts.labels[row, 0] == 1 and prompts.labels[row, -1] == 4
            assert prompts.coords_xy[row, 0].tolist() == [(SIDE - 1) / 2] * 2
            label = 0 if interactive else 1
            x, y = pixels_of(prompts, row, label, skip=1).T
            assert len(x) == more
            assert (truth[row][y, x] == (not interactive)).all()
    assert 0 in counts and len(counts) > 2
    for name, value in trainer.part.state_dict().items():
        assert torch.equal(value, before[name]), name  # drawing leaves the statistics alone
    assert trainer.part.training


@pytest.mark.parametrize("is_region", [True, False])
def test_corrections_are_of_the_mask_in_the_home_window(make_config: Any, is_region: bool) -> None:
    """Where that is all region, they lie beside the region, else on it; others do not count."""
    trainer = ClickTrainer(
        make_config(
            second_stage_probability=1.0, prompts=PromptSamplingConfig(interactive_probability=1.0)
        )
    )
    batch = ClickBatch.join([trainer.dataset[0, index] for index in range(3)])
    count = len(batch)
    logits = torch.full((count, NUM_WINDOWS, SIDE // 2, SIDE // 2), -1.0 if is_region else 1.0)
    logits[torch.arange(count), batch.home] *= -1
    outputs = ClickOutputs(logits, torch.zeros(count, NUM_WINDOWS))
    trainer._segment = lambda *asked: outputs  # type: ignore[method-assign]
    truth = home_masks(batch)
    for prompts in draw_steps(trainer, batch, 3):
        for row in range(count):
            x, y = pixels_of(prompts, row, 0 if is_region else 1, skip=1).T
            assert (truth[row][y, x] != is_region).all()
            assert len(x) == prompts.labels.shape[1] - 2


def test_prompts_of_the_home_window_reach_all_windows(
    make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = ClickTrainer(
        make_config(
            second_stage_probability=1.0, prompts=PromptSamplingConfig(interactive_probability=0.0)
        )
    )
    batch = ClickBatch.join([trainer.dataset[0, index] for index in range(2)])
    assert len(set(batch.home.tolist())) > 1
    pixels = torch.zeros(len(batch), NUM_WINDOWS, 3, SIDE, SIDE)
    prompts = trainer._draw_prompts(batch, pixels, torch.Generator().manual_seed(0))
    seen = []

    def forward(pixels: torch.Tensor, coords: torch.Tensor, labels: torch.Tensor) -> ClickOutputs:
        seen.append((coords, labels))
        count = len(pixels)
        return ClickOutputs(
            torch.zeros(count, NUM_WINDOWS, SIDE // 2, SIDE // 2), torch.zeros(count, NUM_WINDOWS)
        )

    monkeypatch.setattr(trainer.part, "forward", forward)
    trainer._segment(pixels, prompts, batch.home)
    ((coords, labels),) = seen
    assert torch.equal(labels, prompts.labels)
    expected = coords_in_windows(prompts.coords_xy, batch.home, SIDE)
    torch.testing.assert_close(coords, expected)
    for row, home in enumerate(batch.home.tolist()):
        torch.testing.assert_close(coords[row, home], prompts.coords_xy[row])


def test_the_loss_is_the_weighted_sum_of_its_parts(make_config: Any) -> None:
    """And the chosen IoU is that of the windows that score highest."""
    trainer = ClickTrainer(
        make_config(mask_weight=2.0, dice_weight=3.0, iou_weight=5.0, second_stage_probability=0.0)
    )
    trainer.part.eval()
    batch, outputs = make_batch()
    trainer._segment = lambda *asked: outputs  # type: ignore[method-assign]
    total, parts = trainer.losses(batch)
    assert tuple(parts) == ClickTrainer.LOSSES
    weights = {"mask": 2.0, "dice": 3.0, "iou": 5.0}
    expected = sum(weight * float(parts[name]) for name, weight in weights.items())
    assert float(total) == pytest.approx(expected, rel=1e-5)
    _, ious = window_losses(outputs, batch)
    best = outputs.iou_scores.numpy().argmax(axis=1)
    assert len(set(best)) > 1
    chosen = np.mean([float(ious[row, place]) for row, place in enumerate(best)])
    assert float(parts["chosen_iou"]) == pytest.approx(chosen, rel=1e-5)


# --- configuration ---------------------------------------------------------------------------


def test_some_photos_of_the_data(make_config: Any) -> None:
    """Each as often as its two regions want."""
    few = ClickTrainer(make_config(max_images=2)).dataset.records
    every = ClickTrainer(make_config()).dataset.records
    assert len(few) == 2 and list(few) == list(every)[:2] and len(every) == 4
    single = make_config(clicks=ClickSamplingConfig(clicks_per_image=1))
    assert len(ClickTrainer(single).dataset) == 8


def test_photos_with_boxes_alone_are_too_little(
    make_config: Any, folder: Path, tmp_path: Path
) -> None:
    content = json.loads((folder / "photos.json").read_text())
    for annotation in content["annotations"]:
        annotation.pop("segmentation", None)
    path = write_json(tmp_path / "boxes.json", content)
    data = dataclasses.replace(data_config(folder), annotation_files=(str(path),))
    with pytest.raises(ValueError, match="data: expected photos with masks, got none"):
        ClickTrainer(make_config(data=data))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "num_steps: expected at least 1, got 0"),
        ({"ema_decay": 1.5}, "ema_decay: expected 0 to 1, got 1.5"),
        ({"max_images": -1}, "max_images: expected at least 0, got -1"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"click_size": 0}, "click_size: expected at least 1, got 0"),
        ({"click_size": 96}, "click_size: expected a multiple of 64, got 96"),
        ({"num_workers": -1}, "num_workers: expected at least 0, got -1"),
        ({"second_stage_probability": 1.5}, "second_stage_probability: expected 0 to 1, got 1.5"),
        ({"data": DataConfig(photo_folder="x")}, "data: expected annotation_files, got a folder"),
    ],
)
def test_bad_configurations(make_config: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make_config(**changes)


def test_the_command(make_config: Any, tmp_path: Path, capsys: Any) -> None:
    config = make_config(num_steps=2, clicks=ClickSamplingConfig(scale_range=(0.9, 1.1)))
    save_config(config, tmp_path / "clicks.yaml")
    assert load_config(ClickConfig, tmp_path / "clicks.yaml") == config
    assert main(["train", "clicks", str(tmp_path / "clicks.yaml")]) == 0
    assert f"wrote {tmp_path / 'run' / 'model.safetensors'}" in capsys.readouterr().out
    assert load(tmp_path / "run" / "model.safetensors").click_segmenter is not None
