"""Crops of named regions: what is cut out, how views of them are drawn, their outlines."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.tiny import tiny_config, tiny_tap
from tokenize_anything import TAPPredictor
from tokenize_anything.data.samples import ImageRecord, RegionAnnotation, TextTable
from tokenize_anything.geometry import encode_rle
from tokenize_anything.modeling import TAP, ViewOutputs
from tokenize_anything.modeling.view_segmenter import draw_prompt_maps
from tokenize_anything.training import named_views
from tokenize_anything.training.named_views import (
    CROP_ZOOM,
    Looks,
    NamedViews,
    choose_windows,
    crop_regions,
    draw_looks,
    named_tokens,
    outline_crops,
)

HEIGHT, WIDTH, PADDING = 61, 83, (123, 116, 103)
TEXTS = TextTable(("a ball in a corner", "kite", "brick", "ball"), np.array([1, 3, 1, 2]))
BOXES = ((30.0, 20.0, 50.0, 38.0), (0.0, 0.0, 20.0, 16.0), (70.5, 40.0, 83.0, 61.0))
NO_CAST = torch.autocast("cpu", enabled=False)


@pytest.fixture(scope="module")
def model() -> TAP:
    return tiny_tap(tiny_config(view_dim=3, view_size=96))


@pytest.fixture
def records(tmp_path: Path) -> list[ImageRecord]:
    """Two photos of noise with regions; one more that has none with a name."""
    found = []
    masks = [np.zeros((HEIGHT, WIDTH), bool) for _ in BOXES]
    masks[0][20:38, 30:50] = True
    rle = encode_rle(masks[0])
    regions = (
        (
            RegionAnnotation(BOXES[0], rle, text_index=3),
            RegionAnnotation((0.0, 0.0, WIDTH, HEIGHT), text_index=1, is_whole_image=True),
            RegionAnnotation(BOXES[1], text_index=-1),
        ),
        (RegionAnnotation(BOXES[0], rle, text_index=0), RegionAnnotation(BOXES[0], rle)),
        (
            RegionAnnotation(BOXES[1], text_index=1),
            RegionAnnotation(BOXES[2], rle, text_index=2),
        ),
    )
    for index, some in enumerate(regions):
        path = tmp_path / f"{index}.png"
        cv2.imwrite(str(path), noise(HEIGHT, WIDTH, seed=index)[..., ::-1])
        found.append(ImageRecord(path, HEIGHT, WIDTH, some))
    return found


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


# --- crops -----------------------------------------------------------------------------------


def test_crops_hold_the_named_regions(records: list[ImageRecord], model: TAP) -> None:
    """Whole images and regions of no concept are left out."""
    views = crop_regions(records, TEXTS, ["ball", "brick", "kite"], model, 32)
    assert len(views) == 3
    assert views.names.tolist() == [3, 1, 2] and views.names.dtype == torch.int64
    assert views.photos == ("0.png", "2.png", "2.png")
    assert views.has_mask.tolist() == [True, False, True]
    assert views.images.shape == (3, 32, 32, 3) and views.images.dtype == torch.uint8
    assert views.masks.shape == (3, 16, 16) and not views.masks.any()
    middles = (views.boxes_xyxy[:, :2] + views.boxes_xyxy[:, 2:]) / 2
    torch.testing.assert_close(middles, torch.full((3, 2), 16.0))
    sides = (views.boxes_xyxy[:, 2:] - views.boxes_xyxy[:, :2]).amax(dim=1)
    torch.testing.assert_close(sides, torch.full((3,), 32 * CROP_ZOOM))
    few = crop_regions(records, TEXTS, ["kite"], model, 32)
    assert few.names.tolist() == [1] and torch.equal(few.images[0], views.images[1])


def test_crops_show_the_photo_and_padding_around_it(records: list[ImageRecord], model: TAP) -> None:
    """Boxes 20 wide in crops of 40: pixels as they are."""
    views = crop_regions(records, TEXTS, ["ball", "kite"], model, 40)
    for row, (seed, left, top) in enumerate(((0, 20, 9), (2, -10, -12))):
        canvas = np.empty((HEIGHT + 80, WIDTH + 80, 3), np.uint8)
        canvas[:] = PADDING
        canvas[40 : 40 + HEIGHT, 40 : 40 + WIDTH] = noise(HEIGHT, WIDTH, seed=seed)
        expected = canvas[top + 40 : top + 80, left + 40 : left + 80]
        np.testing.assert_array_equal(views.images[row].numpy(), expected)
        wanted = np.array(BOXES[row]) - [left, top, left, top]
        np.testing.assert_allclose(views.boxes_xyxy[row], wanted, atol=1e-4)


def test_regions_without_a_concept_are_no_data(records: list[ImageRecord], model: TAP) -> None:
    message = "data: expected regions with the name of a concept, got none"
    for some, names in ((records, ["cup"]), (records[1:2], ["ball", "kite"]), ([], ["ball"])):
        with pytest.raises(ValueError, match=message):
            crop_regions(some, TEXTS, names, model, 32)


def test_photos_of_another_size_are_refused(records: list[ImageRecord], model: TAP) -> None:
    wrong = dataclasses.replace(records[0], width=WIDTH + 1)
    with pytest.raises(ValueError, match=r"0\.png is \(61, 83\), its annotation says"):
        crop_regions([wrong], TEXTS, ["ball"], model, 32)
    missing = dataclasses.replace(records[0], path=records[0].path.with_name("none.png"))
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        crop_regions([missing], TEXTS, ["ball"], model, 32)


def test_tokens_are_those_of_the_boxes_on_the_whole_photo(records: list[ImageRecord]) -> None:
    """In the order of the crops, with nothing of the networks that look closely."""
    model = tiny_tap(tiny_config(zoom=0.5, view_dim=3, view_size=64, namer_size=32))
    names = ["ball", "brick", "kite"]
    tokens = named_tokens(model, records, TEXTS, names)
    expected = [
        TAPPredictor(model)
        .predict_mask_concept_caption(noise(HEIGHT, WIDTH, seed=seed), boxes=[box], zoom=0.0)
        .semantic_tokens
        for seed, box in ((0, BOXES[0]), (2, BOXES[1]), (2, BOXES[2]))
    ]
    assert tokens.dtype == torch.float32
    np.testing.assert_allclose(tokens.numpy(), np.concatenate(expected), atol=1e-4)
    assert np.abs(expected[1] - expected[2]).max() > 1e-2
    crops = crop_regions(records, TEXTS, names, model, 32)
    assert crops.tokens.shape == tokens.shape and not crops.tokens.any()


# --- views of crops --------------------------------------------------------------------------

SIZE, COUNT = 48, 5


def make_views(count: int = COUNT) -> NamedViews:
    """Crops of noise, with boxes in their middle, and masks of noise."""
    rng = np.random.default_rng(5)
    halves = rng.uniform([5, 12], [11, 12.01], (count, 2)).astype(np.float32)
    boxes = np.concatenate([SIZE / 2 - halves, SIZE / 2 + halves], axis=1)
    return NamedViews(
        images=torch.from_numpy(noise(count, SIZE, SIZE)),
        boxes_xyxy=torch.from_numpy(boxes),
        masks=torch.from_numpy(rng.random((count, SIZE // 2, SIZE // 2)) > 0.5),
        tokens=torch.from_numpy(rng.normal(size=(count, 7)).astype(np.float32)),
        has_mask=torch.ones(count, dtype=torch.bool),
        names=torch.arange(count),
        photos=tuple(f"{row}.png" for row in range(count)),
    )


def test_windows_lie_in_the_crop() -> None:
    generator = torch.Generator().manual_seed(0)
    zoom = 0.4 + 0.6 * torch.rand(300, generator=generator)
    shifts = torch.rand(300, 2, generator=generator) - 0.5
    windows = choose_windows(make_views(), zoom, shifts)
    corners, sides = windows[:, :2], windows[:, 2:]
    assert (corners >= 0).all() and (corners + sides <= SIZE + 1e-4).all()
    is_large = zoom < CROP_ZOOM
    assert (sides[is_large] == SIZE).all() and is_large.any()
    torch.testing.assert_close(sides[~is_large, 0], SIZE / 2 / zoom[~is_large])
    free = (SIZE - sides) / 2
    wanted = (free + shifts * sides).clamp(min=torch.zeros(()), max=2 * free)
    torch.testing.assert_close(corners, wanted)
    centred = choose_windows(make_views(), zoom)
    torch.testing.assert_close(centred[:, :2], free.expand(-1, 2))
    torch.testing.assert_close(centred[:, 2:], sides)


def sample_plainly(image: np.ndarray, x: np.ndarray, y: np.ndarray, *, repeat: bool) -> np.ndarray:
    """Values of (h,w,...) between pixels; pixel n reaches from n to n + 1. Beyond: ends, or 0."""
    image, x, y = image.astype(np.float64), x - 0.5, y - 0.5
    if not repeat:
        image = np.pad(image, [(1, 1), (1, 1)] + [(0, 0)] * (image.ndim - 2))
        x, y = x + 1, y + 1
    height, width = image.shape[:2]
    x, y = x.clip(0, width - 1), y.clip(0, height - 1)
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    right, below = x - x0, y - y0
    if image.ndim == 3:
        right, below = right[..., None], below[..., None]
    above = image[y0, x0] * (1 - right) + image[y0, x1] * right
    return above * (1 - below) + (image[y1, x0] * (1 - right) + image[y1, x1] * right) * below


def assert_looks(looks: Looks, row: int, views: NamedViews, x: np.ndarray, y: np.ndarray) -> None:
    """Images and masks are those of the places (v,v) in the crop."""
    image = sample_plainly(views.images[row].numpy(), x, y, repeat=True)
    np.testing.assert_allclose(looks.images[row].movedim(0, -1).numpy(), image, atol=2e-2)
    mask = sample_plainly(views.masks[row].numpy(), x / 2, y / 2, repeat=False)
    np.testing.assert_allclose(looks.masks[row].numpy(), mask, atol=1e-3)


def test_the_whole_crop_is_shown_as_it_is() -> None:
    views, rows = make_views(), torch.tensor([3, 0])
    looks = draw_looks(views, rows, torch.tensor([[0.0, 0.0, SIZE]] * 2), SIZE)
    expected = views.images[rows].movedim(-1, 1).float()
    torch.testing.assert_close(looks.images, expected, rtol=0, atol=1e-3)
    for place, row in enumerate(rows.tolist()):
        mask = cv2.resize(views.masks[row].numpy().astype(np.float32), (SIZE, SIZE))
        np.testing.assert_allclose(looks.masks[place, 1:-1, 1:-1], mask[1:-1, 1:-1], atol=1e-4)
        x0, y0, x1, y1 = views.boxes_xyxy[row].tolist()
        wide = [max(min(x + 1, x1) - max(x, x0), 0) for x in range(SIZE)]
        high = [max(min(y + 1, y1) - max(y, y0), 0) for y in range(SIZE)]
        np.testing.assert_allclose(looks.boxes[place], np.outer(high, wide), atol=1e-4)


@pytest.mark.parametrize("stretch", [None, 1.7, 0.6])
@pytest.mark.parametrize("is_flipped", [False, True])
def test_windows_are_shown_flipped_and_stretched(stretch: float | None, is_flipped: bool) -> None:
    """Along each axis the place is the middle and so many steps to the side."""
    views, side = make_views(), 32
    windows = torch.tensor([[7.0, 3.5, 29.0], [0.0, 19.0, 29.0], [5.0, 4.0, 41.5]])
    warps: dict[str, torch.Tensor] = {}
    if stretch is not None:
        warps["stretch"] = torch.tensor([stretch, 1.0, stretch])
    if is_flipped:
        warps["flip"] = torch.tensor([-1.0, -1.0, 1.0])
    rows = torch.tensor([4, 1, 1])
    looks = draw_looks(views, rows, windows, side, warps)
    steps = (np.arange(side) + 0.5) / side - 0.5
    for place, (left, top, width) in enumerate(windows.tolist()):
        ratio = 1.0 if stretch is None or place == 1 else stretch
        sign = -1 if is_flipped and place < 2 else 1
        x, y = np.meshgrid(
            left + width / 2 + sign * steps * width * ratio,
            top + width / 2 + steps * width / ratio,
        )
        one = Looks(*(values[place : place + 1] for values in dataclasses.astuple(looks)))
        row = int(rows[place])
        alone = dataclasses.replace(
            views, images=views.images[row : row + 1], masks=views.masks[row : row + 1]
        )
        assert_looks(one, 0, alone, x, y)
    assert (looks.boxes.sum((1, 2)) > 0).all()


@pytest.mark.parametrize("turns", [1, -1, 2])
def test_quarter_turns(turns: int) -> None:
    """Anticlockwise, everything alike."""
    views, rows = make_views(), torch.arange(3)
    windows = torch.tensor([[4.0, 8.0, 40.0], [0.0, 0.0, 48.0], [9.0, 2.0, 31.0]])
    plain = draw_looks(views, rows, windows, 32)
    turned = draw_looks(views, rows, windows, 32, {"turn": torch.full((3,), turns * np.pi / 2)})
    for name in ("images", "boxes", "masks"):
        expected = getattr(plain, name).rot90(turns, (-2, -1))
        torch.testing.assert_close(getattr(turned, name), expected, rtol=0, atol=2e-2, msg=name)


def test_all_warps_at_once() -> None:
    """What is stretched and flipped is turned after that, about the middle of the window."""
    views, side, row = make_views(), 32, 2
    turn, stretch, (left, top, width) = 0.37, 1.3, (9.0, 6.5, 31.0)
    warps = {"flip": -1.0, "turn": turn, "stretch": stretch}
    looks = draw_looks(
        views, torch.tensor([row]), torch.tensor([[left, top, width]]), side,
        {name: torch.tensor([value]) for name, value in warps.items()},
    )  # fmt: skip
    steps = width * ((np.arange(side) + 0.5) / side - 0.5)
    across, down = np.meshgrid(-steps * stretch, steps / stretch)
    x = left + width / 2 + np.cos(turn) * across - np.sin(turn) * down
    y = top + width / 2 + np.sin(turn) * across + np.cos(turn) * down
    alone = dataclasses.replace(views, images=views.images[[row]], masks=views.masks[[row]])
    assert_looks(looks, 0, alone, x, y)
    x0, y0, x1, y1 = views.boxes_xyxy[row].tolist()
    inside = (x > x0) & (x < x1) & (y > y0) & (y < y1)
    assert ((looks.boxes[0] > 0.5).numpy() != inside).mean() < 0.01


def bright_boxes(count: int, size: int = 64) -> NamedViews:
    """White boxes on black, with masks of the same extent."""
    rng = np.random.default_rng(3)
    images, masks = np.zeros((count, size, size, 3), np.uint8), np.zeros((count, size, size), bool)
    boxes = np.empty((count, 4), np.float32)
    for row in range(count):
        half = rng.permutation([size // 4, int(rng.integers(size // 8, size // 4))])
        low, high = size // 2 - half, size // 2 + half
        images[row, low[1] : high[1], low[0] : high[0]] = 255
        masks[row, low[1] : high[1], low[0] : high[0]] = True
        boxes[row] = [*low, *high]
    return NamedViews(
        images=torch.from_numpy(images), boxes_xyxy=torch.from_numpy(boxes),
        masks=torch.from_numpy(masks[:, ::2, ::2].copy()), tokens=torch.zeros(count, 7),
        has_mask=torch.ones(count) > 0,
        names=torch.zeros(count, dtype=torch.long), photos=("0.png",) * count,
    )  # fmt: skip


def test_boxes_and_masks_move_with_the_pixels() -> None:
    """Under all warps at once, up to what is lost at the borders."""
    count, generator = 23, torch.Generator().manual_seed(1)
    views = bright_boxes(count)
    zoom = 0.5 + 0.4 * torch.rand(count, generator=generator)
    windows = choose_windows(views, zoom, 0.3 * torch.rand(count, 2, generator=generator))
    warps: Mapping[str, torch.Tensor] = {
        "flip": torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0),
        "turn": 0.5 * torch.randn(count, generator=generator),
        "stretch": (0.2 * torch.randn(count, generator=generator)).exp(),
    }
    looks = draw_looks(views, torch.arange(count), windows, 96, warps)
    white = looks.images.mean(1) > 127
    for found in (looks.boxes > 0.5, looks.masks > 0.5):
        assert ((found != white).float().mean((1, 2)) < 0.04).all()
    assert 0.1 < white.float().mean() < 0.7
    assert looks.boxes.min() == 0 and looks.boxes.max() == 1


# --- outlines --------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["prompt", "pixels"])
@pytest.mark.parametrize("is_training", [False, True])
def test_outlines_are_put_where_they_belong(
    model: TAP, source: str, is_training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segmenter that gives back the drawn box, or what is bright; seven crops, three at once."""
    segmenter, modes, views = model.view_segmenter, [], bright_boxes(7)
    assert segmenter is not None
    segmenter.train(is_training)

    def repeat(pixels: torch.Tensor, coords: torch.Tensor, labels: torch.Tensor) -> ViewOutputs:
        assert pixels.shape[1:] == (3, 96, 96) and labels.tolist() == [[2, 3]] * len(pixels)
        modes.append(segmenter.training)
        shown = draw_prompt_maps(coords, labels, 96)[:, 0] if source == "prompt" else pixels.mean(1)
        logits = 8 * F.avg_pool2d(shown[:, None], 2)[:, 0] - 4
        return ViewOutputs(logits, torch.zeros(len(pixels)), torch.zeros(len(pixels), 29))

    monkeypatch.setattr(segmenter, "forward", repeat)
    monkeypatch.setattr(named_views, "OUTLINED_AT_ONCE", 3)
    given = dataclasses.replace(views, masks=torch.zeros_like(views.masks))
    found = outline_crops(model, given, NO_CAST)
    assert modes == [False] * 3 and segmenter.training == is_training
    assert not given.masks.any() and found.masks.dtype == torch.bool
    for mask, expected in zip(found.masks.numpy(), views.masks.numpy(), strict=True):
        kernel = np.ones((3, 3), np.uint8)
        inner, outer = (way(expected.astype(np.uint8), kernel) for way in (cv2.erode, cv2.dilate))
        assert mask[inner == 1].all() and not mask[outer == 0].any()
        assert (mask != expected).mean() < 0.05
    for name in ("images", "boxes_xyxy", "tokens", "has_mask", "names"):
        assert torch.equal(getattr(found, name), getattr(views, name))
    segmenter.eval()


def test_outlines_leave_the_segmenter_as_it_is() -> None:
    """In whatever precision."""
    model = tiny_tap(tiny_config(view_dim=3, view_size=96))
    segmenter = model.view_segmenter
    assert segmenter is not None
    with torch.no_grad():
        segmenter.mask_head.bias.fill_(0.6)
    before = {name: value.clone() for name, value in segmenter.state_dict().items()}
    segmenter.train()
    full, half = (
        outline_crops(model, bright_boxes(3), cast).masks
        for cast in (NO_CAST, torch.autocast("cpu", torch.bfloat16))
    )
    assert 0.05 < full.float().mean() < 0.95 and (full != half).float().mean() < 0.05
    for name, value in segmenter.state_dict().items():
        assert torch.equal(value, before[name]), name
