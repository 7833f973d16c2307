"""Stage 1 end to end on drawn photos: files, resuming, what learns, what stops it."""

from __future__ import annotations

import csv
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.data.photos import SHAPES, write_photos
from tests.tiny import randomize, tiny_config, tiny_tap
from tests.training.states import assert_equal_states
from tests.training.tiny_runs import embed_by_hash, pretrain_config
from tokenize_anything.build import load_model
from tokenize_anything.checkpoints import save_model
from tokenize_anything.concepts import ConceptVocabulary
from tokenize_anything.config import PixelConfig, PointLabel
from tokenize_anything.data.epoch_sampler import EpochSampler
from tokenize_anything.data.prompt_sampling import PromptSamplingConfig
from tokenize_anything.data.region_dataset import collate
from tokenize_anything.data.samples import RegionBatch
from tokenize_anything.image_transform import normalize_pixels, prepare_images
from tokenize_anything.modeling.layers import DropPath
from tokenize_anything.training import region_objective
from tokenize_anything.training.checkpointing import load_training_state
from tokenize_anything.training.config import PretrainConfig, load_config
from tokenize_anything.training.initialize import sine_position_table
from tokenize_anything.training.optimizer import OptimizerConfig, learning_rate
from tokenize_anything.training.pretrain import LOG_COLUMNS, Pretrainer
from tokenize_anything.training.region_objective import PARTS, RegionObjective
from tokenize_anything.training.step_draws import StepDraws, image_generators


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pretrain") / "set"
    write_photos(root)
    return root


def make_trainer(folder: Path, output: Path, **changes: Any) -> Pretrainer:
    return Pretrainer(pretrain_config(folder, output, **changes), embed_by_hash)


def first_batch(trainer: Pretrainer) -> RegionBatch:
    return collate([trainer.dataset[0, index] for index in (2, 1)])


def loss_and_parts(trainer: Pretrainer, batch: RegionBatch) -> tuple[Tensor, dict[str, float]]:
    loss, parts = trainer.losses(batch)
    return loss, dict(zip(PARTS, parts.tolist(), strict=True))


def read_log(path: Path) -> list[dict[str, float]]:
    with (path / "log.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


# --- pixels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_pixels_are_normalised_as_at_inference(order: Any) -> None:
    pixels = PixelConfig(mean=(10.0, 20.0, 30.0), std=(2.0, 3.0, 5.0), channel_order=order)
    config = tiny_config(pixels=pixels)
    images = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
    expected, _ = prepare_images(list(images), config)
    normalised = normalize_pixels(torch.from_numpy(images), pixels)
    torch.testing.assert_close(normalised, expected, rtol=1e-5, atol=1e-5)


# --- a whole run -------------------------------------------------------------------------------


def test_a_run_leaves_everything_needed_to_use_and_to_repeat_it(
    folder: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(folder, tmp_path / "run", num_steps=4, log_every=2)
    first = trainer.model.image_encoder.pos_embed.detach().clone()
    path = trainer.run()
    run = tmp_path / "run"
    names = ["concepts.safetensors", "config.yaml", "log.csv", "model.safetensors"]
    assert sorted(file.name for file in run.iterdir()) == [*names, "training_state.pt"]
    assert load_config(PretrainConfig, run / "config.yaml") == trainer.config
    assert ConceptVocabulary.load(run / "concepts.safetensors").names == tuple(sorted(SHAPES))
    rows = read_log(run)
    assert [row["step"] for row in rows] == [2, 4]
    assert list(rows[0]) == ["step", *LOG_COLUMNS]
    config = trainer.config
    for row in rows:
        expected = learning_rate(int(row["step"]) - 1, 4, config.optimizer)
        assert row["lr"] == pytest.approx(expected, rel=1e-5)
    stored = load_model(path, device="cpu", dtype="float32").state_dict()
    for name, value in trainer.average.model.state_dict().items():
        assert torch.equal(stored[name], value), name
    kept = stored["image_encoder.pos_embed"]  # the average, neither the last nor the first
    assert not torch.equal(kept, trainer.model.image_encoder.pos_embed)
    assert not torch.equal(kept, first)


def test_a_finished_run_is_left_as_it_is(folder: Path, tmp_path: Path) -> None:
    make_trainer(folder, tmp_path, num_steps=2).run()
    before = {name: (tmp_path / name).read_bytes() for name in ("log.csv", "model.safetensors")}
    trainer = make_trainer(folder, tmp_path, num_steps=2)
    trainer.run()
    assert trainer.step == 2
    assert before == {name: (tmp_path / name).read_bytes() for name in before}


class Killed(Exception):  # noqa: N818
    """Stands for whatever ends a process."""


class DiesAtStep4(Pretrainer):
    def train_step(self, *batches: RegionBatch) -> dict[str, float]:
        if self.step == 4:
            raise Killed
        return super().train_step(*batches)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(
    folder: Path, tmp_path: Path, num_workers: int
) -> None:
    make_trainer(folder, tmp_path / "whole").run()
    config = pretrain_config(folder, tmp_path / "parts", save_every=3, num_workers=num_workers)
    with pytest.raises(Killed):
        DiesAtStep4(config, embed_by_hash).run()
    assert [row["step"] for row in read_log(tmp_path / "parts")] == [1, 2, 3, 4]
    resumed = Pretrainer(config, embed_by_hash)
    torch.rand(3)  # whatever else happened in the process
    resumed.run()
    states = [
        load_training_state(tmp_path / name / "training_state.pt") for name in ("whole", "parts")
    ]
    assert states[0]["step"] == 6
    assert_equal_states(states[0], states[1])
    logs = [(tmp_path / name / "log.csv").read_bytes() for name in ("whole", "parts")]
    assert logs[0] == logs[1]


def test_a_stopped_run_goes_on_when_allowed_to(folder: Path, tmp_path: Path) -> None:
    make_trainer(folder, tmp_path / "whole").run()
    make_trainer(folder, tmp_path / "parts", stop_step=4).run()
    assert load_training_state(tmp_path / "parts" / "training_state.pt")["step"] == 4
    make_trainer(folder, tmp_path / "parts").run()
    states = [
        load_training_state(tmp_path / name / "training_state.pt") for name in ("whole", "parts")
    ]
    assert_equal_states(states[0], states[1])


def test_the_loss_falls(folder: Path, tmp_path: Path) -> None:
    optimizer = OptimizerConfig(peak_lr=3e-3, warmup_steps=5)
    trainer = make_trainer(
        folder, tmp_path, num_steps=40, second_stage_probability=0.0, drop_path=0.0,
        decoder_dropout=0.0, optimizer=optimizer,
    )  # fmt: skip
    batch = first_batch(trainer)
    losses = [trainer.train_step(batch)["loss"] for _ in range(40)]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


# --- losses and gradients ----------------------------------------------------------------------


def test_the_loss_is_the_weighted_sum_of_its_parts(folder: Path, tmp_path: Path) -> None:
    weights = {"mask_weight": 2.0, "iou_weight": 3.0, "concept_weight": 0.5, "dice_weight": 7.0}
    trainer = make_trainer(folder, tmp_path, second_stage_probability=0.0, **weights)
    loss, parts = loss_and_parts(trainer, first_batch(trainer))
    expected = 2 * parts["mask"] + 3 * parts["iou"] + 0.5 * parts["concept"]
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert min(parts["mask"], parts["iou"], parts["concept"]) > 0


@pytest.mark.parametrize("interactive", [0.0, 1.0])
def test_a_second_stage_is_averaged_in(folder: Path, tmp_path: Path, interactive: float) -> None:
    trainer = make_trainer(
        folder, tmp_path, second_stage_probability=1.0,
        prompts=PromptSamplingConfig(interactive_probability=interactive),
    )  # fmt: skip
    batch = first_batch(trainer)
    loss, parts = loss_and_parts(trainer, batch)
    first = parts["mask"] + parts["iou"] + parts["concept"]
    assert 0.5 * first < loss.item() != pytest.approx(first, rel=1e-3)
    # Regions without a mask have no second stage.
    nothing = dataclasses.replace(
        batch, has_mask=torch.zeros_like(batch.has_mask), masks=torch.zeros_like(batch.masks)
    )
    loss, parts = loss_and_parts(trainer, nothing)
    assert parts["mask"] == parts["iou"] == 0
    assert loss.item() == pytest.approx(0.5 * parts["concept"], rel=1e-5)


def test_gradients_reach_exactly_the_trainable_parameters(folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path, second_stage_probability=1.0, drop_path=0.0)
    randomize(trainer.model).train()
    frozen = [name for name, p in trainer.model.named_parameters() if not p.requires_grad]
    assert frozen and all(name.startswith("text_decoder.") for name in frozen)
    trainer.losses(first_batch(trainer))[0].backward()
    for name, parameter in trainer.model.named_parameters():
        assert (parameter.grad is None) == name.startswith("text_decoder."), name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    in_optimizer = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    trainable = {id(p) for p in trainer.model.parameters() if p.requires_grad}
    assert in_optimizer == trainable


def test_a_step_trains_all_but_the_frozen_parts(folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path)
    before = {name: v.clone() for name, v in trainer.model.state_dict().items()}
    trainer.train_step(first_batch(trainer))
    assert trainer.model.training
    for name, value in trainer.model.state_dict().items():
        if name.startswith("text_decoder.") or name.endswith("coord_matrix"):
            assert torch.equal(value, before[name]), name
    assert not torch.equal(trainer.model.image_encoder.pos_embed, before["image_encoder.pos_embed"])


def test_dropouts_reach_the_model(folder: Path, tmp_path: Path) -> None:
    model = make_trainer(folder, tmp_path, drop_path=0.3, decoder_dropout=0.2).model
    paths = [module.p for module in model.image_encoder.modules() if isinstance(module, DropPath)]
    assert (paths[0], paths[-1]) == (0.0, 0.3)
    dropouts = [m.p for m in model.image_decoder.modules() if isinstance(m, torch.nn.Dropout)]
    assert set(dropouts) == {0.2}


@pytest.mark.parametrize("is_interactive", [False, True])
def test_a_second_stage_without_interaction_clicks_anew(
    folder: Path, tmp_path: Path, is_interactive: bool
) -> None:
    objective = make_trainer(folder, tmp_path).objective
    assert isinstance(objective, RegionObjective)
    masks = torch.zeros(4, 24, 24, dtype=torch.bool)
    masks[:, 4:12, 3:21] = True
    boxes = torch.tensor([[6.0, 8.0, 42.0, 24.0]]).expand(4, -1)
    generators = image_generators(0, 0, range(2), torch.device("cpu"))
    is_box = torch.ones(4, dtype=torch.bool)
    first = objective.prompts.first(boxes, masks, is_box, generators)
    logits = torch.full((4, 24, 24), -1.0)  # nothing predicted: all errors are missed pixels
    draws = StepDraws(True, is_interactive, 5)
    second = objective.second_prompts(first, logits, masks, draws, generators)
    assert second.is_box.tolist() == [is_interactive] * 4
    clicks = second.labels[:, 2:] if is_interactive else second.labels[:, :-1]
    assert clicks.shape == (4, 5) and (clicks == PointLabel.FOREGROUND).all()


def test_batches_follow_the_seed_and_the_step(folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path, seed=5)
    for step in (0, 1, 3):
        trainer.step = step
        order = itertools.islice(iter(EpochSampler(4, seed=5, start=2 * step)), 4)
        wanted = [index for _, index in order]
        batches = list(itertools.islice(iter(trainer._loader()), 2))
        assert [name for batch in batches for name in batch.names] == [f"{i}.png" for i in wanted]
        assert [index for batch in batches for index in batch.indices.tolist()] == wanted


def test_low_precision_is_for_the_network_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, _ = make_trainer(folder, tmp_path / "a").losses(
        first_batch(make_trainer(folder, tmp_path))
    )
    seen = []
    real = region_objective.region_losses

    def spy(outputs: Any, *arguments: Any, **options: Any) -> Any:
        seen.append((outputs.mask_logits.dtype, torch.is_autocast_enabled("cpu")))
        return real(outputs, *arguments, **options)

    monkeypatch.setattr(region_objective, "region_losses", spy)
    trainer = make_trainer(folder, tmp_path / "b", precision="bfloat16")
    loss, _ = trainer.losses(first_batch(trainer))
    assert set(seen) == {(torch.bfloat16, False)}
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.2)


# --- starting and stopping ---------------------------------------------------------------------


def test_a_run_starts_from_the_weights_it_is_given(folder: Path, tmp_path: Path) -> None:
    other = tiny_tap(tiny_config(image_size=72), seed=3)
    source = save_model(other, tmp_path / "source.safetensors")
    trainer = make_trainer(folder, tmp_path / "run", init_from=str(source))
    expected = other.state_dict()
    for name, value in trainer.model.state_dict().items():
        assert name == "image_encoder.pos_embed" or torch.equal(value, expected[name]), name


def test_sine_positions_are_added_at_the_start(folder: Path, tmp_path: Path) -> None:
    model = tiny_config(encoder_dim=24)
    plain, strong = (
        make_trainer(folder, tmp_path, model=model, sine_positions=scale).model
        for scale in (0.0, 3.0)
    )
    difference = strong.image_encoder.pos_embed - plain.image_encoder.pos_embed
    torch.testing.assert_close(difference.detach(), 3 * sine_position_table(6, 24))


def test_the_seed_decides_the_first_weights_and_batches(folder: Path, tmp_path: Path) -> None:
    rows = [
        make_trainer(folder, tmp_path / str(index), seed=seed, num_steps=1).run().parent
        for index, seed in enumerate((4, 4, 5))
    ]
    logs = [(row / "log.csv").read_bytes() for row in rows]
    assert logs[0] == logs[1] != logs[2]


def test_a_broken_loss_stops_the_run_and_names_the_images(folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path)
    with torch.no_grad():
        trainer.model.image_encoder.pos_embed.fill_(float("nan"))
    message = r"loss is nan at step 0, images \['2\.png', '1\.png'\]"
    with pytest.raises(FloatingPointError, match=message):
        trainer.train_step(first_batch(trainer))
    assert trainer.step == 0


def test_embeddings_of_another_width_are_refused(folder: Path, tmp_path: Path) -> None:
    config = pretrain_config(folder, tmp_path, model=tiny_config(semantic_dim=31))
    message = "semantic_dim: expected 29, the width of the teacher.s embeddings, got 31"
    with pytest.raises(ValueError, match=message):
        Pretrainer(config, embed_by_hash)


def test_a_missing_image_stops_the_run_and_is_named(folder: Path, tmp_path: Path) -> None:
    data = dataclasses.replace(
        pretrain_config(folder, tmp_path).data, image_folder=str(tmp_path / "elsewhere")
    )
    with pytest.raises(FileNotFoundError, match=r"elsewhere/\d\.png"):
        make_trainer(folder, tmp_path / "run", data=data).run()


@pytest.mark.gpu
def test_a_run_on_cuda_resumes(folder: Path, tmp_path: Path) -> None:
    changes = {"device": "cuda", "precision": "bfloat16"}
    make_trainer(folder, tmp_path, stop_step=2, **changes).run()
    trainer = make_trainer(folder, tmp_path, num_steps=4, **changes)
    trainer.run()
    assert trainer.step == 4
    assert np.isfinite([row["loss"] for row in read_log(tmp_path)]).all()
