"""Text encoders that can span a concept space: what the teachers of eval_name_curve.py compare."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenize_anything.semantic_sa1b.text_space import embed_texts
from tokenize_anything.text_towers import MINILM_DIM


def embed_with_wordllama(texts: Sequence[str]) -> Tensor:
    """Means of word vectors (WordLlama, MIT, D = 256); zeros fill them up to (n,384)."""
    try:
        import wordllama
    except ImportError as error:
        raise ImportError(
            f"this teacher needs word vectors ({error}): pip install wordllama"
        ) from error
    folder = Path(wordllama.__file__).parent  # the files the package brings; nothing is downloaded
    vectors = wordllama.WordLlama.load(cache_dir=folder).embed(list(texts), norm=True)
    return F.pad(torch.from_numpy(vectors).float(), (0, MINILM_DIM - vectors.shape[1]))


def embed_at_random(texts: Sequence[str]) -> Tensor:
    """A direction (n,384) for each text, drawn with its digest: no text is like another."""

    def draw(text: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        return np.random.default_rng(seed).standard_normal(MINILM_DIM)

    bare = [text.removeprefix("a ").removeprefix("photo of a ").rstrip(".") for text in texts]
    return F.normalize(torch.from_numpy(np.stack([draw(name) for name in bare])), dim=-1).float()


TEACHERS = {"minilm": embed_texts, "wordllama": embed_with_wordllama, "random": embed_at_random}
