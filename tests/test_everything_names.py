"""The automatic mode of a model with a namer."""

from __future__ import annotations

import numpy as np
import torch

from tests.tiny_predictor import make_photo, tiny_predictor
from tokenize_anything.everything import find_everything
from tokenize_anything.everything_config import EverythingConfig
from tokenize_anything.view_names import write_names

CONFIG = EverythingConfig(
    points_per_side=7, min_iou=0.0, min_stability=0.0, max_overlap=0.5, min_region_area=4
)


def test_the_namer_looks_at_what_was_found() -> None:
    photo, sizes = make_photo(41, 67), {"zoom": 0.5, "view_dim": 3, "view_size": 32}
    named, plain = tiny_predictor(**sizes, namer_size=32), tiny_predictor(**sizes)
    state = named.model.state_dict()
    plain.model.load_state_dict({name: state[name] for name in plain.model.state_dict()})
    for source in (photo, named.encode_images(photo)):
        found = named.predict_everything(source, config=CONFIG, captions=False)
        expected = find_everything(plain.model, photo, CONFIG, chunk=9).decoded
        np.testing.assert_array_equal(found.masks, expected.masks)
        assert len(found) > 1
        before = expected.semantic_tokens.clone()
        with torch.inference_mode():
            write_names(named.model, photo, expected)
        assert not torch.allclose(before, expected.semantic_tokens, atol=1e-2)
        for name in ("semantic_tokens", "semantic_embeddings"):
            values = getattr(expected, name)
            np.testing.assert_allclose(getattr(found, name), values, rtol=1e-4, atol=1e-4)
