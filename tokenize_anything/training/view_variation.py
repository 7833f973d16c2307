"""How views of single regions vary beyond colour, so that networks for views learn more from few.

A batch is varied as a whole, on the device it is on. Covering regions with others is the simple
copy-paste of Ghiasi et al. 2021.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenize_anything.data.click_dataset import ClickBatch
from tokenize_anything.data.view_dataset import ViewBatch
from tokenize_anything.geometry import masks_to_boxes
from tokenize_anything.training.config import require_fractions

LEAST_LEFT = 0.5  # of what a view shows of its region; a row that would keep less stays as it is
MAX_SHIFT = 0.5  # of what is pasted, of the view's side
COARSEST = 0.35  # side of a blurred view, of its side


@dataclass(frozen=True, kw_only=True)
class VariationConfig:
    """How views vary; nothing does by default.

    turn, stretch: standard deviations of the angle, radians, and of the logarithm of the ratio of
        the sides, of views whose region has a mask; beyond its border a view is mirrored.
    paste: probability that another region of the batch covers a part of a view of a box or click;
        not for windows around clicks.
    blur: probability of a view's pixels being those of a smaller one.
    grey: probability of a view without colours.
    noise: of each value, the highest standard deviation, of 255.
    """

    turn: float = 0.0
    stretch: float = 0.0
    paste: float = 0.0
    blur: float = 0.0
    grey: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        require_fractions(self, ("paste", "blur", "grey"))
        for name in ("turn", "stretch", "noise"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")


def vary_views(batch: ViewBatch, config: VariationConfig, generator: torch.Generator) -> ViewBatch:
    """Views of boxes and clicks, varied; their images are float32 then."""
    batch = _paste_views(batch, config, generator)
    if config.turn or config.stretch:
        warps = draw_warps(len(batch), config, generator)
        shown = torch.cat([batch.images.float(), batch.masks[..., None].float()], dim=-1)
        moved = warp_views(shown, warps)
        middle = batch.masks.shape[-1] / 2
        offsets = (batch.clicks_xy - middle)[..., None]
        clicks = middle + (torch.linalg.inv(warps) @ offsets)[..., 0]
        batch = _accept(batch, moved[..., :3], moved[..., 3] > 0.5, clicks)
    images = vary_pixels(batch.images.unsqueeze(1), config, generator).squeeze(1)
    return dataclasses.replace(batch, images=images)


def vary_clicks(
    batch: ClickBatch, config: VariationConfig, generator: torch.Generator
) -> ClickBatch:
    """Windows around clicks, varied, all of a click alike; their images are float32 then."""
    if config.turn or config.stretch:
        warps = draw_warps(len(batch), config, generator)
        warps = warps.repeat_interleave(batch.masks.shape[1], dim=0)
        shown = torch.cat([batch.images.float(), batch.masks[..., None].float()], dim=-1)
        moved = warp_views(shown.flatten(0, 1), warps).unflatten(0, batch.masks.shape[:2])
        masks = moved[..., 3].round().to(torch.uint8)
        change = (masks.float() - batch.masks.float()).sum((2, 3)) / 255
        areas = (batch.areas + change).clamp(min=0)
        batch = dataclasses.replace(batch, images=moved[..., :3], masks=masks, areas=areas)
    return dataclasses.replace(batch, images=vary_pixels(batch.images, config, generator))


def draw_warps(count: int, config: VariationConfig, generator: torch.Generator) -> Tensor:
    """Matrices (R,2,2) from offsets in the varied view to offsets (x, y) in the view it shows."""
    noise = torch.randn((2, count), generator=generator, device=generator.device)
    return warp_matrices(config.turn * noise[0], (config.stretch * noise[1]).exp())


def warp_matrices(turn: Tensor, stretch: Tensor) -> Tensor:
    """Matrices (R,2,2) that turn by angles (R,), radians, the first axis times `stretch` (R,).

    The second axis is divided by it, so that areas stay.
    """
    rows = (
        turn.cos() * stretch, -turn.sin() / stretch, turn.sin() * stretch, turn.cos() / stretch,
    )  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (2, 2))


def warp_views(views: Tensor, warps: Tensor) -> Tensor:
    """Views (R,v,v,c) float32 seen through matrices (R,2,2) about their middles."""
    theta = F.pad(warps, (0, 1))
    values = views.movedim(-1, 1)
    grid = F.affine_grid(theta, list(values.shape), align_corners=False)
    moved = F.grid_sample(values, grid, padding_mode="reflection", align_corners=False)
    return moved.movedim(1, -1)


def _paste_views(
    batch: ViewBatch, config: VariationConfig, generator: torch.Generator
) -> ViewBatch:
    """Put what masks of other rows show in front of some regions."""
    if not config.paste or len(batch) < 2:
        return batch
    side, device = batch.masks.shape[-1], batch.masks.device
    step = int(torch.randint(1, len(batch), (), generator=generator, device=device))
    shifts = 2 * torch.rand((len(batch), 2), generator=generator, device=device) - 1
    coins = torch.rand(len(batch), generator=generator, device=device) < config.paste
    grid = F.affine_grid(
        torch.cat([torch.eye(2, device=device).expand(len(batch), 2, 2),
                   2 * MAX_SHIFT * shifts[..., None]], dim=2),
        [len(batch), 1, side, side], align_corners=False,
    )  # fmt: skip
    others = torch.cat([batch.images.float(), batch.masks[..., None].float()], dim=-1)
    pasted = F.grid_sample(others.roll(step, 0).movedim(-1, 1), grid, align_corners=False)
    covered = (pasted[:, 3] > 0.5) & coins[:, None, None]
    images = torch.where(covered[..., None], pasted[:, :3].movedim(1, -1), batch.images.float())
    return _accept(batch, images, batch.masks & ~covered, batch.clicks_xy)


def _accept(batch: ViewBatch, images: Tensor, masks: Tensor, clicks_xy: Tensor) -> ViewBatch:
    """Take the rows that still show half of their region, and their click on it."""
    before, after = batch.masks.flatten(1).sum(1), masks.flatten(1).sum(1)
    side = masks.shape[-1]
    columns, rows = clicks_xy.floor().long().clamp(0, side - 1).unbind(-1)
    is_clicked = masks[torch.arange(len(masks), device=masks.device), rows, columns]
    is_inside = ((clicks_xy >= 0) & (clicks_xy < side)).all(dim=1)
    keeps = batch.is_box | (is_clicked & is_inside)
    taken = (after >= LEAST_LEFT * before) & (after > 0) & keeps
    boxes = torch.from_numpy(masks_to_boxes(masks.cpu().numpy())).to(masks.device)
    return dataclasses.replace(
        batch,
        images=torch.where(taken[:, None, None, None], images, batch.images.float()),
        masks=torch.where(taken[:, None, None], masks, batch.masks),
        boxes_xyxy=torch.where(taken[:, None], boxes, batch.boxes_xyxy),
        clicks_xy=torch.where(taken[:, None], clicks_xy, batch.clicks_xy),
        areas=torch.where(taken, (batch.areas + after - before).clamp(min=1), batch.areas),
    )


def vary_pixels(images: Tensor, config: VariationConfig, generator: torch.Generator) -> Tensor:
    """Images (R,P,v,v,3), 0 to 255, in float32: blurred, without colours, with noise.

    Rows vary independently of each other, the P views of a row alike.
    """
    shown, device = images.float(), images.device

    def uniform() -> Tensor:
        return torch.rand((len(shown), 1, 1, 1, 1), generator=generator, device=device)

    if config.blur:
        side = shown.shape[-2]
        share = COARSEST + (1 - COARSEST) * float(
            torch.rand((), generator=generator, device=device)
        )
        flat = shown.flatten(0, 1).movedim(-1, 1)
        small = F.interpolate(
            flat, size=max(1, round(share * side)), mode="bilinear", antialias=True
        )
        coarse = F.interpolate(small, size=side, mode="bilinear").movedim(1, -1)
        shown = torch.where(uniform() < config.blur, coarse.unflatten(0, shown.shape[:2]), shown)
    if config.grey:
        shown = torch.where(uniform() < config.grey, shown.mean(-1, keepdim=True), shown)
    if config.noise:
        noise = torch.randn(shown.shape, generator=generator, device=device)
        shown = (shown + 255 * config.noise * uniform() * noise).clamp(0, 255)
    return shown
