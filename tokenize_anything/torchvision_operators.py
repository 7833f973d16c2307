"""A cure for a torchvision whose compiled operators do not load beside the installed torch.

timm and open_clip import torchvision, and transformers does where it finds one. A torchvision built
for another torch, or for CUDA where torch is not, fails at import, because its compiled operators
are missing. None of these packages calls them; torchvision only wants to know their signatures.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading

import torch

_SIGNATURES = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_LOCK = threading.Lock()
_DECLARATIONS: list[torch.library.Library] = []  # dropped with their Library, so kept for good


def ensure_torchvision_operators() -> None:
    """Make `import torchvision` work, or say why it cannot; call it before timm or open_clip.

    Where torchvision loads by itself, or is not installed, nothing changes. Otherwise its missing
    operators are declared without code: its transforms work then, `torchvision.ops` does not.
    Calling it again, also from several threads, does nothing more.

    Raises:
        ImportError: torchvision is installed and does not load even so.
    """
    with _LOCK:
        if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
            return
        _forget_torchvision()  # what an import that failed before may have left
        try:
            importlib.import_module("torchvision")
        except RuntimeError:  # operator torchvision::nms does not exist
            _declare_operators()
            _forget_torchvision()
            _import_again()


def _import_again() -> None:
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # whatever a package of another torch may raise
        _forget_torchvision()
        raise ImportError(
            f"torchvision does not load beside torch {torch.__version__} ({error}); install the "
            "torchvision that belongs to this torch: https://pytorch.org/get-started/locally",
            name="torchvision",
        ) from error


def _declare_operators() -> None:
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for signature in _SIGNATURES:
            library.define(signature)
        _DECLARATIONS.append(library)


def _forget_torchvision() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
