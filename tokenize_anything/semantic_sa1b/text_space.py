"""Text embeddings that span a concept space, from a small offline sentence encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tokenize_anything.checkpoints import write_safetensors
from tokenize_anything.text_towers import SentenceTower


def embed_texts(texts: Sequence[str]) -> Tensor:
    """Embed texts with MiniLM (all-MiniLM-L6-v2, Apache-2.0, D = 384), offline.

    Returns:
        (n,384) float32, L2-normalised.

    Raises:
        ImportError: the package that carries the encoder is missing.
    """
    return SentenceTower().embed_texts(texts)


def embed_texts_cached(
    texts: Sequence[str],
    path: str | Path,
    embed: Callable[[Sequence[str]], Tensor] = embed_texts,
) -> Tensor:
    """`embed`, kept in a safetensors file that is reused while the texts are the same.

    The file knows the texts, not the encoder: use another file for another `embed`. A file that is
    damaged or of other texts is replaced.
    """
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    path = Path(path)
    stored = _read_if_current(path, digest) if path.is_file() else None
    if stored is not None:
        return stored
    embeddings = embed(texts)
    write_safetensors(path, {"embeddings": embeddings}, {"digest": digest})
    return embeddings


def _read_if_current(path: Path, digest: str) -> Tensor | None:
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("digest") == digest:
                return file.get_tensor("embeddings").clone()
    except SafetensorError:
        return None
    return None
