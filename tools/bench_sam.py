"""The yardstick of bench_inference: transformers' SamModel ViT-B with random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from tokenize_anything.torchvision_operators import ensure_torchvision_operators


class SamBench:
    """Encode one 1024 px image, decode one click per prompt."""

    def __init__(self, device: str, dtype: str) -> None:
        ensure_torchvision_operators()
        from transformers import SamConfig, SamModel

        torch.manual_seed(0)
        self.model = SamModel(SamConfig()).eval().to(device, getattr(torch, dtype))
        self.device, self.dtype = device, getattr(torch, dtype)

    @torch.inference_mode()
    def run(self, best_time: Callable[..., float]) -> Iterator[tuple[str, float]]:
        """Yields (what, seconds)."""
        pixels = torch.randn(1, 3, 1024, 1024, device=self.device, dtype=self.dtype)
        yield "encode", best_time(lambda: self.model.get_image_embeddings(pixels), 1)
        features = self.model.get_image_embeddings(pixels)
        for count in (1, 16, 64):
            points = torch.rand(1, count, 1, 2, device=self.device, dtype=self.dtype) * 1024
            labels = torch.ones(1, count, 1, dtype=torch.int64, device=self.device)

            def decode(points: torch.Tensor = points, labels: torch.Tensor = labels) -> object:
                return self.model(
                    image_embeddings=features, input_points=points, input_labels=labels
                )

            yield f"decode {count} prompts", best_time(decode, 1 if count > 16 else 3)
