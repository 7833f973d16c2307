"""Training of the view segmenter on drawn photos: what learns, resuming, losses, prompts."""

from __future__ import annotations

import csv
import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.photos import write_photos
from tests.tiny import tiny_config, tiny_tap, tiny_tokenizer
from tests.tiny_predictor import tiny_vocabulary
from tests.training.states import assert_resumes
from tests.training.tiny_runs import data_config, embed_by_hash
from tokenize_anything import TAPPredictor
from tokenize_anything.build import load_model
from tokenize_anything.checkpoints import save_model
from tokenize_anything.cli import main
from tokenize_anything.companions import Companions
from tokenize_anything.data.prompt_sampling import (
    PromptSampler,
    PromptSamplingConfig,
    SampledPrompts,
)
from tokenize_anything.data.view_dataset import ViewBatch, ViewSamplingConfig
from tokenize_anything.modeling import ViewOutputs
from tokenize_anything.training.config import DataConfig, load_config, save_config
from tokenize_anything.training.optimizer import OptimizerConfig
from tokenize_anything.training.part_training import choose_records
from tokenize_anything.training.view_config import ViewConfig
from tokenize_anything.training.view_training import (
    ViewTrainer,
    first_prompts,
    mask_losses,
    replace_boxes,
)

SIDE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("views") / "set"
    write_photos(root)
    return root


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors, metadata = Companions(tiny_vocabulary(), tiny_tokenizer()).pack()
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    return save_model(tiny_tap(), path, metadata=metadata, extra_tensors=tensors)


@pytest.fixture
def make_config(folder: Path, model_path: Path, tmp_path: Path) -> Any:
    def make(**changes: Any) -> ViewConfig:
        values: dict[str, Any] = dict(
            data=data_config(folder),
            output_folder=str(tmp_path / "run"),
            init_from=str(model_path),
            view_dim=3,
            view_size=SIDE,
            views=ViewSamplingConfig(views_per_image=3),
            optimizer=OptimizerConfig(peak_lr=3e-3, warmup_steps=2),
            batch_size=3,
            num_steps=6,
            second_stage_probability=0.7,
            precision="float32",
            num_workers=0,
            save_every=100,
            log_every=1,
        )
        return ViewConfig(**(values | changes))

    return make


def test_it_learns_to_outline(make_config: Any) -> None:
    config = make_config(
        view_dim=6,
        num_steps=150,
        second_stage_probability=0.3,
        views=ViewSamplingConfig(views_per_image=4, click_zoom_range=(0.4, 0.8), colour=0.1),
    )
    trainer = ViewTrainer(config, embed_by_hash)
    trainer.run()
    with (trainer.folder / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    start, end = (np.mean([float(r["mean_iou"]) for r in part]) for part in (rows[:9], rows[-9:]))
    assert start < 0.5 and end > 0.8
    accuracy = np.mean([float(row["accuracy"]) for row in rows[-9:]])
    assert accuracy > 0.6  # of the names of three shapes, and captions


def test_nothing_else_of_the_model_changes(make_config: Any, model_path: Path) -> None:
    path = ViewTrainer(make_config(), embed_by_hash).run()
    before, after = load_model(model_path, device="cpu"), load_model(path, device="cpu")
    assert after.config == dataclasses.replace(before.config, view_dim=3, view_size=SIDE)
    for name, value in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], value), name
    predictor = TAPPredictor.from_pretrained(path, device="cpu")
    assert predictor.concepts is not None and predictor.concepts.names == tiny_vocabulary().names
    found = predictor.predict_mask_concept_caption(
        np.zeros((50, 60, 3), np.uint8), points=[[7, 9]], zoom=0.5
    )
    assert found.captions[0] is not None


@pytest.mark.parametrize("num_workers", [0, 1])
def test_killed_and_resumed_equals_uninterrupted(
    make_config: Any, tmp_path: Path, num_workers: int
) -> None:
    parts = str(tmp_path / "parts")
    assert_resumes(
        ViewTrainer,
        make_config(output_folder=str(tmp_path / "whole")),
        make_config(output_folder=parts, save_every=3, num_workers=num_workers),
    )


def test_a_segmenter_of_the_same_width_goes_on(make_config: Any, tmp_path: Path) -> None:
    path = ViewTrainer(make_config(), embed_by_hash).run()
    for width, fresh, is_same in ((3, False, True), (4, False, False), (3, True, False)):
        config = make_config(
            init_from=str(path), view_dim=width, fresh=fresh, output_folder=str(tmp_path / "b")
        )
        started = ViewTrainer(config, embed_by_hash).part.state_dict()
        trained = load_model(path, device="cpu").view_segmenter
        assert trained is not None
        equal = [
            torch.equal(value, started[name])
            for name, value in trained.state_dict().items()
            if value.shape == started[name].shape
        ]
        assert all(equal) == is_same


def test_a_broken_loss_names_its_photos(make_config: Any) -> None:
    trainer = ViewTrainer(make_config(), embed_by_hash)
    with torch.no_grad():
        trainer.part.mask_head.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 0, images \['\d.png'"):
        trainer.run()


# --- prompts and losses ----------------------------------------------------------------------


def make_batch(count: int = 6) -> ViewBatch:
    masks = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    for row in range(count - 1):  # the last has no mask
        masks[row, 5 + row : 31, 8 : 30 + 3 * row] = True
    boxes = torch.tensor([[8.0, 5.0 + row, 30.0 + 3 * row, 31.0] for row in range(count)])
    return ViewBatch(
        images=torch.zeros(count, SIDE, SIDE, 3, dtype=torch.uint8),
        boxes_xyxy=boxes,
        clicks_xy=torch.tensor([[9.0 + row, 29.0] for row in range(count)]),
        is_box=torch.arange(count) % 2 == 0,
        masks=masks,
        has_mask=torch.arange(count) < count - 1,
        areas=masks.sum((1, 2)) * torch.where(torch.arange(count) == 1, 2.0, 1.0),
        text_index=torch.arange(count) - 1,
        names=("a.png",) * count,
    )


def test_first_prompts_are_what_the_view_was_drawn_around() -> None:
    batch = make_batch()
    sampler = PromptSampler(SIDE, PromptSamplingConfig(box_noise=0.0))
    prompts = first_prompts(batch, sampler, torch.Generator().manual_seed(0))
    assert prompts.is_box.tolist() == [True, False, True, False, True, True]  # last: no mask
    for row in range(6):
        if prompts.is_box[row]:
            assert prompts.labels[row].tolist() == [2, 3]
            assert torch.equal(prompts.coords_xy[row].flatten(), batch.boxes_xyxy[row])
        else:
            assert prompts.labels[row].tolist() == [1, 4]
            assert torch.equal(prompts.coords_xy[row, 0], batch.clicks_xy[row])


def test_boxes_give_way_to_clicks() -> None:
    batch = make_batch()
    sampler = PromptSampler(SIDE, PromptSamplingConfig(box_noise=0.0))
    generator = torch.Generator().manual_seed(0)
    first = first_prompts(batch, sampler, generator)
    clicks = sampler.clicks(batch.masks, generator, count=4)
    mixed: SampledPrompts = replace_boxes(first, clicks)
    assert mixed.labels.tolist() == [
        [1, 1, 1, 1, 4], [1, 4, 4, 4, 4], [1, 1, 1, 1, 4], [1, 4, 4, 4, 4], [1, 1, 1, 1, 4],
        [2, 3, 4, 4, 4],
    ]  # fmt: skip
    assert mixed.is_box.tolist() == [False] * 5 + [True]
    assert torch.equal(mixed.coords_xy[2], clicks.coords_xy[2])
    assert torch.equal(mixed.coords_xy[3, 0], batch.clicks_xy[3])


def test_losses_equal_a_plain_computation() -> None:
    batch = make_batch()
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, SIDE // 2, SIDE // 2, generator=generator)
    scores = torch.rand(6, generator=generator)
    found = mask_losses(ViewOutputs(logits, scores, torch.zeros(6, 3)), batch)
    entropies, dices, errors, ious = [], [], [], []
    for row in range(5):
        truth = batch.masks[row].numpy().reshape(SIDE // 2, 2, SIDE // 2, 2).mean(axis=(1, 3))
        p = 1 / (1 + np.exp(-logits[row].double().numpy()))
        entropies.append(-(truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean())
        dices.append(1 - (2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1))
        cut = p > 0.5
        shared = 4 * (truth * cut).sum()
        ious.append(shared / (4 * cut.sum() + float(batch.areas[row]) - shared))
        errors.append((float(scores[row]) - ious[-1]) ** 2)
    expected = {"mask": entropies, "dice": dices, "iou": errors, "mean_iou": ious}
    for name, values in expected.items():
        assert float(found[name]) == pytest.approx(np.mean(values), rel=1e-4), name


def test_each_kind_of_prompt_is_drawn(make_config: Any) -> None:
    """First prompts alone, clicks on the truth, and corrections of the segmenter's own masks."""
    trainer = ViewTrainer(make_config(), embed_by_hash)
    with torch.no_grad():
        trainer.part.mask_head.bias.fill_(9.0)  # all is region, so corrections say otherwise
    batch = ViewBatch.join([trainer.dataset[0, index] for index in range(3)])
    pixels = torch.zeros(len(batch), 3, SIDE, SIDE)
    kinds = set()
    before = {name: value.clone() for name, value in trainer.part.state_dict().items()}
    for trainer.step in range(12):
        prompts, _ = trainer._draw_prompts(batch, pixels, torch.Generator().manual_seed(0))
        kinds.add((prompts.labels.shape[1] > 2, bool((prompts.labels == 0).any())))
    assert kinds == {(False, False), (True, False), (True, True)}
    for name, value in trainer.part.state_dict().items():
        assert torch.equal(value, before[name])  # drawing leaves the running statistics alone


def test_corrections_show_the_masks_they_correct(make_config: Any) -> None:
    """Those of views around clicks, and of some around boxes; never without a mask in the data."""
    config = make_config(view_corrects=True, second_stage_probability=1.0)
    config = dataclasses.replace(
        config, prompts=PromptSamplingConfig(interactive_probability=1.0, max_corrections=3)
    )
    trainer = ViewTrainer(config, embed_by_hash)
    with torch.no_grad():
        trainer.part.mask_head.bias.fill_(9.0)  # all is region
    batch = ViewBatch.join([trainer.dataset[0, index] for index in range(4)])
    has_mask = batch.has_mask.clone()
    has_mask[0] = False
    batch = dataclasses.replace(batch, has_mask=has_mask)
    is_box = batch.is_box | ~has_mask
    pixels = torch.zeros(len(batch), 3, SIDE, SIDE)
    before = {name: value.clone() for name, value in trainer.part.state_dict().items()}
    corrected = torch.zeros(len(batch))
    for trainer.step in range(24):
        seed = torch.Generator().manual_seed(trainer.step)
        prompts, shown = trainer._draw_prompts(batch, pixels, seed)
        assert shown is not None and shown.shape == batch.masks.shape
        more = (prompts.labels[:, 2:] != 4).any(dim=1)
        corrected += more
        assert not shown[~more].any() and more[~is_box].all()
        assert torch.equal(prompts.is_box, is_box)
    share = corrected / 24
    assert share[0] == 0 and (share[~is_box] == 1).all()
    both = share[is_box & has_mask]
    assert len(both) and (both > 0.15).all() and (both < 0.85).all()
    for name, value in trainer.part.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_what_is_learnt_is_shown_the_mask(make_config: Any) -> None:
    trainer = ViewTrainer(make_config(view_corrects=True), embed_by_hash)
    batch = make_batch()
    shown = torch.rand(batch.masks.shape)
    prompts = first_prompts(batch, trainer.sampler, torch.Generator().manual_seed(0))
    trainer._draw_prompts = lambda *_: (prompts, shown)  # type: ignore[method-assign]
    seen: list[Any] = []
    hook = trainer.part.register_forward_pre_hook(lambda _, args: seen.append(args))
    trainer.losses(batch)
    hook.remove()
    ((_, coords, _, masks),) = seen
    assert masks is shown and torch.equal(coords, prompts.coords_xy)


def test_a_segmenter_learns_to_correct(make_config: Any, tmp_path: Path) -> None:
    """It starts from one that does not, says what that said, and hears the mask afterwards."""
    source = ViewTrainer(make_config(), embed_by_hash).run()
    config = make_config(
        init_from=str(source), view_corrects=True, output_folder=str(tmp_path / "corrections")
    )
    trainer = ViewTrainer(config, embed_by_hash)
    old = load_model(source, device="cpu").view_segmenter
    assert old is not None
    state = trainer.part.state_dict()
    for name, value in old.state_dict().items():
        assert torch.equal(state[name][:, :6] if name == "stem.0.weight" else state[name], value)
    assert not state["stem.0.weight"][:, 6:].any()
    trained = load_model(trainer.run(), device="cpu")
    assert trained.config.view_corrects and trained.view_segmenter is not None
    assert trained.view_segmenter.stem[0].weight[:, 6:].any()
    path = str(tmp_path / "corrections" / "model.safetensors")
    for fresh in (False, True):  # what corrects goes on, unless it is to start anew
        config = make_config(init_from=path, fresh=fresh, output_folder=str(tmp_path / "again"))
        again = ViewTrainer(config, embed_by_hash)
        assert again.model.config.view_corrects != fresh
        same = torch.equal(again.part.mask_head.weight, trained.view_segmenter.mask_head.weight)
        assert same != fresh


@pytest.mark.parametrize("num_workers", [0, 1])
def test_corrections_resume(make_config: Any, tmp_path: Path, num_workers: int) -> None:
    assert_resumes(
        ViewTrainer,
        make_config(view_corrects=True, output_folder=str(tmp_path / "whole")),
        make_config(
            view_corrects=True, output_folder=str(tmp_path / "parts"), save_every=3,
            num_workers=num_workers,
        ),
    )  # fmt: skip


# --- configuration -----------------------------------------------------------------------------


def test_some_photos_of_the_data(make_config: Any) -> None:
    few = ViewTrainer(make_config(max_images=2), embed_by_hash).dataset.records
    every = ViewTrainer(make_config(), embed_by_hash).dataset.records
    assert len(few) == 2 and list(few) == list(every)[:2] and len(every) == 4
    with pytest.raises(ValueError, match="data: expected photos with regions, got none"):
        choose_records([dataclasses.replace(every[0], regions=())], 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "num_steps: expected at least 1, got 0"),
        ({"ema_decay": 1.5}, "ema_decay: expected 0 to 1, got 1.5"),
        ({"max_images": -1}, "max_images: expected at least 0, got -1"),
        ({"view_size": 100}, "view_size: expected a multiple of 32, got 100"),
        ({"data": DataConfig(photo_folder="x")}, "data: expected annotation_files, got a folder"),
        (
            {"data": DataConfig(annotation_files=("a.json",), on_bad_data="skip")},
            "data.on_bad_data: expected stop, got skip",
        ),
    ],
)
def test_bad_configurations(make_config: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make_config(**changes)


def test_the_command(
    make_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    save_config(make_config(num_steps=2), tmp_path / "views.yaml")
    assert load_config(ViewConfig, tmp_path / "views.yaml") == make_config(num_steps=2)
    monkeypatch.setattr(
        "tokenize_anything.cli_train.embed_texts_cached",
        lambda texts, path, embed: embed_by_hash(texts, tiny_config().semantic_dim),
    )
    assert main(["train", "views", str(tmp_path / "views.yaml")]) == 0
    assert f"wrote {tmp_path / 'run' / 'model.safetensors'}" in capsys.readouterr().out


def test_the_loss_is_the_weighted_sum_of_its_parts(make_config: Any) -> None:
    """The concept part is that of the regions with a text, with a mask or without."""
    trainer = ViewTrainer(
        make_config(
            mask_weight=2.0, dice_weight=3.0, iou_weight=5.0, concept_weight=7.0,
            second_stage_probability=0.0,
        ),
        embed_by_hash,
    )  # fmt: skip
    trainer.part.eval()
    batch = make_batch()  # the first has no text, the last no mask
    total, parts = trainer.losses(batch)
    weights = {"mask": 2.0, "dice": 3.0, "iou": 5.0, "concept": 7.0}
    assert float(total.detach()) == pytest.approx(
        sum(weight * float(parts[name]) for name, weight in weights.items()), rel=1e-5
    )
    told = [trainer.losses(keep_texts(batch, rows))[1]["concept"] for rows in ([5], [1, 5], [1])]
    assert float(told[1]) == pytest.approx((float(told[0]) + float(told[2])) / 2, rel=1e-4)
    assert float(told[0]) > 0


def keep_texts(batch: ViewBatch, rows: list[int]) -> ViewBatch:
    index = torch.full_like(batch.text_index, -1)
    index[rows] = batch.text_index[rows]
    return dataclasses.replace(batch, text_index=index)
