"""What the view namer is trained on: batches, their loss, and how views vary."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.photos import write_photos
from tests.training.tiny_naming import BATCH, SIDE, TWO_LOOKS, naming_config, save_outliner
from tests.training.tiny_runs import embed_by_hash
from tokenize_anything.training import naming_training
from tokenize_anything.training.named_views import (
    Looks,
    NamedViews,
    choose_windows,
    draw_looks,
)
from tokenize_anything.training.naming_config import NameSamplingConfig
from tokenize_anything.training.naming_training import (
    NamedBatch,
    NamerTrainer,
    draw_rectangle,
    draw_training_looks,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of photos and of a model."""
    root = tmp_path_factory.mktemp("names")
    write_photos(root / "set")
    save_outliner(root / "tiny.safetensors")
    return root


@pytest.fixture
def make_trainer(folder: Path, tmp_path: Path) -> Any:
    def make(**changes: Any) -> NamerTrainer:
        model = folder / "tiny.safetensors"
        config = naming_config(folder / "set", tmp_path / "run", model, **changes)
        return NamerTrainer(config, embed_by_hash)

    return make


BOTH = pytest.mark.parametrize("sizes", [{}, TWO_LOOKS], ids=["one look", "two looks"])


@BOTH
def test_the_loss_is_the_weighted_sum(make_trainer: Any, sizes: dict[str, int]) -> None:
    """The divergence from what the names say, computed plainly, for each of two names."""
    trainer = make_trainer(**sizes)
    trainer.part.eval()
    drawn = trainer.draw_batch()
    looks, tokens, wide = drawn.looks, drawn.tokens, drawn.wide
    names = trainer.views.names[torch.arange(BATCH) % len(trainer.views)]
    others = names.roll(2)
    namer = trainer.model.view_namer
    assert namer is not None and not torch.equal(names, others)
    losses = []
    for first, second, share in ((names, others, 0.3), (names, names, 1.0), (others, others, 1.0)):
        batch = NamedBatch(looks, tokens, first, second, share, ("0.png",) * BATCH, wide)
        total, parts = trainer.losses(batch)
        assert float(parts["concept"]) == float(total.detach())
        losses.append(float(total.detach()))
    assert losses[0] == pytest.approx(0.3 * losses[1] + 0.7 * losses[2], rel=1e-4)
    with torch.no_grad():
        features = namer.look(normalize_plainly(trainer, looks), looks.boxes, looks.masks)
        assert (wide is None) == (not sizes)
        if wide is not None:
            around = namer.look_around(normalize_plainly(trainer, wide), wide.boxes)
            features = torch.cat([features, around], dim=1)
        embeddings = namer.semantic_head(tokens + namer.token_head(features))
        student = trainer.teacher.vocabulary.log_probs(embeddings).double()
    teacher = trainer.teacher.text_log_probs[names].double()
    expected = (teacher.exp() * (teacher - student)).sum(-1).mean()
    assert losses[1] == pytest.approx(float(expected), rel=1e-3)
    batch = NamedBatch(looks, tokens, names, others, 0.3, ("0.png",) * BATCH, wide)
    _, parts = trainer.losses(batch)
    right = (student.argmax(-1) == teacher.argmax(-1)).double().mean()
    assert float(parts["accuracy"]) == pytest.approx(float(right))


def normalize_plainly(trainer: NamerTrainer, looks: Looks) -> torch.Tensor:
    facts = trainer.model.config.pixels
    assert facts.channel_order == "BGR"
    pixels = looks.images.flip(1).movedim(1, -1) - torch.tensor(facts.mean)
    return (pixels / torch.tensor(facts.std)).movedim(-1, 1)


@BOTH
def test_views_are_mixed_in_half_of_the_steps(make_trainer: Any, sizes: dict[str, int]) -> None:
    """Each view with another of the batch, name, wider view and all, by a share."""
    plain = make_trainer(views=NameSamplingConfig(mix=0.0), **sizes)
    mixing = make_trainer(views=NameSamplingConfig(mix=1.0), **sizes)
    shares = []
    for step in range(24):
        plain.step = mixing.step = step
        base, mixed = plain.draw_batch(), mixing.draw_batch()
        assert base.share == 1.0 and torch.equal(base.names, mixed.names)
        shares.append(mixed.share)
        if mixed.share == 1.0:
            assert torch.equal(base.looks.images, mixed.looks.images)
            continue
        rest = (mixed.looks.images - mixed.share * base.looks.images) / (1 - mixed.share)
        gaps = (rest[:, None] - base.looks.images).abs().mean((2, 3, 4))
        order = gaps.argmin(dim=1)
        assert sorted(order.tolist()) == list(range(BATCH))
        assert torch.equal(mixed.other_names, base.names[order])
        looks = [(base.looks, mixed.looks), *([(base.wide, mixed.wide)] if sizes else [])]
        parts = [
            (getattr(before, name), getattr(after, name))
            for before, after in looks
            for name in ("images", "boxes", "masks")
        ]
        for values, found in [*parts, (base.tokens, mixed.tokens)]:
            expected = mixed.share * values + (1 - mixed.share) * values[order]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    assert 6 <= sum(share < 1 for share in shares) <= 18 and min(shares) < 0.6


@BOTH
def test_rectangles_are_pasted_in_some_of_them(make_trainer: Any, sizes: dict[str, int]) -> None:
    """Each pixel is of one of two views, and the share is that of the pixels; tokens are mixed."""
    plain = make_trainer(views=NameSamplingConfig(mix=0.0), **sizes)
    pasting = make_trainer(views=NameSamplingConfig(mix=1.0, cut=1.0), **sizes)
    shares = []
    for step in range(24):
        plain.step = pasting.step = step
        base, found = plain.draw_batch(), pasting.draw_batch()
        shares.append(found.share)
        if found.share == 1.0:
            assert torch.equal(base.looks.images, found.looks.images)
            continue
        inside = (found.looks.images != base.looks.images).any(dim=1).any(dim=0)
        gaps = (found.looks.images[:, None] - base.looks.images).abs().sum(dim=2)
        order = (gaps * inside).sum(dim=(2, 3)).argmin(dim=1)
        assert sorted(order.tolist()) == list(range(BATCH))
        assert torch.equal(found.other_names, base.names[order])
        tokens = found.share * base.tokens + (1 - found.share) * base.tokens[order]
        torch.testing.assert_close(found.tokens, tokens)
        looks = [(base.looks, found.looks), *([(base.wide, found.wide)] if sizes else [])]
        for before, after in looks:
            is_other = (after.images != before.images).any(dim=1)
            inside = is_other.any(dim=0)
            rows, columns = inside.any(dim=1), inside.any(dim=0)
            assert torch.equal(inside, rows[:, None] & columns)  # one rectangle for all
            assert float(inside.float().mean()) == pytest.approx(1 - found.share, abs=0.06)
            for name in ("images", "boxes", "masks"):
                old, new = getattr(before, name), getattr(after, name)
                assert torch.equal(new, torch.where(inside, old[order], old)), name
    pasted = [share for share in shares if share < 1]
    assert 6 <= len(pasted) <= 18 and min(pasted) < 0.6


def test_blends_and_rectangles_take_turns(make_trainer: Any) -> None:
    """Half of each, where `cut` is a half; only blends have pixels of neither view."""
    plain = make_trainer(views=NameSamplingConfig(mix=0.0))
    mixing = make_trainer(views=NameSamplingConfig(mix=1.0, cut=0.5))
    kinds = []
    for step in range(40):
        plain.step = mixing.step = step
        base, found = plain.draw_batch(), mixing.draw_batch()
        if found.share < 0.95:
            gaps = (found.looks.images[:, None] - base.looks.images).abs().amax(dim=2)
            kinds.append(bool((gaps.amin(dim=1) > 1e-2).any()))
    assert 0.2 < np.mean(kinds) < 0.8 and len(kinds) > 9


def test_rectangles_leave_any_share() -> None:
    rng = np.random.default_rng(7)
    drawn = [draw_rectangle(rng) for _ in range(2000)]
    corners = np.array([rectangle for rectangle, _ in drawn])
    shares = np.array([share for _, share in drawn])
    low, high = corners[:, :2], corners[:, 2:]
    assert (low >= 0).all() and (high <= 1).all() and (low <= high).all()
    np.testing.assert_allclose(shares, 1 - (high - low).prod(axis=1))
    assert np.quantile(shares, 0.05) < 0.5 and np.quantile(shares, 0.95) > 0.95
    middles = (low + high) / 2
    np.testing.assert_allclose(middles.mean(axis=0), 0.5, atol=0.02)


@BOTH
def test_a_batch_depends_on_seed_and_step_alone(make_trainer: Any, sizes: dict[str, int]) -> None:
    first, second, other = (make_trainer(seed=seed, max_images=2, **sizes) for seed in (0, 0, 1))
    for trainer in (first, other):
        trainer.draw_batch()
        trainer.step = 3
    second.step = 3
    batches = [trainer.draw_batch() for trainer in (first, second, other)]
    assert torch.equal(batches[0].looks.images, batches[1].looks.images)
    assert torch.equal(batches[0].names, batches[1].names)
    assert batches[0].photos == batches[1].photos
    assert torch.equal(batches[0].tokens, batches[1].tokens)
    assert not torch.equal(batches[0].looks.images, batches[2].looks.images)
    assert all((batch.wide is not None) == bool(sizes) for batch in batches)
    if sizes:
        wide = [batch.wide.images for batch in batches]
        assert torch.equal(wide[0], wide[1]) and not torch.equal(wide[0], wide[2])


@pytest.mark.parametrize(("view_size", "side"), [(0, SIDE), (64, 64)])
def test_views_have_the_size_of_the_run(make_trainer: Any, view_size: int, side: int) -> None:
    trainer = make_trainer(view_size=view_size)
    assert trainer.draw_batch().looks.images.shape == (BATCH, 3, side, side)
    assert trainer.model.config.namer_size == SIDE


def test_wider_views_have_their_size_whatever_that_of_the_others(make_trainer: Any) -> None:
    trainer = make_trainer(view_size=96, **TWO_LOOKS)
    batch = trainer.draw_batch()
    assert batch.looks.images.shape[-1] == 96 and batch.wide.images.shape[-1] == 64
    assert trainer.views.wide.images.shape[1:] == (96, 96, 3)
    assert trainer.model.config.wide_size == 64


def test_wider_views_are_of_the_same_regions(make_trainer: Any) -> None:
    """Told apart by their tokens, with nothing varied."""
    trainer = make_trainer(views=STILL, **TWO_LOOKS)
    views, batch = trainer.views, trainer.draw_batch()
    rows = (batch.tokens[:, None] - views.tokens).abs().amax(dim=2).argmin(dim=1)
    assert len(rows.unique()) > 2 and torch.equal(views.tokens[rows], batch.tokens)
    windows = choose_windows(views.wide, torch.full((BATCH,), 0.7))
    assert_same_but(batch.wide, draw_looks(views.wide, rows, windows, 64))
    windows = choose_windows(views, torch.full((BATCH,), 0.7))
    assert_same_but(batch.looks, draw_looks(views, rows, windows, SIDE))
    assert not batch.wide.masks.any()


def test_wider_views_vary_on_their_own(make_trainer: Any) -> None:
    """Where one is flipped, the other may not be."""
    views = dataclasses.replace(STILL, flip=0.5)
    trainer, still = (make_trainer(views=each, **TWO_LOOKS) for each in (views, STILL))
    pairs = set()
    for step in range(4):
        trainer.step = still.step = step
        found, plain = trainer.draw_batch(), still.draw_batch()
        is_same = [
            (a.images - b.images).abs().amax((1, 2, 3)) < 0.01
            for a, b in ((found.looks, plain.looks), (found.wide, plain.wide))
        ]
        pairs |= set(zip(*(each.tolist() for each in is_same), strict=True))
    assert len(pairs) == 4


def test_regions_without_a_mask_are_drawn_less(
    make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third of the named regions has a box alone, and is drawn less often by the weight."""
    drawn = []

    def record(views: NamedViews, rows: torch.Tensor, side: int, *_: Any) -> Looks:
        drawn.append(views.has_mask[rows])
        empty = torch.zeros(len(rows), side, side)
        return Looks(torch.zeros(len(rows), 3, side, side), empty, empty)

    monkeypatch.setattr(naming_training, "draw_training_looks", record)
    for weight in (0.5, 0.1):
        trainer = make_trainer(box_only_weight=weight, batch_size=2000)
        trainer.draw_batch()
        with_mask = int(trainer.views.has_mask.sum())
        alone = weight * (len(trainer.views) - with_mask)
        assert with_mask > 0 and len(trainer.views) > with_mask
        found = float((~drawn[-1]).float().mean())
        assert found == pytest.approx(alone / (alone + with_mask), abs=0.05)


def test_rare_names_are_drawn_more(make_trainer: Any) -> None:
    """In proportion to the number of regions with the name, to the power."""
    plain, trainer = (
        make_trainer(views=NameSamplingConfig(rarity_power=power), box_only_weight=0.5)
        for power in (0.0, 0.7)
    )
    names = trainer.views.names.numpy()
    counts = np.array([(names == name).sum() for name in names])
    assert len(set(counts)) > 1
    np.testing.assert_allclose(trainer.weights / plain.weights, counts**-0.7, rtol=1e-5)
    assert set(plain.weights.tolist()) == {0.5, 1.0}


def test_only_named_regions_are_seen(make_trainer: Any) -> None:
    trainer = make_trainer()
    assert set(trainer.teacher.vocabulary.names) == {"ball", "brick", "kite"}
    assert len(trainer.views) == 10  # two of the twelve have a caption alone
    assert trainer.views.tokens.std(dim=0).min() > 0 and trainer.views.masks.any()
    few = make_trainer(max_images=1)
    assert len(set(few.views.photos)) == 1 < len(set(trainer.views.photos))
    assert trainer.views.images.shape[1:] == (64, 64, 3)


# --- how views vary --------------------------------------------------------------------------

STILL = NameSamplingConfig(
    zoom_range=(0.7, 0.7), max_shift=0.0, turn=0.0, stretch=0.0, colour=0.0, flip=0.0, erase=0.0,
    hide_mask=0.0, mix=0.0,
)  # fmt: skip
COUNT = 300


def make_views() -> NamedViews:
    """Crops of noise with boxes in their middle, half of the crop wide."""
    rng, size = np.random.default_rng(2), 48
    boxes = torch.tensor([[12.0, 16.0, 36.0, 32.0]]).repeat(3, 1)
    return NamedViews(
        images=torch.from_numpy(rng.integers(30, 226, (3, size, size, 3), np.uint8)),
        boxes_xyxy=boxes, masks=torch.from_numpy(rng.random((3, 24, 24)) > 0.5),
        tokens=torch.zeros(3, 7),
        has_mask=torch.ones(3) > 0, names=torch.arange(3), photos=("0.png",) * 3,
    )  # fmt: skip


def vary(views: NamedViews | None = None, seed: int = 0, **changes: Any) -> Looks:
    """Many views of three crops; the same draws whatever is changed."""
    generator, rows = torch.Generator().manual_seed(seed), torch.arange(COUNT) % 3
    config = dataclasses.replace(STILL, **changes)
    return draw_training_looks(views or make_views(), rows, SIDE, config, generator)


def assert_same_but(found: Looks, expected: Looks, *changed: str) -> None:
    for name in ("images", "boxes", "masks"):
        a, b = getattr(found, name), getattr(expected, name)
        if name in changed:
            assert (a - b).abs().max() > 1e-3, name
        else:
            torch.testing.assert_close(a, b, rtol=0, atol=1e-3, msg=name)


def test_with_all_switched_off_views_are_plain() -> None:
    views, rows = make_views(), torch.arange(COUNT) % 3
    windows = choose_windows(views, torch.full((COUNT,), 0.7))
    assert_same_but(vary(), draw_looks(views, rows, windows, SIDE))


def test_flips_change_everything_alike() -> None:
    plain, flipped = vary(), vary(flip=1.0)
    mirrored = Looks(*(values.flip(-1) for values in dataclasses.astuple(plain)))
    assert_same_but(flipped, mirrored)
    half = vary(flip=0.5)
    is_flipped = (half.images - mirrored.images).abs().amax((1, 2, 3)) < 0.01
    assert 0.4 < is_flipped.float().mean() < 0.6
    is_plain = (half.images - plain.images).abs().amax((1, 2, 3)) < 0.01
    assert (is_plain != is_flipped).all()


def test_masks_are_hidden_now_and_then() -> None:
    plain = vary()
    assert_same_but(vary(hide_mask=1.0), Looks(plain.images, plain.boxes, 0 * plain.masks))
    some = vary(hide_mask=0.25)
    is_hidden = ~some.masks.flatten(1).any(dim=1)
    assert float(is_hidden.float().mean()) == pytest.approx(0.25, abs=0.07)
    assert torch.equal(some.masks[~is_hidden], plain.masks[~is_hidden])


def test_rectangles_are_blotted_out() -> None:
    """With the mean of the view, and of a tenth to 0.45 of each side, all over the view."""
    plain, erased = vary(), vary(erase=1.0)
    assert_same_but(erased, plain, "images")
    places, sides = torch.zeros(SIDE, SIDE), []
    for before, after in zip(plain.images, erased.images, strict=True):
        spot = ((before - after).abs() > 1e-3).any(dim=0)
        rows, columns = spot.any(dim=1).nonzero()[:, 0], spot.any(dim=0).nonzero()[:, 0]
        top, bottom = int(rows[0]), int(rows[-1]) + 1
        left, right = int(columns[0]), int(columns[-1]) + 1
        inside = after[:, top:bottom, left:right]
        torch.testing.assert_close(inside, torch.full_like(inside, float(before.mean())))
        sides += [bottom - top, right - left]
        places += spot
    assert min(sides) == int(0.1 * SIDE) and int(0.45 * SIDE) - 1 <= max(sides) <= 0.45 * SIDE
    assert (places > 0).float().mean() > 0.9
    some = (vary(erase=0.25).images - plain.images).abs().amax((1, 2, 3)) > 1e-3
    assert float(some.float().mean()) == pytest.approx(0.25, abs=0.07)


def test_colours_change_and_nothing_else() -> None:
    plain, coloured = vary(), vary(colour=0.6)
    assert_same_but(coloured, plain, "images")
    assert coloured.images.min() == 0 and coloured.images.max() == 255
    assert (coloured.images - plain.images).abs().amax((1, 2, 3)).min() > 1


def test_brightness_and_gains_have_their_strength() -> None:
    """On grey, which has neither contrast nor saturation to change."""
    grey = make_views()
    grey = dataclasses.replace(grey, images=torch.full_like(grey.images, 100))
    images = vary(grey, colour=0.3).images
    assert (images.amax((2, 3)) - images.amin((2, 3))).max() < 1e-3
    gains = images[:, :, 0, 0] / 100
    assert float(gains.mean()) == pytest.approx(1, abs=0.05)
    between = (gains[:, 0] - gains[:, 1]) / gains.mean(dim=1)
    assert float(between.std()) == pytest.approx(2**0.5 * 0.3 / 4, rel=0.15)
    wanted = (0.3**2 / 3 + (0.3 / 4) ** 2 / 3) ** 0.5  # of a uniform draw, and of three gains
    assert float(gains.mean(dim=1).std()) == pytest.approx(wanted, rel=0.15)


def test_contrast_and_saturation_have_their_strength() -> None:
    """Halves of two greys for the first, which gains cannot change; one colour for the second."""
    views = make_views()
    greys = torch.full_like(views.images, 40)
    greys[:, :, 24:] = 80
    images = vary(dataclasses.replace(views, images=greys), colour=0.3).images
    gaps = (images[..., -3] - images[..., 2]).mean(2) / images.mean((2, 3))
    contrast = gaps / (gaps.median(dim=0).values)
    assert torch.allclose(contrast[:, :1], contrast, atol=1e-2)
    assert float(contrast.std()) == pytest.approx(0.3 / 3**0.5, rel=0.1)
    assert 0.68 < contrast.min() < 0.73 and 1.27 < contrast.max() < 1.32
    colours = torch.tensor([30, 60, 90], dtype=torch.uint8).expand_as(views.images)
    shown = vary(dataclasses.replace(views, images=colours), colour=0.3).images[:, :, 0, 0]
    spread = (shown[:, 2] - shown[:, 0]) / shown[:, 1]
    # contrast, saturation, and gains of 90, 60 and 30 to 60
    wanted = (0.3**2 / 3 + 0.5**2 / 3 + (0.3 / 4) ** 2 * (1.5**2 + 1 + 0.5**2)) ** 0.5
    assert float(spread.std()) == pytest.approx(wanted, rel=0.2)


def box_of(looks: Looks) -> tuple[torch.Tensor, torch.Tensor]:
    """Width (R,) and middle (R,2) of the drawn boxes, as shares of the side."""
    boxes = looks.boxes
    places = (torch.arange(SIDE) + 0.5) / SIDE
    total = boxes.sum((1, 2))
    middle = [(boxes.sum(axis) * places).sum(1) / total for axis in (1, 2)]
    return boxes.amax(dim=1).sum(dim=1) / SIDE, torch.stack(middle, dim=1)


def test_zoom_and_shift_stay_in_their_ranges() -> None:
    widths, middles = box_of(vary(zoom_range=(0.5, 1.0)))
    assert 0.5 <= widths.min() + 1e-3 < 0.52 and 0.96 < widths.max() < 1 + 1e-3
    logs = (widths.log() - np.log(0.5)) / np.log(2)
    assert float(logs.mean()) == pytest.approx(0.5, abs=0.06)
    torch.testing.assert_close(middles, torch.full_like(middles, 0.5), rtol=0, atol=2e-3)
    widths, middles = box_of(vary(max_shift=0.1))
    torch.testing.assert_close(widths, torch.full_like(widths, 0.7), rtol=0, atol=2e-3)
    shifts = (middles - 0.5).abs()
    assert 0.09 < shifts.max() < 0.101 and float(shifts.mean()) == pytest.approx(0.05, abs=0.01)


def test_views_turn_and_stretch() -> None:
    plain = vary()
    assert_same_but(vary(turn=0.1), plain, "images", "boxes", "masks")
    stretched = vary(stretch=0.08)
    assert_same_but(stretched, plain, "images", "boxes", "masks")
    across, down = ((stretched.boxes.amax(dim=axis) > 0.5).sum(dim=1).float() for axis in (1, 2))
    ratios = (across / down).log()
    assert float(ratios.std()) == pytest.approx(2 * 0.08, rel=0.25)
    assert float(ratios.mean()) == pytest.approx(np.log(1.5), abs=0.08)
