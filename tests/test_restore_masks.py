"""Mask logits back to original pixels, against two plain full-size resizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tokenize_anything import image_transform
from tokenize_anything.image_transform import ImageFrame, restore_logits, restore_masks


def plain_restore(mask_logits: torch.Tensor, frame: ImageFrame) -> torch.Tensor:
    """Both resizes at full size. (R,1,h',w') to (R,H,W)."""
    side = (frame.padded_size, frame.padded_size)
    padded = F.interpolate(mask_logits, size=side, mode="bilinear", align_corners=False)
    height, width = frame.scaled_hw
    scaled = padded[:, :, :height, :width]
    return F.interpolate(scaled, size=frame.original_hw, mode="bilinear", align_corners=False)[:, 0]


def random_logits(num_regions: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(11)
    return torch.randn(num_regions, 1, height, width, generator=generator)


class TestRestore:
    @pytest.mark.parametrize(
        "size",
        [(36, 48), (48, 36), (97, 61), (61, 97), (5, 7), (1, 101), (101, 1), (48, 48), (311, 200)],
    )
    # Factors 4, 3, 2 and 1 between cells and pixels, then none that is whole.
    @pytest.mark.parametrize("grid", [(12, 12), (16, 16), (24, 12), (48, 48), (13, 17), (59, 12)])
    def test_equals_two_plain_resizes(self, size: tuple[int, int], grid: tuple[int, int]) -> None:
        frame = ImageFrame.for_size(*size, 48)
        logits = random_logits(3, *grid)
        before = logits.clone()
        expected = plain_restore(logits, frame).numpy()
        values, masks = restore_logits(logits, frame), restore_masks(logits, frame)
        np.testing.assert_array_equal(values, expected)
        np.testing.assert_array_equal(masks, expected > 0)
        assert (values.dtype, masks.dtype) == (np.float32, np.bool_)
        assert torch.equal(logits, before)

    @pytest.mark.parametrize("size", [(480, 640), (1190, 411), (1023, 1024)])
    def test_at_the_size_of_the_published_models(self, size: tuple[int, int]) -> None:
        frame = ImageFrame.for_size(*size, 1024)
        logits = random_logits(1, 256, 256)
        np.testing.assert_array_equal(
            restore_logits(logits, frame), plain_restore(logits, frame).numpy()
        )

    @pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 100, None])
    def test_chunks_change_nothing(self, chunk: int | None) -> None:
        frame = ImageFrame.for_size(53, 97, 48)
        logits = random_logits(7, 12, 12)
        expected = plain_restore(logits, frame).numpy()
        np.testing.assert_array_equal(restore_logits(logits, frame, chunk=chunk), expected)
        np.testing.assert_array_equal(restore_masks(logits, frame, chunk=chunk), expected > 0)

    def test_default_chunk_bounds_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        frame = ImageFrame.for_size(53, 97, 48)
        logits, sizes = random_logits(7, 12, 12), []
        expected = restore_masks(logits, frame)
        resize = image_transform._interpolate

        def recorded(values: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
            sizes.append(len(values))
            return resize(values, size_hw)

        monkeypatch.setattr(image_transform, "_interpolate", recorded)
        monkeypatch.setattr(image_transform, "_CPU_CHUNK_VALUES", 3 * 53 * 97 + 1)
        np.testing.assert_array_equal(restore_masks(logits, frame), expected)
        assert sizes == [3, 3, 3, 3, 1, 1]  # two resizes per chunk
        monkeypatch.setattr(image_transform, "_CPU_CHUNK_VALUES", 1)
        np.testing.assert_array_equal(restore_masks(logits, frame), expected)

    def test_padding_is_not_computed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        frame, sizes = ImageFrame.for_size(480, 640, 1024), []
        resize = image_transform._interpolate

        def recorded(values: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
            sizes.append((tuple(values.shape[2:]), size_hw))
            return resize(values, size_hw)

        monkeypatch.setattr(image_transform, "_interpolate", recorded)
        restore_masks(torch.zeros(1, 256, 256), frame)
        # 768 / 4 = 192 rows of cells show the image; the last mixes with the row below.
        assert sizes == [((193, 256), (772, 1024)), ((768, 1024), (480, 640))]

    def test_one_region_as_among_others(self) -> None:
        frame = ImageFrame.for_size(53, 97, 48)
        logits = random_logits(5, 12, 12)
        together = restore_logits(logits, frame)
        for index in range(5):
            alone = restore_logits(logits[index : index + 1], frame)
            np.testing.assert_array_equal(alone[0], together[index])

    @pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.37])
    def test_threshold_comes_last(self, threshold: float) -> None:
        frame = ImageFrame.for_size(31, 44, 48)
        logits = random_logits(2, 12, 12)
        expected = plain_restore(logits, frame).numpy() > threshold
        np.testing.assert_array_equal(restore_masks(logits, frame, threshold=threshold), expected)

    def test_a_logit_of_zero_is_outside(self) -> None:
        frame = ImageFrame.for_size(31, 44, 48)
        assert not restore_masks(torch.zeros(1, 12, 12), frame).any()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_computed_in_float32(self, dtype: torch.dtype) -> None:
        frame = ImageFrame.for_size(31, 44, 48)
        logits = random_logits(2, 12, 12).to(dtype)
        expected = plain_restore(logits.float(), frame).numpy()
        np.testing.assert_array_equal(restore_logits(logits, frame), expected)

    def test_both_layouts(self) -> None:
        frame = ImageFrame.for_size(31, 44, 48)
        logits = random_logits(3, 12, 12)
        np.testing.assert_array_equal(
            restore_logits(logits[:, 0], frame), restore_logits(logits, frame)
        )

    def test_gradients_are_left_behind(self) -> None:
        logits = random_logits(1, 12, 12).requires_grad_()
        assert restore_masks(logits, ImageFrame.for_size(5, 7, 48)).shape == (1, 5, 7)

    def test_no_regions(self) -> None:
        frame = ImageFrame.for_size(5, 7, 48)
        assert restore_masks(torch.zeros(0, 1, 12, 12), frame).shape == (0, 5, 7)
        assert restore_logits(torch.zeros(0, 12, 12), frame).shape == (0, 5, 7)

    @pytest.mark.parametrize("size", [(480, 640), (640, 480), (1264, 1190)])
    def test_lands_where_the_coordinates_say(self, size: tuple[int, int]) -> None:
        """A ramp of model-frame x (or y) comes back as the same ramp in original pixels."""
        frame = ImageFrame.for_size(*size, 1024)
        centres = torch.arange(256) * 4 + 2.0
        x = centres[None, :].expand(256, 256)
        ramps = restore_logits(torch.stack([x, x.T]), frame)
        height, width = size
        pixel_y, pixel_x = np.mgrid[:height, :width] + 0.5
        expected = np.stack([pixel_x, pixel_y]) * frame.scale
        margin = 8  # bilinear resizing clamps at the border
        inner = np.s_[:, margin:-margin, margin:-margin]
        np.testing.assert_allclose(ramps[inner], expected[inner], atol=0.6)

    @pytest.mark.parametrize(
        ("logits", "options", "error", "message"),
        [
            (np.zeros((1, 4, 4)), {}, TypeError, "mask_logits: expected a torch tensor, got nd"),
            (torch.zeros(2, 4, 12, 12), {}, ValueError, r"got \(2, 4, 12, 12\); choose one mask"),
            (torch.zeros(12, 12), {}, ValueError, r"\(R,h',w'\) or \(R,1,h',w'\), got \(12, 12\)"),
            (torch.zeros(1, 1, 1, 12, 12), {}, ValueError, r"got \(1, 1, 1, 12, 12\)"),
            (torch.zeros(1, 0, 12), {}, ValueError, r"got \(1, 0, 12\)"),
            (torch.zeros(1, 12, 12), {"chunk": 0}, ValueError, "chunk: expected at least 1"),
        ],
    )
    def test_refused(
        self, logits: Any, options: dict[str, int], error: type[Exception], message: str
    ) -> None:
        frame = ImageFrame.for_size(5, 7, 48)
        for restore in (restore_masks, restore_logits):
            with pytest.raises(error, match=message):
                restore(logits, frame, **options)
