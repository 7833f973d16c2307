"""From the loss of a batch, or of its parts, to one update of the weights."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor

from tokenize_anything.training.optimizer import shorten_gradients

logger = logging.getLogger(__name__)

MIN_LOSS_SCALE = 1.0


class GradientStep:
    """Collects the gradients of the parts of a batch, then updates; guards against broken numbers.

    With float16 the loss is scaled so that small gradients do not vanish. Where a gradient
    overflows for it, the update is left out and the scale halved; a gradient that is broken without
    any scale stops the run, as it does in other precisions.

    Args:
        optimizer: of the parameters.
        max_grad_norm: longest gradient.
        device: of the parameters.
        is_float16: whether the network runs in float16.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float,
        device: torch.device,
        *,
        is_float16: bool = False,
    ) -> None:
        self.optimizer, self.max_grad_norm = optimizer, max_grad_norm
        self.scaler = torch.amp.GradScaler(device.type, enabled=is_float16)

    def add(self, loss: Tensor, where: str) -> None:
        """Add the gradient of one part.

        Raises:
            FloatingPointError: the loss is NaN or infinite; the message holds `where`.
        """
        if not torch.isfinite(loss):
            self.optimizer.zero_grad(set_to_none=True)
            raise FloatingPointError(f"loss is {loss.item()} at {where}")
        self.scaler.scale(loss).backward()

    def update(self, where: str) -> float:
        """Update the weights and forget the gradients. Returns the gradient's length.

        Raises:
            FloatingPointError: the gradient is NaN or infinite; the message holds `where`.
        """
        self.scaler.unscale_(self.optimizer)
        length = shorten_gradients(self.optimizer, self.max_grad_norm)
        scale = self.scaler.get_scale()
        if math.isfinite(length):
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif self.scaler.is_enabled() and scale > MIN_LOSS_SCALE:
            logger.info("no update at %s: gradients overflow with a loss scale of %g", where, scale)
            self.scaler.update(scale / 2)
        else:
            self.optimizer.zero_grad(set_to_none=True)
            raise FloatingPointError(f"gradient has length {length} at {where}")
        self.optimizer.zero_grad(set_to_none=True)
        return length

    def state_dict(self) -> dict[str, Any]:
        """State of the scale; empty where there is none."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave; an empty one changes nothing."""
        if state and self.scaler.is_enabled():
            self.scaler.load_state_dict(state)
