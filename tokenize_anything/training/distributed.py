"""Processes that train one model together, as `torchrun` starts them; alone without it."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tokenize_anything.build import choose_device

# The first process may index shards or write a large checkpoint while the others wait.
PATIENCE = datetime.timedelta(hours=2)


@dataclass(frozen=True)
class Processes:
    """Process number `rank` of `world`, computing on `device`; alone by default."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @classmethod
    def join(cls, device: str = "auto") -> Processes:
        """Take part in what `torchrun` started; alone without it.

        The process group is left when the program ends. On CUDA each process takes the GPU of its
        number on its machine.

        Raises:
            ValueError: a device that is not present.
        """
        world = int(os.environ.get("WORLD_SIZE", "1"))
        chosen = choose_device(device)
        if world == 1:
            return cls(chosen)
        if chosen.type == "cuda":
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(chosen)
        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=PATIENCE)
            atexit.register(_leave)
        return cls(chosen, dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum of the tensors that the processes hand in, of one shape; a new tensor."""
        total = values.detach().clone()
        if self.world > 1:
            dist.all_reduce(total)
        return total

    def wait(self) -> None:
        """Return when all processes got here."""
        if self.world > 1:
            dist.barrier()


def wrap_data_parallel(module: nn.Module, processes: Processes) -> nn.Module:
    """DDP around a module whose BatchNorms count the images of all processes from now on.

    Gradients become the mean over the processes. All trainable parameters must take part in every
    forward pass.
    """
    synchronize_norms(module, processes)
    # Running statistics are equal already, and other buffers never change.
    return DistributedDataParallel(module, broadcast_buffers=False)


def exchange_gradients(module: nn.Module, is_last: bool) -> contextlib.AbstractContextManager[None]:
    """Surround forward and backward of one part of a batch: only the last part's are exchanged."""
    if isinstance(module, DistributedDataParallel):
        return contextlib.nullcontext() if is_last else module.no_sync()
    keep: Any = getattr(module, "set_requires_gradient_sync", None)
    if keep is not None:
        keep(is_last)
    return contextlib.nullcontext()


def synchronize_norms(module: nn.Module, processes: Processes) -> None:
    """Make every BatchNorm2d inside `module` count the images of all processes, in place.

    On CUDA that is `nn.SyncBatchNorm`; it refuses other devices, where `ReducedBatchNorm2d` stands
    in. Parameters, buffers and their names stay. Alone, nothing changes.
    """
    if processes.world == 1:
        return
    if processes.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = ReducedBatchNorm2d


class ReducedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over the images of all processes, on devices that `nn.SyncBatchNorm` refuses."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B,C,h,w) by the statistics of all processes in training, else as stored."""
        if not self.training:
            return super().forward(input)
        x = input.float()
        count = _SumOverProcesses.apply(x.new_tensor(x.numel() / x.shape[1]))
        mean = _SumOverProcesses.apply(x.sum(dim=(0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = _SumOverProcesses.apply(centred.square().sum(dim=(0, 2, 3))) / count
        self._follow(mean.detach(), variance.detach() * (count / (count - 1)))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics as `nn.BatchNorm2d` does."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked.add_(1)


class _SumOverProcesses(torch.autograd.Function):
    """Sum over the processes; the gradient of a sum of all their losses flows back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def _leave() -> None:
    """Close the group; gloo may abort a process that ends inside one."""
    if dist.is_initialized():
        dist.destroy_process_group()
