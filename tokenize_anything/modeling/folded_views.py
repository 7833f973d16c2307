"""Copies of the networks for views that say the same faster: what inference runs.

A BatchNorm that is no longer learnt is a scale and a shift of each channel, so that the convolution
before it can do its work (Jacob et al. 2018, "Quantization and training of neural networks",
section 3.2). The weights also lie in memory, and are rounded, as the convolutions want them, which
would else be done at each call: a quarter of the time of a single prompt, and more.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tokenize_anything.modeling.view_encoder import ViewEncoder

NetworkT = TypeVar("NetworkT", bound=ViewEncoder)


def fold_network(network: NetworkT, dtype: torch.dtype | None = None) -> NetworkT:
    """A copy in evaluation mode without any BatchNorm; equal to the network but for rounding.

    Args:
        network: stays as it is.
        dtype: of the weights of the copy, None for the same.
    """
    own = next(network.parameters()).dtype
    folded = copy.deepcopy(network).eval().requires_grad_(False)
    folded = folded.to(torch.promote_types(own, torch.float32))
    for module in folded.modules():
        if isinstance(module, nn.Sequential) and isinstance(module[-1], nn.BatchNorm2d):
            convolution, norm = module
            module[0] = fuse_conv_bn_eval(cast(nn.Conv2d, convolution), cast(nn.BatchNorm2d, norm))
            module[1] = nn.Identity()
    for parameter in folded.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return folded.to(dtype or own)


@dataclass(frozen=True, eq=False)
class _Known:
    """A copy, and what it was made of; the tensors are kept so that no others get their places."""

    dtype: torch.dtype | None
    tensors: list[Tensor]
    state: list[int]
    folded: ViewEncoder


class FoldedViews:
    """The copies of one model, each made when first asked for and anew when its weights changed."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}

    def get(self, network: NetworkT, dtype: torch.dtype | None = None) -> NetworkT:
        """The copy of a network, see `fold_network`; one with hooks answers itself."""
        modules = _list_modules(network)
        if any(module._forward_hooks or module._forward_pre_hooks for module in modules):
            return network
        tensors, known = _list_tensors(modules), self._known.get(id(network))
        state = _tell_state(tensors)
        if known is None or known.dtype != dtype or known.state != state:
            known = _Known(dtype, tensors, state, fold_network(network, dtype))
            self._known[id(network)] = known
        return cast(NetworkT, known.folded)

    def __deepcopy__(self, memo: object) -> FoldedViews:
        return FoldedViews()

    def __reduce__(self) -> tuple[type[FoldedViews], tuple[()]]:
        return FoldedViews, ()


def _list_modules(network: nn.Module) -> list[nn.Module]:
    """What `modules()` gives, which takes so long that single prompts feel it."""
    modules = [network]
    for module in modules:
        modules += [child for child in module._modules.values() if child is not None]
    return modules


def _list_tensors(modules: list[nn.Module]) -> list[Tensor]:
    """Their own parameters and buffers."""
    tensors: list[Tensor] = []
    for module in modules:
        own = (*module._parameters.values(), *module._buffers.values())
        tensors += [tensor for tensor in own if tensor is not None]
    return tensors


def _tell_state(tensors: list[Tensor]) -> list[int]:
    """What differs once a tensor was moved, cast or changed in place."""
    places = [tensor.data_ptr() for tensor in tensors]
    return places + [0 if tensor.is_inference() else tensor._version for tensor in tensors]
