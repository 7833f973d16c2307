"""A torchvision that matches its torch is left alone; one that does not is made to load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# What torchvision does at import: look for compiled operators, then describe them to torch.
MATCHING = """
import torch
library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
library.impl("nms", lambda dets, scores, iou_threshold: scores.argsort(), "CPU")
from torchvision import extension
"""
LACKING = """
import torch, torchvision.extension
assert torchvision.extension.loaded
@torch.library.register_fake("torchvision::nms")
def meta_nms(dets, scores, iou_threshold):
    return dets
"""
HOPELESS = "raise RuntimeError('operator torchvision::roi_align does not exist')"

CALLS = """
import json, sys, threading, torch
from tokenize_anything import torchvision_operators
from tokenize_anything.torchvision_operators import ensure_torchvision_operators
found = {"before": "torchvision" in sys.modules}
if "failed" in sys.argv:
    try:
        import torchvision
    except RuntimeError as error:
        found["failed"] = str(error)
try:
    threads = [threading.Thread(target=ensure_torchvision_operators) for _ in range(3)]
    for thread in threads: thread.start()
    ensure_torchvision_operators()
    for thread in threads: thread.join()
    import torchvision
    found["loaded"] = torchvision.extension.loaded
    scores = torch.tensor([3.0, 1.0, 2.0])
    found["kept"] = torch.ops.torchvision.nms(torch.zeros(3, 4), scores, 0.5).tolist()
except Exception as error:
    found["error"] = f"{type(error).__name__}: {error}"
    sys.path.remove(sys.argv[1])
    sys.path[:] = [path for path in sys.path if "site-packages" not in path]
    ensure_torchvision_operators()  # not installed: nothing to do
    found["gone"] = "torchvision" not in sys.modules
found["declared"] = len(torchvision_operators._DECLARATIONS)
print(json.dumps(found))
"""


def run(folder: Path, package: str, *words: str) -> dict[str, object]:
    """Call it in a fresh process whose torchvision is `package`."""
    place = folder / "torchvision"
    place.mkdir()
    (place / "__init__.py").write_text(package)
    (place / "extension.py").write_text("loaded = True\n")
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", CALLS, str(folder), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def test_a_matching_torchvision_is_left_alone(tmp_path: Path) -> None:
    found = run(tmp_path, MATCHING)
    assert found == {"before": False, "loaded": True, "kept": [1, 2, 0], "declared": 0}


def test_one_that_lacks_its_operators_loads(tmp_path: Path) -> None:
    """Also after somebody else tried to import it and failed."""
    found = run(tmp_path, LACKING, "failed")
    assert found["failed"] == "operator torchvision::nms does not exist"
    assert (found["loaded"], found["declared"]) == (True, 1)
    assert "nms" in str(found["error"])  # declared, but without code


def test_one_that_does_not_load_even_so_is_named_and_none_at_all_is_no_matter(
    tmp_path: Path,
) -> None:
    found = run(tmp_path, HOPELESS)
    error = str(found["error"])
    assert found["gone"]
    assert error.startswith("ImportError: torchvision does not load beside torch")
    assert "(operator torchvision::roi_align does not exist); install the torchvision that" in error
