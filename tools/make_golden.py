"""Write tests/golden/tiny_predictions.safetensors: what a tiny model with fixed weights predicts.

Run this only when the numbers are meant to change, and say why in the commit. All that is random
comes from the raw stream of NumPy's PCG64, which does not change between releases.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tokenize_anything import ConceptVocabulary, PointPrompts, TAPConfig, TAPPredictor, build_model
from tokenize_anything.checkpoints import write_safetensors
from tokenize_anything.image_transform import restore_masks
from tokenize_anything.modeling import TAP
from tokenize_anything.text_generation import generate

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden" / "tiny_predictions.safetensors"
CONFIG = TAPConfig(
    image_size=48, patch_size=8, window_size=3, encoder_dim=44, encoder_depth=4, encoder_heads=2,
    encoder_mlp_dim=71, decoder_dim=64, decoder_depth=3, decoder_mlp_dim=59, semantic_dim=37,
    text_dim=128, text_depth=2, text_mlp_dim=83, vocabulary_size=61, max_text_length=11,
)  # fmt: skip


def _draw(seed: int, *shape: int) -> Tensor:
    """Uniform numbers in [-1, 1)."""
    raw = np.random.PCG64(seed).random_raw(int(np.prod(shape)))
    return torch.from_numpy((raw >> np.uint64(11)) * 2.0**-52 - 1.0).reshape(shape).float()


def _make_model() -> TAP:
    model = build_model(CONFIG)
    for seed, (name, value) in enumerate(sorted(model.state_dict().items())):
        if value.ndim > 1:
            value.copy_(_draw(seed, *value.shape) * (3 / value[0].numel()) ** 0.5)
        elif value.is_floating_point():  # biases; the scales of norms; running statistics
            center = float(name.endswith(("weight", "running_var")))
            value.copy_(center + 0.3 * _draw(seed, *value.shape))
    return model


def _make_photo(seed: int, height: int, width: int) -> np.ndarray:
    colors = 127.5 + 127.4 * _draw(seed, 6, 7, 3).numpy()
    return np.kron(colors, np.ones((13, 11, 1)))[:height, :width].astype(np.uint8)


def _make_prompts(height: int, width: int) -> PointPrompts:
    box = [[2.5, 3, width - 5, height - 7.25]]
    points = PointPrompts.from_points([[width / 3, height / 5], [0.0, height]])
    refined = PointPrompts.from_boxes(box, [[[11.0, 13.0], [20.0, 30.5]]], [[1, 0]])
    sketch = PointPrompts.from_sketch(np.tri(height, width) - np.tri(height, width, -3))
    return PointPrompts.concatenate([points, refined, PointPrompts.from_boxes(box), sketch])


def predict_golden() -> dict[str, Tensor]:
    """All outputs, by number of the photo and name of the field."""
    concepts = ConceptVocabulary(tuple("abcdefg"), 4 * _draw(998, CONFIG.semantic_dim, 7))
    predictor, golden = TAPPredictor(_make_model(), region_chunk=2), dict[str, Tensor]()
    for index, size_hw in enumerate([(53, 37), (41, 71)]):
        encoded = predictor.encode_images(_make_photo(1000 + index, *size_hw))
        outputs = predictor.decode_regions(encoded, _make_prompts(*size_hw))
        tokens = 3 * outputs.semantic_tokens[:, 3]
        text = generate(predictor.model.text_decoder, tokens, start_id=1, end_id=2)
        words = [torch.tensor(row, dtype=torch.int64) for row in text.token_ids]
        fields = vars(outputs) | {
            "features": encoded.features,
            "masks": torch.from_numpy(restore_masks(outputs.mask_logits[:, 1], encoded.frame)),
            "concept_log_probs": concepts.log_probs(outputs.semantic_embeddings[:, 0]),
            "token_ids": torch.nn.utils.rnn.pad_sequence(words, batch_first=True, padding_value=-1),
            "caption_scores": text.scores,
        }
        golden |= {f"{index}.{name}": value for name, value in fields.items()}
    return golden


if __name__ == "__main__":
    versions = {"script": "tools/make_golden.py", "torch": torch.__version__}
    write_safetensors(GOLDEN, predict_golden(), versions)
