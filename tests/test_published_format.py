"""Names and sizes of the published checkpoints, against the committed lists in tests/golden.

The lists were made by building the public models and writing down their state dicts.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny import tiny_config, tiny_tap
from tokenize_anything.checkpoints import (
    lay_out_model,
)
from tokenize_anything.config import PRESETS, PixelConfig, TAPConfig
from tokenize_anything.modeling import TAP
from tokenize_anything.published_format import (
    from_published_state_dict,
    load_published_concepts,
    read_published_checkpoint,
    to_published_key,
    to_published_state_dict,
)
from tokenize_anything.published_pickle import load_published_pickle

GOLDEN = Path(__file__).parent / "golden"
PARITY = Path(__file__).parents[2] / "shared" / "parity"
Arrays = dict[str, np.ndarray]


def golden_keys(name: str) -> dict[str, tuple[str, str]]:
    """Published key to (shape, dtype); a line may stand for a range of blocks."""
    found = {}
    for line in (GOLDEN / f"{name}_keys.txt").read_text().splitlines()[1:]:
        key, shape, dtype = line.split()
        numbers = re.search(r"\{0\.\.(\d+)\}", key)
        for number in range(int(numbers[1]) + 1) if numbers else [0]:
            found[re.sub(r"\{.*\}", str(number), key)] = (shape, dtype)
    return found


def config() -> TAPConfig:
    pixels = PixelConfig(mean=(101.5, 113.25, 127.0), std=(53.5, 59.25, 61.0))
    return tiny_config(max_text_length=40, pixels=pixels)


@pytest.fixture(scope="module")
def model() -> TAP:
    model = tiny_tap(config())
    for number, module in enumerate(model.modules()):
        if isinstance(module, torch.nn.BatchNorm2d) and module.num_batches_tracked is not None:
            module.num_batches_tracked.fill_(number)
    return model.half().float()  # values that float16 holds


@pytest.fixture
def arrays(model: TAP) -> Arrays:
    return {name: t.numpy().copy() for name, t in to_published_state_dict(model).items()}


@pytest.mark.parametrize(("name", "count"), [("b", 537), ("l", 705), ("h", 817)])
def test_keys_shapes_and_dtypes_are_the_published_ones(name: str, count: int) -> None:
    expected = golden_keys(f"tap_vit_{name}")
    state = to_published_state_dict(lay_out_model(PRESETS[f"tap_vit_{name}"]()))
    found = {
        key: (str(list(value.shape)).replace(" ", ""), str(value.dtype).removeprefix("torch."))
        for key, value in state.items()
    }
    assert found == expected
    assert len(found) == count


def places(model: Any) -> dict[str, Tensor]:
    """Every kind of module once, taken from the model by hand."""
    encoder, decoder, text = model.image_encoder, model.image_decoder, model.text_decoder
    block, two_way, writer = encoder.blocks[1], decoder.transformer.blocks[1], text.blocks[2]
    cross = encoder.cross_window[2]
    names: dict[str, Any] = {
        "image_encoder.patch_embed.proj.weight": encoder.patch_embed.weight,
        "image_encoder.patch_embed.proj.bias": encoder.patch_embed.bias,
        "image_encoder.pos_embed.weight": encoder.pos_embed,
        "image_encoder.blocks.1.norm1.weight": block.norm1.weight,
        "image_encoder.blocks.1.norm2.weight": block.norm2.weight,
        "image_encoder.blocks.1.attn.qkv.weight": block.attn.qkv.weight,
        "image_encoder.blocks.1.attn.proj.bias": block.attn.proj.bias,
        "image_encoder.blocks.1.attn.rel_pos_embed.weight": block.attn.position_bias.weight,
        "image_encoder.blocks.1.mlp.fc1.weight": block.mlp.fc1.weight,
        "image_encoder.blocks.1.mlp.fc2.bias": block.mlp.fc2.bias,
        "image_encoder.norm.bias": encoder.norm.bias,
        "image_encoder.cross_conv.2.conv1.weight": cross.conv1[0].weight,
        "image_encoder.cross_conv.2.norm1.running_var": cross.conv1[1].running_var,
        "image_encoder.cross_conv.2.conv2.weight": cross.conv2[0].weight,
        "image_encoder.cross_conv.2.norm2.bias": cross.conv2[1].bias,
        "image_encoder.cross_conv.2.conv3.weight": cross.conv3[0].weight,
        "image_encoder.cross_conv.2.norm3.num_batches_tracked": cross.conv3[1].num_batches_tracked,
        "image_encoder.neck.lateral_conv.0.0.weight": encoder.neck[0][0].weight,
        "image_encoder.neck.lateral_conv.0.1.running_mean": encoder.neck[0][1].running_mean,
        "image_encoder.neck.output_conv.0.0.weight": encoder.neck[1][0].weight,
        "image_encoder.neck.output_conv.0.1.weight": encoder.neck[1][1].weight,
        "prompt_encoder.coord_matrix": model.prompt_encoder.position_encoding.coord_matrix,
        "prompt_encoder.point_embed.weight": model.prompt_encoder.label_embedding.weight,
        "image_decoder.transformer.blocks.1.self_attn.q_proj.bias": two_way.self_attn.q_proj.bias,
        "image_decoder.transformer.blocks.1.norm3.weight": two_way.norm3.weight,
        "image_decoder.transformer.blocks.1.mlp.fc1.bias": two_way.mlp.fc1.bias,
        "image_decoder.transformer.norm.weight": decoder.transformer.norm.weight,
        "image_decoder.iou_token.weight": decoder.iou_token,
        "image_decoder.sem_tokens.weight": decoder.semantic_tokens,
        "image_decoder.mask_tokens.weight": decoder.mask_tokens,
        "image_decoder.output_conv.0.weight": decoder.upscale1.weight,
        "image_decoder.output_conv.1.bias": decoder.upscale_norm.bias,
        "image_decoder.output_conv.3.weight": decoder.upscale2.weight,
        "image_decoder.mask_pred.3.layers.2.weight": decoder.mask_heads[3].layers[2].weight,
        "image_decoder.iou_pred.layers.1.weight": decoder.iou_head.layers[1].weight,
        "image_decoder.sem_pred.layers.1.weight": decoder.semantic_head.layers[1].weight,
        "text_decoder.encoder.weight": text.visual_proj.weight,
        "text_decoder.transformer.tok_embeddings.weight": text.word_embedding.weight,
        "text_decoder.transformer.text_proj.weight": text.word_proj.weight,
        "text_decoder.transformer.norm.weight": text.norm.weight,
        "text_decoder.transformer.blocks.2.attn.qkv.bias": writer.qkv.bias,
        "text_decoder.transformer.blocks.2.attn.proj.weight": writer.proj.weight,
        "text_decoder.transformer.blocks.2.norm1.weight": writer.norm1.weight,
        "text_decoder.transformer.blocks.2.norm2.weight": writer.norm2.weight,
        "text_decoder.transformer.blocks.2.mlp.fc2.weight": writer.mlp.fc2.weight,
    }
    for ours, theirs in (
        (two_way.token_to_image, "transformer.blocks.1.cross_attn_token_to_image"),
        (two_way.image_to_token, "transformer.blocks.1.cross_attn_image_to_token"),
        (decoder.transformer.final_token_to_image, "transformer.final_attn_token_to_image"),
    ):
        for part in ("q_proj", "k_proj", "v_proj", "proj"):
            names[f"image_decoder.{theirs}.{part}.weight"] = getattr(ours, part).weight
    return names


def test_each_value_goes_to_its_published_place(model: TAP) -> None:
    state = to_published_state_dict(model)
    for name, value in places(model).items():
        assert torch.equal(state[name], value), name


def test_names_do_not_collide(model: TAP) -> None:
    names = list(model.state_dict())
    assert len({to_published_key(name) for name in names}) == len(names)


def test_derived_entries(model: TAP) -> None:
    state = to_published_state_dict(model)
    assert state["pixel_mean"].tolist() == [101.5, 113.25, 127.0]
    np.testing.assert_allclose(state["pixel_rsig"], [1 / 53.5, 1 / 59.25, 1 / 61.0], rtol=1e-7)
    tables = {name: t for name, t in state.items() if name.endswith("rel_pos_embed.index")}
    assert sorted(tables) == [
        f"image_encoder.blocks.{n}.attn.rel_pos_embed.index" for n in range(4)
    ]
    window = 3
    for table in tables.values():
        assert table.dtype == torch.int64
        for query in range(window**2):
            for key in range(window**2):
                dy, dx = query // window - key // window, query % window - key % window
                assert table[query, key] == (dy + 2) * 5 + dx + 2


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_dtype_applies_to_floats_only(model: TAP, dtype: str) -> None:
    for name, value in to_published_state_dict(model, dtype=dtype).items():
        is_integer = name.endswith(("index", "num_batches_tracked"))
        assert value.dtype == (torch.int64 if is_integer else getattr(torch, dtype)), name


def test_rgb_models_are_refused() -> None:
    rgb = TAP(tiny_config(pixels=PixelConfig(channel_order="RGB")))
    with pytest.raises(ValueError, match="holds BGR models only, got an RGB model"):
        to_published_state_dict(rgb)


def test_every_size_is_read_from_the_tensors(model: TAP, arrays: Arrays) -> None:
    before = {name: array.copy() for name, array in arrays.items()}
    found, state = from_published_state_dict(arrays)
    assert found.pixels.mean == (101.5, 113.25, 127.0)
    np.testing.assert_allclose(found.pixels.std, (53.5, 59.25, 61.0), rtol=1e-7)
    assert found.to_json() == TAPConfig(**{**vars(config()), "pixels": found.pixels}).to_json()
    assert state.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value), name
        assert state[name].dtype == value.dtype
    state["image_encoder.pos_embed"].zero_()  # owns its memory
    assert all(np.array_equal(arrays[name], before[name]) for name in before)


def test_other_byte_order_and_memory_order(model: TAP, arrays: Arrays) -> None:
    arrays = {
        name: np.asfortranarray(array.astype(array.dtype.newbyteorder(">"))).reshape(array.shape)
        for name, array in arrays.items()
    }
    _, state = from_published_state_dict(arrays)
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value), name


def test_index_tables_may_be_absent_but_not_different(arrays: Arrays) -> None:
    names = sorted(name for name in arrays if name.endswith("index"))
    arrays[names[1]] = arrays[names[1]].T
    with pytest.raises(ValueError, match=f"tables of another layout: {names[1]}; expected"):
        from_published_state_dict(arrays)
    for name in names:
        del arrays[name]
    assert from_published_state_dict(arrays)[0].window_size == 3


def test_all_misfits_are_reported_at_once_and_sorted(arrays: Arrays) -> None:
    del arrays["image_encoder.norm.weight"], arrays["image_encoder.blocks.2.norm1.bias"]
    arrays["text_decoder.more"] = arrays["image_decoder.extra"] = np.zeros(2)
    arrays["image_decoder.iou_token.weight"] = np.zeros((4, 64))
    arrays["image_encoder.norm.bias"] = np.zeros(22, dtype=np.int64)
    with pytest.raises(ValueError) as caught:
        from_published_state_dict(arrays)
    assert str(caught.value).split("; ")[1:] == [
        "2 missing: image_encoder.blocks.2.norm1.bias, image_encoder.norm.weight",
        "2 unexpected: image_decoder.extra, text_decoder.more",
        "2 misfitting: image_decoder.iou_token.weight is [4, 64] floating-point, "
        "expected [1, 64] floating-point, image_encoder.norm.bias is [22] int64, "
        "expected [22] floating-point",
    ]


def drop(prefix: str) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        for name in [name for name in arrays if name.startswith(prefix)]:
            del arrays[name]

    return change


def put(name: str, value: Any) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.__setitem__(name, value)


TOKENS = "text_decoder.transformer.tok_embeddings.weight"
BROKEN: dict[str, tuple[Callable[[Arrays], Any], str]] = {
    "no text decoder": (
        drop("text_decoder"),
        rf"not the weights of a TAP model; 2 missing: text_.*0.mlp.fc1.weight, {TOKENS} \(found",
    ),
    "other file": (lambda arrays: arrays.clear(), r"11 missing: .* \(found 0 names\)"),
    "no array": (put(TOKENS, [1.0]), rf"1 misfitting: {TOKENS} is no array, expected 2 axes"),
    "axes": (put(TOKENS, np.zeros(43)), rf"{TOKENS} is \(43,\), expected 2 axes"),
    "empty": (put(TOKENS, np.zeros((43, 0))), rf"{TOKENS} is \(43, 0\), expected 2 axes, none"),
    "value": (put("image_encoder.norm.bias", "x"), r"image_encoder.norm.bias is a str, expected"),
    "reciprocal": (put("pixel_rsig", np.array([1.0, 0, 1])), r"pixel_rsig: expected three pos"),
    "mean": (put("pixel_mean", np.zeros(4)), r"mean: expected 3 finite numbers"),
    "grid": (
        put("image_encoder.pos_embed.weight", np.zeros((35, 22))),
        r"pos_embed.weight: expected a square number of entries, got 35",
    ),
    "window": (
        put("image_encoder.blocks.0.attn.rel_pos_embed.weight", np.zeros((2, 24))),
        r"rel_pos_embed.weight: expected a square number of entries, got 24",
    ),
    "depth": (drop("image_encoder.blocks.3."), r"encoder_depth must be a multiple of 4, got 3"),
    "number": (
        put("image_encoder.blocks.99999999.norm1.bias", np.zeros(2)),
        r"several tensors per block, got \d+ for 100000005 blocks",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_makes_no_model_is_refused(arrays: Arrays, tmp_path: Path, name: str) -> None:
    change, words = BROKEN[name]
    change(arrays)
    with pytest.raises(ValueError, match=words):
        from_published_state_dict(arrays)
    path = tmp_path / "broken.pkl"
    path.write_bytes(pickle.dumps(arrays, protocol=4))
    with pytest.raises(ValueError, match=rf"broken\.pkl: .*({words})"):
        read_published_checkpoint(path)


def test_not_a_dict(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="expected a dict of tensor name to array, got list"):
        from_published_state_dict([])  # type: ignore[arg-type]
    path = tmp_path / "list.pkl"
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(ValueError, match=r"list.pkl: checkpoint: expected a dict"):
        read_published_checkpoint(path)


@pytest.mark.skipif(not PARITY.is_dir(), reason=f"needs the parity case in {PARITY}")
def test_parity_checkpoint_and_concepts() -> None:
    facts = json.loads((PARITY / "config.json").read_text())
    found, state = read_published_checkpoint(PARITY / "checkpoint.pkl")
    expected = TAPConfig(
        image_size=facts["image_size"],
        encoder_dim=facts["embed_dim"],
        encoder_depth=facts["depth"],
        encoder_heads=facts["num_heads"],
        encoder_mlp_dim=4 * facts["embed_dim"],
        decoder_dim=facts["image_embed_dim"],
        semantic_dim=facts["sem_embed_dim"],
        text_dim=facts["text_embed_dim"],
        text_depth=facts["text_decoder_depth"],
        text_mlp_dim=4 * facts["text_embed_dim"],
        vocabulary_size=2000,
        max_text_length=facts["text_seq_len"],
        pixels=found.pixels,
    )
    assert found == expected
    np.testing.assert_allclose(found.pixels.mean, PixelConfig().mean, rtol=1e-3)
    np.testing.assert_allclose(found.pixels.std, PixelConfig().std, rtol=1e-3)
    model = lay_out_model(found)
    model.load_state_dict(state, assign=True)
    arrays = load_published_pickle(PARITY / "checkpoint.pkl")
    back = to_published_state_dict(model)
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name].numpy(), array, err_msg=name)
        assert back[name].numpy().dtype == array.dtype
    names, weights = load_published_concepts(PARITY / "concepts.pkl")
    assert weights.shape == (48, len(names)) == (48, facts["num_concepts"])
