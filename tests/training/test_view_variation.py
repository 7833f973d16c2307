"""How batches of views vary: what is turned stays true, what is pasted covers, what is kept."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.data.photos import write_photos
from tests.training.states import assert_resumes
from tests.training.tiny_clicks import make_batch as make_clicks
from tests.training.tiny_naming import save_outliner
from tests.training.tiny_runs import data_config
from tokenize_anything.data.click_dataset import ClickBatch
from tokenize_anything.data.view_dataset import ViewBatch, ViewSamplingConfig
from tokenize_anything.training import view_variation
from tokenize_anything.training.click_config import ClickConfig
from tokenize_anything.training.click_training import ClickTrainer
from tokenize_anything.training.view_config import ViewConfig
from tokenize_anything.training.view_training import ViewTrainer
from tokenize_anything.training.view_variation import (
    VariationConfig,
    draw_warps,
    vary_clicks,
    vary_pixels,
    vary_views,
    warp_views,
)

SIDE = 64
QUARTER = torch.tensor([[0.0, -1.0], [1.0, 0.0]])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_views(count: int = 7) -> ViewBatch:
    """Bricks of a colour of their own on noise; the last has no mask, the others click on them."""
    masks = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    for row in range(count - 1):
        masks[row, 23 : 31 + row, 17:44] = True
    images = torch.randint(0, 50, (count, SIDE, SIDE, 3), generator=seeded(3), dtype=torch.uint8)
    colours = torch.arange(count, dtype=torch.uint8)[:, None, None, None] + 200
    images = torch.where(masks[..., None], colours, images)
    boxes = torch.tensor([[17.0, 23.0, 44.0, 31.0 + row] for row in range(count)])
    return ViewBatch(
        images=images,
        boxes_xyxy=boxes,
        clicks_xy=torch.tensor([[19.5, 25.5]]).repeat(count, 1),
        is_box=torch.arange(count) % 2 == 0,
        masks=masks,
        has_mask=torch.arange(count) < count - 1,
        areas=masks.sum((1, 2)) + 5.0,
        text_index=torch.arange(count),
        names=("a.png",) * count,
    )


# --- what turns --------------------------------------------------------------------------------


def test_a_quarter_turn_is_that_of_the_array() -> None:
    views = torch.rand(2, SIDE, SIDE, 4, generator=seeded())
    turned = warp_views(views, QUARTER.expand(2, 2, 2))
    torch.testing.assert_close(turned, torch.rot90(views, 1, (1, 2)), atol=1e-4, rtol=0)


def test_warps_keep_areas_and_have_the_deviations_asked_for() -> None:
    config = VariationConfig(turn=0.2, stretch=0.1)
    warps = draw_warps(4001, config, seeded())
    torch.testing.assert_close(torch.linalg.det(warps), torch.ones(4001))
    angles = torch.atan2(warps[:, 1, 0], warps[:, 0, 0])
    assert float(angles.std()) == pytest.approx(0.2, rel=0.05)
    widths = warps[:, :, 0].norm(dim=1).log()
    assert float(widths.std()) == pytest.approx(0.1, rel=0.05)
    still = draw_warps(3, VariationConfig(), seeded())
    assert torch.equal(still, torch.eye(2).expand(3, 2, 2))


def test_clicks_boxes_and_areas_follow_what_turns() -> None:
    batch = make_views()
    varied = vary_views(batch, VariationConfig(turn=0.3, stretch=0.2), seeded(5))
    assert varied.images.dtype == torch.float32
    for row in range(len(batch)):
        if not batch.has_mask[row]:
            assert torch.equal(varied.images[row], batch.images[row].float())
            assert torch.equal(varied.boxes_xyxy[row], batch.boxes_xyxy[row])
            continue
        mask = varied.masks[row].numpy()
        assert not np.array_equal(mask, batch.masks[row].numpy())
        inside = varied.images[row].numpy()[mask]  # the colour moved with the mask
        assert np.median(inside) == 200 + row and (inside > 100).mean() > 0.9
        ys, xs = np.nonzero(mask)
        tight = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert varied.boxes_xyxy[row].tolist() == tight
        lost = int(batch.masks[row].sum()) - mask.sum()
        assert float(varied.areas[row]) == float(batch.areas[row]) - lost
        x, y = varied.clicks_xy[row].tolist()
        assert mask[int(y), int(x)]
        corner = np.array([17, 23.0]) + 2.5 - 32  # the click is in the same place of the brick
        assert np.hypot(x - 32, y - 32) == pytest.approx(np.hypot(*corner), rel=0.35)
    assert torch.equal(batch.images, make_views().images)  # nothing is changed in place


def test_a_known_turn_moves_a_click_to_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_variation, "draw_warps", lambda n, *_: QUARTER.expand(n, 2, 2))
    batch = make_views()
    varied = vary_views(batch, VariationConfig(turn=1.0), seeded())
    for row in range(len(batch) - 1):
        mark = torch.zeros(SIDE, SIDE)
        mark[25, 19] = 1
        y, x = torch.nonzero(torch.rot90(mark, 1))[0].tolist()
        torch.testing.assert_close(varied.clicks_xy[row], torch.tensor([x + 0.5, y + 0.5]))
        assert torch.equal(varied.masks[row], torch.rot90(batch.masks[row], 1))


def test_windows_around_a_click_turn_as_one() -> None:
    """What a window shows is still the middle of the one before."""
    ramp = (torch.arange(SIDE) + 0.5 - SIDE / 2) / (SIDE / 2)
    windows = torch.stack([ramp * 0.5**place for place in range(5)])
    planes = 128 + 60 * (windows[:, :, None] + 0.5 * windows[:, None, :])  # of y and of x
    batch, _ = make_clicks()
    images = planes[None, ..., None].expand(3, 5, SIDE, SIDE, 3).clone()
    batch = dataclasses.replace(batch, images=images)
    varied = vary_clicks(batch, VariationConfig(turn=0.2, stretch=0.1), seeded(1))
    middle = slice(SIDE // 4, SIDE - SIDE // 4)
    for row in range(3):
        assert not torch.allclose(varied.images[row], images[row], atol=0.5)
        for place in range(4):
            larger = varied.images[row, place, middle, middle]
            smaller = varied.images[row, place + 1].movedim(-1, 0)[None]
            halved = F.avg_pool2d(smaller, 2)[0].movedim(0, -1)
            inner = slice(6, -6)  # beyond its border a view is mirrored
            torch.testing.assert_close(larger[inner, inner], halved[inner, inner], atol=0.5, rtol=0)
    change = (varied.masks.float() - batch.masks.float()).sum((2, 3)) / 255
    torch.testing.assert_close(varied.areas, (batch.areas + change).clamp(min=0))
    half = SIDE // 2
    assert varied.masks.dtype == torch.uint8 and (varied.masks[:, :, half, half] > 127).all()


def test_by_default_nothing_varies_or_is_drawn() -> None:
    generator = seeded()
    before = generator.get_state()
    for batch, vary in ((make_views(), vary_views), (make_clicks()[0], vary_clicks)):
        varied: Any = vary(batch, VariationConfig(), generator)
        for field in dataclasses.fields(batch):
            value, known = getattr(varied, field.name), getattr(batch, field.name)
            assert torch.equal(value, known) if isinstance(known, torch.Tensor) else value == known
    assert torch.equal(generator.get_state(), before)


# --- what is pasted ----------------------------------------------------------------------------


def test_what_is_pasted_covers_and_leaves_half() -> None:
    batch, covered = make_views(), 0
    for seed in range(12):
        varied = vary_views(batch, VariationConfig(paste=1.0), seeded(seed))
        for row in range(len(batch) - 1):
            before, after = batch.masks[row], varied.masks[row]
            assert not (after & ~before).any() and after.sum() >= 0.5 * before.sum()
            values = varied.images[row, ..., 0]
            assert (values[after] == 200 + row).all()  # what is left of the mask shows the region
            hidden = before & ~after
            # a coat of another row's colour, blended where it ends between pixels
            assert (values[hidden] != 200 + row).float().mean() > 0.9 or not hidden.any()
            covered += int(hidden.any())
            assert varied.areas[row] == batch.areas[row] - hidden.sum()
            if not batch.is_box[row]:
                assert after[25, 19] and torch.equal(varied.clicks_xy[row], batch.clicks_xy[row])
    assert covered > 12
    last = vary_views(batch, VariationConfig(paste=1.0), seeded())
    assert torch.equal(last.images[-1], batch.images[-1].float())  # nothing before a mere box


def test_nothing_is_pasted_without_another_row_or_a_coin() -> None:
    batch = make_views()
    alone = ViewBatch(**{
        field.name: getattr(batch, field.name)[:1] for field in dataclasses.fields(batch)
    })  # fmt: skip
    for some, share in ((alone, 1.0), (batch, 0.0)):
        varied = vary_views(some, VariationConfig(paste=share, grey=1e-9), seeded())
        assert torch.equal(varied.masks, some.masks)
        assert torch.equal(varied.images, some.images.float())


# --- pixels ------------------------------------------------------------------------------------


def test_each_row_varies_for_itself_and_its_windows_alike() -> None:
    images = torch.randint(0, 256, (41, 5, SIDE, SIDE, 3), generator=seeded(), dtype=torch.uint8)
    grey = vary_pixels(images, VariationConfig(grey=0.5), seeded())
    is_grey = (grey == grey.mean(-1, keepdim=True)).flatten(2).all(-1)
    assert torch.equal(is_grey, is_grey[:, :1].expand_as(is_grey))
    assert 10 < int(is_grey[:, 0].sum()) < 31
    assert torch.equal(grey[~is_grey], images[~is_grey].float())
    blurred = vary_pixels(images, VariationConfig(blur=0.5), seeded(2))
    rough = blurred.diff(dim=3).abs().mean((2, 3, 4)) / images.float().diff(dim=3).abs().mean()
    is_blurred = (rough < 0.9).any(dim=1)
    assert 10 < int(is_blurred.sum()) < 31 and (rough[is_blurred] < 0.9).all()
    assert torch.equal(blurred[~is_blurred], images[~is_blurred].float())
    noisy = vary_pixels(images, VariationConfig(noise=0.1), seeded())
    assert noisy.min() >= 0 and noisy.max() <= 255
    inner = (images > 110) & (images < 145)
    errors = (noisy - images.float())[inner]
    assert abs(float(errors.mean())) < 0.2
    # the deviation is uniform up to 25.5, so its mean square is a third of that squared
    assert float(errors.std()) == pytest.approx(25.5 / math.sqrt(3), rel=0.15)


# --- runs --------------------------------------------------------------------------------------

ALL = VariationConfig(turn=0.2, stretch=0.1, paste=0.5, blur=0.5, grey=0.2, noise=0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of photos and of a model with a view segmenter."""
    root = tmp_path_factory.mktemp("varied")
    write_photos(root / "set")
    save_outliner(root / "tiny.safetensors")
    return root


def run_config(kind: Any, folder: Path, out: Path, **changes: Any) -> Any:
    values: dict[str, Any] = dict(
        data=data_config(folder / "set"), output_folder=str(out),
        init_from=str(folder / "tiny.safetensors"), batch_size=2, num_steps=6,
        second_stage_probability=0.7, precision="float32", num_workers=0, save_every=100,
        log_every=1, variation=ALL,
    )  # fmt: skip
    return kind(**(values | changes))


@pytest.mark.parametrize("kind", [ViewConfig, ClickConfig])
def test_varied_runs_resume(kind: Any, folder: Path, tmp_path: Path) -> None:
    more: dict[str, Any] = {}
    if kind is ViewConfig:
        more = {"view_dim": 3, "view_size": SIDE, "views": ViewSamplingConfig(views_per_image=2)}
    assert_resumes(
        ViewTrainer if kind is ViewConfig else ClickTrainer,
        run_config(kind, folder, tmp_path / "whole", **more),
        run_config(kind, folder, tmp_path / "parts", save_every=3, **more),
    )


def test_what_is_learnt_is_what_varied(folder: Path, tmp_path: Path) -> None:
    """The losses of a varied batch are those of a batch that the trainer finds so."""
    config = run_config(ClickConfig, folder, tmp_path / "a", second_stage_probability=0.0)
    trainer = ClickTrainer(config)
    batch = ClickBatch.join([trainer.dataset[0, index] for index in range(2)])
    trainer.part.eval()
    generator = torch.Generator().manual_seed(trainer.step_seed())
    expected = vary_clicks(batch, ALL, generator)
    varied, _ = trainer.losses(batch)
    plain = dataclasses.replace(
        config, variation=VariationConfig(), output_folder=str(tmp_path / "b")
    )
    other = ClickTrainer(plain)
    other.part.load_state_dict(trainer.part.state_dict())
    other.part.eval()
    assert torch.equal(other.losses(expected)[0], varied)
    assert not torch.equal(other.losses(batch)[0], varied)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"paste": 1.5}, r"paste: expected 0 to 1, got 1.5"),
        ({"grey": -0.1}, r"grey: expected 0 to 1, got -0.1"),
        ({"blur": 2}, r"blur: expected 0 to 1, got 2"),
        ({"turn": -1}, r"turn: expected at least 0, got -1"),
        ({"stretch": -0.2}, r"stretch: expected at least 0, got -0.2"),
        ({"noise": -3}, r"noise: expected at least 0, got -3"),
    ],
)
def test_bad_variations_are_named(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VariationConfig(**changes)
