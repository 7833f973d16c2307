"""Models from names and files: the right weights, dtype, device and mode, ready to run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import tiny_config, tiny_pixels, tiny_prompts, tiny_tap
from tokenize_anything import build
from tokenize_anything.build import (
    build_model,
    choose_device,
    choose_dtype,
    load_model,
    locate_checkpoint,
)
from tokenize_anything.checkpoints import save_model
from tokenize_anything.config import PixelConfig, tap_tiny
from tokenize_anything.modeling import TAP
from tokenize_anything.published_format import read_published_checkpoint, save_published_checkpoint

REPO = Path(__file__).parents[1]
PARITY = Path(__file__).parents[2] / "shared" / "parity"
CONFIG = tiny_config(max_text_length=40)


@pytest.fixture(scope="module")
def model() -> TAP:
    return tiny_tap(CONFIG).half().float()  # values that float16 holds


@pytest.fixture(scope="module")
def native(model: TAP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(model, tmp_path_factory.mktemp("models") / "a.safetensors", dtype="float16")


@pytest.fixture(scope="module")
def published(model: TAP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_published_checkpoint(model, tmp_path_factory.mktemp("models") / "a.pkl")


def outputs(model: TAP) -> list[torch.Tensor]:
    with torch.no_grad():
        features = model.encode_images(tiny_pixels(CONFIG))
        regions = model.decode_regions(model.prepare_regions(features), *tiny_prompts(CONFIG))
        token_ids = torch.tensor([[1, 5, 7, 2]]).expand(len(regions), -1)
        logits = model.score_captions(regions.semantic_tokens[:, 0], token_ids)
    return [features, regions.mask_logits, regions.semantic_embeddings, logits]


@pytest.mark.parametrize("kind", ["native", "published"])
def test_a_file_rebuilds_its_own_model(
    model: TAP, kind: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(kind)
    loaded = load_model(path, device="cpu")
    assert type(loaded) is TAP
    assert not any(module.training for module in loaded.modules())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert not any(value.is_meta for value in [*loaded.parameters(), *loaded.buffers()])
    assert loaded.dtype == torch.float32
    buffers, parameters = dict(loaded.named_buffers()), dict(loaded.named_parameters())
    assert parameters.keys() == dict(model.named_parameters()).keys()
    for name, value in model.named_buffers():
        assert torch.equal(buffers[name], value), name
    for name, value in model.named_parameters():
        assert torch.equal(parameters[name], value), name
    for found, expected in zip(outputs(loaded), outputs(model), strict=True):
        assert torch.equal(found, expected)


def test_a_loaded_model_can_be_trained_and_saved_again(native: Path, tmp_path: Path) -> None:
    loaded: Any = load_model(str(native), device="cpu", drop_path=0.3, text_dropout=0.2).train()
    assert loaded.image_encoder.blocks[-1].drop_path.p == 0.3
    assert loaded.text_decoder.blocks[0].dropout.p == 0.2
    assert loaded.image_decoder.transformer.dropout.p == 0.0
    before = native.read_bytes()
    loaded.encode_images(tiny_pixels(CONFIG)).square().mean().backward()
    torch.optim.SGD(loaded.parameters(), 0.1).step()
    assert loaded.image_encoder.neck[0][1].num_batches_tracked == 1
    again = load_model(save_model(loaded, tmp_path / "b.safetensors"), device="cpu")
    for name, value in loaded.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert native.read_bytes() == before


@pytest.mark.parametrize("kind", ["native", "published"])
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("auto", torch.float32),
        ("float32", torch.float32),
        ("float16", torch.float16),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_dtype(
    kind: str, dtype: Any, expected: torch.dtype, request: pytest.FixtureRequest
) -> None:
    loaded = load_model(request.getfixturevalue(kind), device="cpu", dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {expected}
    assert loaded.prompt_encoder.position_encoding.coord_matrix.dtype == torch.float32


def test_dtype_follows_the_device() -> None:
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert choose_dtype("auto", torch.device("mps")) == torch.float32
    assert choose_dtype("float16", torch.device("cpu")) == torch.float16
    with pytest.raises(ValueError, match=r"dtype: expected one of .*, got 'half'"):
        choose_dtype("half", torch.device("cpu"))


def test_device() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    best = choose_device()
    assert (best.type == "cuda") == torch.cuda.is_available()
    for name, is_present in (
        ("cuda", torch.cuda.is_available()),
        ("mps", torch.backends.mps.is_available()),
    ):
        if not is_present:
            with pytest.raises(ValueError, match=rf"device: {name} is not available to torch here"):
                load_model("tap_tiny", device=name)
    for wrong in ("gpu", 3.5):
        with pytest.raises(ValueError, match=f"device: expected 'auto', .* got {wrong!r}"):
            choose_device(wrong)  # type: ignore[arg-type]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda(model: TAP, native: Path) -> None:
    loaded = load_model(native)
    tensors = [*loaded.parameters(), *loaded.buffers()]
    assert {value.device.type for value in tensors} == {"cuda"}
    bfloat16 = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    assert {parameter.dtype for parameter in loaded.parameters()} == {bfloat16}
    exact = load_model(native, device="cuda", dtype="float32")
    with torch.no_grad():
        found = exact.encode_images(tiny_pixels(CONFIG).cuda()).cpu()
    torch.testing.assert_close(found, outputs(model)[0], rtol=1e-2, atol=1e-2)


def test_a_wanted_configuration_is_compared(native: Path) -> None:
    wanted = tiny_config(max_text_length=40, pixels=PixelConfig(mean=(1, 2, 3)))
    assert load_model(native, device="cpu", config=wanted).config == CONFIG
    wanted = tiny_config(text_depth=5, semantic_dim=31)
    with pytest.raises(ValueError) as caught:
        load_model(native, device="cpu", config=wanted)
    assert (
        "the weights are of another size than asked for: semantic_dim is 29, expected 31; "
        "text_depth is 3, expected 5; max_text_length is 40, expected 11. Leave out"
    ) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("tap_vit_x", ValueError, r"unknown model 'tap_vit_x'; did you mean 'tap_vit_.'\? Known "),
        ("tap-tiny", ValueError, r"did you mean 'tap_tiny'\?"),
        ("vit_b", ValueError, r"did you mean 'tap_vit_b'\?"),
        ("qqqq", ValueError, r"unknown model 'qqqq'. Known names are \['tap_tiny', 'tap_vit_b',"),
        (
            "tap_vit_h.v1_0",
            ValueError,
            r"unknown model 'tap_vit_h.v1_0'; did you mean 'tap_vit_",
        ),
        ("absent.safetensors", FileNotFoundError, r"absent.safetensors: no such file"),
        ("folder/absent.pkl", FileNotFoundError, r"absent.pkl: no such file"),
        (
            "model.pth",
            ValueError,
            r"model.pth: expected a .safetensors file, or a published-format",
        ),
        ("", ValueError, r"expected a .safetensors file|unknown model ''"),
        (None, TypeError, r"name_or_path: expected a name or a path, got NoneType"),
        (b"tap_tiny", TypeError, r"got bytes"),
    ],
)
def test_names_and_paths_that_lead_nowhere(name: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        load_model(name, device="cpu")


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "weights.dat"
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"weights.dat: expected a .safetensors file, .*`tap conv"):
        load_model(path)


def test_a_damaged_file_names_itself(native: Path, published: Path, tmp_path: Path) -> None:
    for source in (native, published):
        path = tmp_path / source.name
        path.write_bytes(source.read_bytes()[:-1000])
        with pytest.raises(ValueError, match=rf"{source.name}: not a .* truncated or damaged"):
            load_model(path, device="cpu")


def test_missing_built_in_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build.BUILT_IN_WEIGHTS, "tap_tiny", "weights/absent.safetensors")
    with pytest.raises(FileNotFoundError, match=r"tap_tiny: .* \(expected .*absent.safetensors\)"):
        load_model("tap_tiny")


def test_built_in_weights() -> None:
    path = locate_checkpoint("tap_tiny")
    loaded = load_model("tap_tiny", device="cpu", config=tap_tiny())
    assert path.name == "tap_tiny.safetensors"
    assert loaded.dtype == torch.float32


@pytest.mark.parametrize("rate", ["drop_path", "decoder_dropout", "text_dropout"])
@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_rates(native: Path, rate: str, value: float) -> None:
    rates: Any = {rate: value}
    with pytest.raises(ValueError, match=rf"{rate}: expected a rate of at least 0 and below 1"):
        build_model(CONFIG, **rates)
    with pytest.raises(ValueError, match=rf"{rate}: expected a rate"):
        load_model(native, device="cpu", **rates)


def test_a_fresh_model() -> None:
    torch.manual_seed(3)
    fresh: Any = build_model(CONFIG, drop_path=0.25, decoder_dropout=0.5, text_dropout=0.125)
    torch.manual_seed(3)
    reference = TAP(CONFIG)
    assert not any(module.training for module in fresh.modules())
    assert fresh.image_encoder.blocks[-1].drop_path.p == 0.25
    assert fresh.image_decoder.transformer.dropout.p == 0.5
    assert fresh.text_decoder.blocks[0].dropout.p == 0.125
    for name, value in reference.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name


def test_loading_does_not_import_the_compiler(native: Path) -> None:
    script = (
        "import sys; from tokenize_anything.build import load_model; "
        "load_model(sys.argv[1], device='cpu'); assert 'torch._dynamo' not in sys.modules"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script, str(native)], cwd=REPO, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr


def parity_pixels() -> torch.Tensor:
    """The two photos as the reference saw them: Pillow bilinear, padded with the whole mean."""
    config, _ = read_published_checkpoint(PARITY / "checkpoint.pkl")
    canvases = np.empty((2, 512, 512, 3), np.uint8)
    canvases[:] = (103, 116, 123)
    for canvas, name in zip(canvases, ("street.png", "wide.png"), strict=True):
        photo = Image.open(PARITY / name).convert("RGB")
        scale = 512 / max(photo.size)
        width, height = (int(side * scale + 0.5) for side in photo.size)
        resized = photo.resize((width, height), Image.Resampling.BILINEAR)
        canvas[:height, :width] = np.asarray(resized)[..., ::-1]
    mean, std = np.array([config.pixels.mean, config.pixels.std], np.float32)
    normal = (canvases.astype(np.float32) - mean) / std
    return torch.from_numpy(np.ascontiguousarray(normal.transpose(0, 3, 1, 2)))


def assert_close(found: torch.Tensor, expected: np.ndarray, name: str) -> None:
    error = np.abs(found.numpy() - expected).max() / np.abs(expected).max()
    assert error < 1e-4, f"{name}: relative error {error:.2e}"


@pytest.mark.skipif(not PARITY.is_dir(), reason=f"needs the parity case in {PARITY}")
def test_parity_with_the_reference_implementation() -> None:
    loaded = load_model(PARITY / "checkpoint.pkl", device="cpu")
    expected = np.load(PARITY / "expected.npz")
    pixels = parity_pixels()
    assert_close(pixels[:, :, ::64, ::64], expected["img_input_slice"], "pixels")
    with torch.no_grad():
        features = loaded.encode_images(pixels)
        context = loaded.prepare_regions(features)
        channels_last = features.permute(0, 2, 3, 1)[:, None, ::2, ::2]
        assert_close(channels_last, expected["img_embeds"], "img_embeds")
        for name in ("point", "box", "box_and_points", "sketch"):
            points = torch.from_numpy(expected[f"{name}.points"])
            scales = torch.from_numpy(np.float32(expected["scales"]))[:, None, None]
            found = loaded.decode_regions(context, points[..., :2] * scales, points[..., 2].long())
            for key, value in {
                "iou_pred": found.iou_scores,
                "mask_pred": found.mask_logits[..., ::4, ::4],
                "sem_tokens": found.semantic_tokens.unsqueeze(2),
                "sem_embeds": found.semantic_embeddings,
            }.items():
                assert_close(value, expected[f"{name}.{key}"], f"{name}.{key}")
            assert found.mask_index.tolist() == expected[f"{name}.mask_index"].tolist()
