"""Find files that are not shipped: published weights on the Hugging Face hub, and text tokenizers.

Downloads go through huggingface_hub: they are cached, resumed when the connection breaks, and obey
HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE (read when huggingface_hub is first imported).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from tokenize_anything.text_tokenizer import TextTokenizer

PUBLISHED_REPO_ID = "BAAI/tokenize-anything"
PUBLISHED_WEIGHTS: Mapping[str, str] = {
    "tap_vit_b": "models/tap_vit_b_v1_1.pkl",
    "tap_vit_l": "models/tap_vit_l_v1_1.pkl",
    "tap_vit_h": "models/tap_vit_h_v1_1.pkl",
    "tap_vit_b.v1_0": "models/tap_vit_b_v1_0.pkl",
    "tap_vit_l.v1_0": "models/tap_vit_l_v1_0.pkl",
    "tap_vit_b.v1_1": "models/tap_vit_b_v1_1.pkl",
    "tap_vit_l.v1_1": "models/tap_vit_l_v1_1.pkl",
    "tap_vit_h.v1_1": "models/tap_vit_h_v1_1.pkl",
}
PUBLISHED_CONCEPTS: Mapping[str, str] = {
    "merged_2560": "concepts/merged_2560.pkl",
    "lvis_1203": "concepts/lvis_1203.pkl",
    "coco_80": "concepts/coco_80.pkl",
}
TEXT_TOKENIZER_VARIABLE = "TOKENIZE_ANYTHING_TEXT_TOKENIZER"
TEXT_TOKENIZER_NAMES = ("text_tokenizer.model", "tokenizer.model")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HUB_FILE = re.compile(r"(?P<repo_id>[\w.-]+/[\w.-]+):(?P<filename>[^:\\]+)")


def download(
    filename: str,
    *,
    repo_id: str = PUBLISHED_REPO_ID,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Fetch one file from the hub, or find it in the cache.

    A freshly downloaded large file is compared with the SHA-256 the hub announced.

    Args:
        filename: path inside the repository, for example "models/tap_vit_b_v1_1.pkl".
        repo_id: "owner/name".
        revision: branch, tag or commit; None is the main branch.
        cache_dir: None is huggingface_hub's own.

    Returns:
        The file in the cache; treat it as read-only.

    Raises:
        FileNotFoundError: the hub has no such repository, revision or file; or HF_HUB_OFFLINE is
            set and the file is not cached.
        PermissionError: the repository asks for a login or for consent.
        ConnectionError: no connection, or it broke off.
        ValueError: a repo_id that cannot be one, or bytes that are not those the hub announced.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    folder = None if cache_dir is None else Path(cache_dir)
    try:
        cached = try_to_load_from_cache(repo_id, filename, cache_dir=folder, revision=revision)
        path = Path(hf_hub_download(repo_id, filename, cache_dir=folder, revision=revision))
    except Exception as error:  # the transport library's own errors have no public base class
        raise _explain(error, f"{repo_id}:{filename}", revision) from error
    if not isinstance(cached, str) or Path(cached).resolve() != path.resolve():
        _verify(path, f"{repo_id}:{filename}")
    return path


def find_text_tokenizer(
    path: str | os.PathLike[str] | None,
    vocabulary_size: int,
    *,
    beside: str | os.PathLike[str] | None = None,
) -> Path:
    """Locate the SentencePiece model whose pieces a text decoder speaks.

    Looked for in this order: `path`; the path in the environment variable
    TOKENIZE_ANYTHING_TEXT_TOKENIZER; text_tokenizer.model or tokenizer.model in the folder of
    `beside`.

    Args:
        path: a file, or "owner/name:filename" on the hub. The published weights use the
            tokenizer of LLaMA, whose licence does not let others ship it.
        vocabulary_size: number of pieces the model expects.
        beside: the checkpoint file.

    Raises:
        FileNotFoundError: none found (the message names all the ways), or a named file is missing.
        ValueError: not a SentencePiece model, or one with another number of pieces.
        ConnectionError, PermissionError: see `download`.
    """
    named = path if path is not None else os.environ.get(TEXT_TOKENIZER_VARIABLE) or None
    if named is not None:
        source = "text_tokenizer" if path is not None else TEXT_TOKENIZER_VARIABLE
        found = _named_file(str(named), source)
    else:
        candidates = [Path(beside).with_name(n) for n in TEXT_TOKENIZER_NAMES] if beside else []
        existing = [candidate for candidate in candidates if candidate.is_file()]
        if not existing:
            raise FileNotFoundError(_no_tokenizer_message(vocabulary_size, beside))
        found = existing[0]
    _check_num_pieces(found, vocabulary_size)
    return found


def _named_file(named: str, source: str) -> Path:
    path = Path(named).expanduser()
    if path.is_file():
        return path
    hub_file = _HUB_FILE.fullmatch(named)
    if hub_file:
        return download(hub_file["filename"], repo_id=hub_file["repo_id"])
    raise FileNotFoundError(
        f"{source}: {named} is no file; expected the path of a SentencePiece model, or "
        f"owner/name:filename on the hub"
    )


def _no_tokenizer_message(vocabulary_size: int, beside: str | os.PathLike[str] | None) -> str:
    folder = Path(beside).parent if beside else "the folder of the checkpoint"
    return (
        f"text tokenizer: none found for a vocabulary of {vocabulary_size} pieces. Either pass "
        f"text_tokenizer=<path of a SentencePiece .model file>, or "
        f"text_tokenizer='owner/name:filename' to take it from the hub, or set the environment "
        f"variable {TEXT_TOKENIZER_VARIABLE} to such a path, or put the file as "
        f"{' or '.join(TEXT_TOKENIZER_NAMES)} into {folder}. The published TAP weights (32000 "
        f"pieces) use the tokenizer.model of LLaMA 1 and 2, which is not ours to ship"
    )


def _check_num_pieces(path: Path, vocabulary_size: int) -> None:
    num_pieces = TextTokenizer.from_file(path).vocabulary_size
    if num_pieces != vocabulary_size:
        raise ValueError(
            f"{path}: expected the {vocabulary_size} pieces of the model's vocabulary, got "
            f"{num_pieces}; choose the tokenizer the model was trained with"
        )


def _verify(path: Path, name: str) -> None:
    """Compare a cached file with its own name: large files are stored under their SHA-256."""
    blob = path.resolve()
    if not _SHA256.fullmatch(blob.name):
        return
    with blob.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != blob.name:
        path.unlink(missing_ok=True)
        blob.unlink(missing_ok=True)
        raise ValueError(
            f"{name}: the downloaded bytes are damaged: expected SHA-256 {blob.name}, got {found}. "
            f"The file was removed from the cache; try again, without a caching proxy if it repeats"
        )


def _explain(error: Exception, name: str, revision: str | None) -> Exception:
    """The error to raise instead: same cause, but with the file and the cure."""
    from huggingface_hub import constants, errors

    by_hand = "or copy the file here by other means and pass its path"
    where = f"{name} (revision {revision or 'main'})"
    if isinstance(error, errors.LocalEntryNotFoundError) and not constants.HF_HUB_OFFLINE:
        return ConnectionError(
            f"{where}: no connection to {constants.ENDPOINT}, and the file is not in the cache "
            f"{constants.HF_HUB_CACHE}. Check the network, proxy and HF_ENDPOINT, {by_hand}"
        )
    explained: tuple[tuple[type[Exception], Exception], ...] = (
        (errors.LocalEntryNotFoundError, FileNotFoundError(
            f"{where}: not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids "
            f"downloads. Unset HF_HUB_OFFLINE, {by_hand}")),
        (errors.GatedRepoError, PermissionError(
            f"{where}: the repository asks for consent. Accept its terms on {constants.ENDPOINT} "
            f"and log in with `hf auth login`")),
        (errors.RepositoryNotFoundError, FileNotFoundError(
            f"{where}: {constants.ENDPOINT} has no such repository, or it is private. Check the "
            f"name; for a private one log in with `hf auth login`")),
        (errors.RevisionNotFoundError, FileNotFoundError(
            f"{where}: the repository has no such revision. Check its list of branches and tags")),
        (errors.EntryNotFoundError, FileNotFoundError(
            f"{where}: the repository has no such file. Check its list of files on "
            f"{constants.ENDPOINT}")),
        (errors.HFValidationError, ValueError(
            f"{where}: expected owner/name as repo_id ({error})")),
    )  # fmt: skip
    for kind, replacement in explained:
        if isinstance(error, kind):
            return replacement
    if isinstance(error, OSError) and error.errno is not None:
        return error  # the disk: full, read-only, …
    return ConnectionError(f"{where}: the download failed ({error}). Try again, {by_hand}")
