"""Lines across regions, as people draw them, and the views that learn from them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.data.photos import write_photos
from tests.tiny import tiny_tap, tiny_tokenizer
from tests.tiny_predictor import tiny_vocabulary
from tests.training.tiny_runs import data_config, embed_by_hash
from tokenize_anything import PointLabel
from tokenize_anything.checkpoints import save_model
from tokenize_anything.companions import Companions
from tokenize_anything.data.prompt_sampling import PromptSamplingConfig
from tokenize_anything.data.view_dataset import ViewBatch, ViewSamplingConfig
from tokenize_anything.training import sketch_prompts, view_training
from tokenize_anything.training.sketch_prompts import LENGTH, MAX_SHIFT, draw_sketches
from tokenize_anything.training.view_config import ViewConfig
from tokenize_anything.training.view_training import ViewTrainer

SIDE, COUNT = 64, 211
BOX = torch.tensor([13.0, 17.0, 43.0, 28.0])  # 30 x 11


def draw(masks: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return draw_sketches(BOX.repeat(len(masks), 1), masks, generator)


def fill_box(count: int = COUNT) -> Tensor:
    masks = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    masks[:, 17:28, 13:43] = True
    return masks


# --- lines -----------------------------------------------------------------------------------


def test_straight_lines_span_the_box_in_even_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sketch_prompts, "MAX_BEND", 0.0)
    clicks, _ = draw(fill_box())
    assert clicks.shape == (COUNT, 9, 2)
    steps = clicks.diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), rtol=1e-4, atol=1e-4)
    spans = 10 * steps[:, 0].abs() / torch.tensor([30.0, 11.0])  # nine clicks divide it in ten
    assert (spans > LENGTH[0] - 1e-3).all() and (spans < LENGTH[1] + 1e-3).all()
    assert spans.min() < 0.4 and spans.max() > 1.1  # all of what is allowed
    ups = float((steps[:, 0, 1] < 0).float().mean())
    assert 0.4 < ups < 0.6 and (steps[:, 0, 0] > 0).all()  # both diagonals
    shifts = (clicks[:, 4] - torch.tensor([27.5, 22.0])).abs() / torch.tensor([30.0, 11.0])
    assert (shifts <= MAX_SHIFT + 1e-3).all() and shifts.max() > 0.9 * MAX_SHIFT


def test_lines_are_bent_to_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    bent, _ = draw(fill_box())
    monkeypatch.setattr(sketch_prompts, "MAX_BEND", 0.0)
    straight, _ = draw(fill_box())
    along = 10 * (straight[:, 1] - straight[:, 0])
    away = bent - straight
    torch.testing.assert_close((away * along[:, None]).sum(-1), torch.zeros(COUNT, 9), atol=1e-2,
                               rtol=0)  # fmt: skip
    share = away.norm(dim=-1) / along.norm(dim=-1)[:, None]
    assert 0.2 < float(share.max()) <= 0.25 + 1e-4
    monkeypatch.undo()
    monkeypatch.setattr(sketch_prompts, "PERIODS", (0.3, 0.5))  # arcs, to one side each
    arcs, _ = draw(fill_box())
    away = arcs - straight
    turn = along[:, None, 0] * away[..., 1] - along[:, None, 1] * away[..., 0]
    lefts, rights = (turn > -1e-2).all(dim=1), (turn < 1e-2).all(dim=1)
    assert (lefts | rights).all()
    assert 0.4 < lefts.float().mean() < 0.6 and 0.4 < rights.float().mean() < 0.6


def test_clicks_lie_in_the_view() -> None:
    box = torch.tensor([[-2.0, 0.0, 64.0, 66.0]]).repeat(COUNT, 1)
    masks = torch.ones(COUNT, SIDE, SIDE, dtype=torch.bool)
    clicks, are_good = draw_sketches(box, masks, torch.Generator().manual_seed(1))
    assert clicks.min() == 0 and clicks.max() == SIDE - 1 and are_good.all()


def test_lines_that_miss_their_region_are_told() -> None:
    masks = fill_box()
    masks[:, :, 24:] = False  # the left third of the box
    clicks, are_good = draw(masks)
    expected = []
    for row, line in enumerate(clicks.round().long().tolist()):
        expected.append(sum(bool(masks[row, y, x]) for x, y in line) >= math.ceil(0.3 * 9))
    assert are_good.tolist() == expected
    assert 0.1 < are_good.float().mean() < 0.9
    assert not draw(torch.zeros_like(masks))[1].any()


def test_lines_depend_on_the_generator_alone() -> None:
    first, again, other = draw(fill_box())[0], draw(fill_box())[0], draw(fill_box(), 1)[0]
    assert torch.equal(first, again) and not torch.equal(first, other)


# --- steps of the training -------------------------------------------------------------------


@pytest.fixture(scope="module")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> dict[float, ViewTrainer]:
    """Runs whose steps all take clicks from the truth, by how often these are sketches."""
    root = tmp_path_factory.mktemp("sketches")
    write_photos(root / "set")
    tensors, metadata = Companions(tiny_vocabulary(), tiny_tokenizer()).pack()
    path = root / "tiny.safetensors"
    save_model(tiny_tap(), path, metadata=metadata, extra_tensors=tensors)
    made = {}
    for probability in (0.0, 0.5, 1.0):
        config = ViewConfig(
            data=data_config(root / "set"), output_folder=str(root / str(probability)),
            init_from=str(path), view_dim=3, view_size=SIDE, precision="float32", num_workers=0,
            views=ViewSamplingConfig(views_per_image=3, box_probability=0.7),
            prompts=PromptSamplingConfig(interactive_probability=0.0, max_corrections=3),
            second_stage_probability=1.0, sketch_probability=probability, view_corrects=True,
        )  # fmt: skip
        made[probability] = ViewTrainer(config, embed_by_hash)
    return made


def clicks_of(trainer: ViewTrainer, step: int) -> tuple[ViewBatch, Tensor, Tensor]:
    """A batch, and the prompts of a step."""
    batch = ViewBatch.join([trainer.dataset[0, index] for index in range(4)])
    trainer.step = step
    generator = torch.Generator().manual_seed(step)
    prompts, shown = trainer._draw_prompts(batch, torch.zeros(len(batch), 3, SIDE, SIDE), generator)
    assert shown is None
    return batch, prompts.coords_xy, prompts.labels


def test_sketches_take_the_place_of_clicks_on_boxes(trainers: dict[float, ViewTrainer]) -> None:
    outside = 0
    for step in range(6):
        batch, coords, labels = clicks_of(trainers[1.0], step)
        is_sketch = batch.is_box & batch.has_mask
        assert is_sketch.any() and coords.shape == (len(batch), 10, 2)
        assert (labels[is_sketch, :9] == PointLabel.FOREGROUND).all()
        assert (labels[is_sketch, 9] == PointLabel.PADDING).all()
        clicked = ~batch.is_box & batch.has_mask  # views around a click keep it
        torch.testing.assert_close(coords[clicked, 0], batch.clicks_xy[clicked])
        assert (labels[clicked, 1:] == PointLabel.PADDING).all()
        for row in torch.nonzero(is_sketch).flatten().tolist():
            x, y = coords[row, :9].round().long().T
            outside += int((~batch.masks[row, y, x]).sum())
    assert outside > 0


def test_lines_that_miss_give_way_to_clicks(
    trainers: dict[float, ViewTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others come as they were drawn."""
    drawn = torch.arange(18.0).reshape(9, 2)

    def draw_known(boxes: Tensor, masks: Tensor, _: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.arange(len(boxes))
        return drawn + rows[:, None, None], rows % 2 == 0

    monkeypatch.setattr(view_training, "draw_sketches", draw_known)
    batch, coords, _ = clicks_of(trainers[1.0], 0)
    rows = torch.nonzero(batch.is_box & batch.has_mask).flatten().tolist()
    assert {row % 2 for row in rows} == {0, 1}
    for row in rows:
        if row % 2 == 0:
            assert torch.equal(coords[row, :9], drawn + row)
        else:
            x, y = coords[row, :9].round().long().T
            assert batch.masks[row, y, x].all()


def test_some_steps_draw_sketches(trainers: dict[float, ViewTrainer]) -> None:
    counts = {clicks_of(trainers[0.5], step)[1].shape[1] for step in range(16)}
    assert 10 in counts and counts - {10}  # 2 to 4 clicks and a pad, or nine


def test_without_sketches_clicks_lie_in_the_region(trainers: dict[float, ViewTrainer]) -> None:
    for step in range(6):
        batch, coords, labels = clicks_of(trainers[0.0], step)
        for row in range(len(batch)):
            inside = coords[row][labels[row] == PointLabel.FOREGROUND].round().long()
            assert batch.masks[row, inside[:, 1], inside[:, 0]].all()


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_bad_probabilities(share: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sketch_probability: expected .*0.*1, got"):
        ViewConfig(data=data_config(tmp_path), output_folder="run", sketch_probability=share)
