"""FSDP2: every process keeps a part of each weight, for models too large for one GPU.

Saved states always hold whole tensors, so a run may go on with another number of processes, or
without sharding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tokenize_anything.modeling import TAP
from tokenize_anything.training.distributed import Processes, synchronize_norms


def shard_module(module: nn.Module, model: TAP, processes: Processes) -> None:
    """Spread the parameters of `module` over the processes, in place; norms as in DDP.

    Encoder blocks are gathered one by one during a forward pass, the text decoder, which stage 1
    never runs, not at all, and the rest once. Gradients become the mean over the processes.

    Args:
        module: holds `model`; its forward pass is the one to call.
        model: of which parts are gathered on their own.
        processes: all of them.

    Raises:
        ImportError: torch is older than 2.6.
    """
    from torch.distributed.device_mesh import init_device_mesh

    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise ImportError(f"parallel: fsdp needs torch 2.6, this is {torch.__version__}") from error
    synchronize_norms(module, processes)
    mesh = init_device_mesh(processes.device.type, (processes.world,))
    for part in (*model.image_encoder.blocks, model.text_decoder, module):
        fully_shard(part, mesh=mesh)


def full_state(value: Any) -> Any:
    """A state dict with whole tensors in place of sharded ones; all processes call it together."""
    if isinstance(value, Mapping):
        return {key: full_state(item) for key, item in value.items()}
    if isinstance(value, list):
        return [full_state(item) for item in value]
    if hasattr(value, "full_tensor"):
        return value.full_tensor()
    return value


def load_module_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """`load_state_dict` of whole tensors into a module that may be sharded."""
    own = module.state_dict()
    spread = {name: _like(value, own[name]) for name, value in state.items() if name in own}
    module.load_state_dict({**state, **spread})


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """`load_state_dict` of whole tensors into an optimiser of parameters that may be sharded."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    spread = {
        index: {
            name: _like(value, parameters[index]) if value.ndim else value
            for name, value in values.items()
        }
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": spread})


def _like(value: Tensor, reference: Tensor) -> Tensor:
    """`value` spread over the processes as `reference` is."""
    if not hasattr(reference, "device_mesh"):
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh: Any = reference.device_mesh
    placements: Any = reference.placements  # type: ignore[attr-defined]
    return distribute_tensor(value.to(reference.device), mesh, placements)
