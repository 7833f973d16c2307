"""The image encoder from a plain ViT: what is copied, what stays, what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.tiny import tiny_config, tiny_tap
from tokenize_anything.config import PixelConfig, TAPConfig
from tokenize_anything.image_transform import prepare_images
from tokenize_anything.modeling import TAP
from tokenize_anything.torchvision_operators import ensure_torchvision_operators
from tokenize_anything.training.initialize import resize_position_table
from tokenize_anything.training.vit_weights import initialize_encoder

CONFIG = tiny_config()  # 6x6 patches of 8 pixels, 4 blocks of width 22


def vit_state(config: TAPConfig = CONFIG, grid: int = 3, **more: Tensor) -> dict[str, Tensor]:
    """What MAE's pre-training leaves, with random numbers: class token, decoder and all."""
    generator = torch.Generator().manual_seed(4)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    dim, hidden = config.encoder_dim, config.encoder_mlp_dim
    state = {
        "cls_token": noise(1, 1, dim),
        "mask_token": noise(1, 1, 5),
        "pos_embed": noise(1, 1 + grid**2, dim),
        "patch_embed.proj.weight": noise(dim, 3, config.patch_size, config.patch_size),
        "patch_embed.proj.bias": noise(dim),
        "norm.weight": noise(dim),
        "norm.bias": noise(dim),
        "decoder_blocks.0.norm1.weight": noise(5),
        "head.weight": noise(5, dim),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "norm1.weight": (dim,), "norm1.bias": (dim,), "norm2.weight": (dim,), "norm2.bias": (dim,),
        "attn.qkv.weight": (3 * dim, dim), "attn.qkv.bias": (3 * dim,),
        "attn.proj.weight": (dim, dim), "attn.proj.bias": (dim,),
        "mlp.fc1.weight": (hidden, dim), "mlp.fc1.bias": (hidden,),
        "mlp.fc2.weight": (dim, hidden), "mlp.fc2.bias": (dim,),
    }  # fmt: skip
    for block in range(config.encoder_depth):
        state |= {f"blocks.{block}.{name}": noise(*shape) for name, shape in shapes.items()}
    return state | more


def check_encoder(model: TAP, state: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    """Every tensor of the model is the ViT's or what it was."""
    copied = 0
    for name, value in model.state_dict().items():
        inner = name.removeprefix("image_encoder.")
        if name == "image_encoder.pos_embed":
            expected = resize_position_table(state["pos_embed"][0, 1:], model.config.grid_size)
        elif name == "image_encoder.patch_embed.weight":
            expected = state["patch_embed.proj.weight"].flip(1)
        elif name == "image_encoder.patch_embed.bias":
            expected = state["patch_embed.proj.bias"]
        elif name != inner and inner in state:
            expected = state[inner]
        else:
            expected = before[name]
            copied -= 1
        copied += 1
        torch.testing.assert_close(value, expected, rtol=0, atol=0, msg=name)
    assert copied == 3 + 2 + 12 * CONFIG.encoder_depth


@pytest.mark.parametrize("key", ["model", "state_dict", None])
def test_a_torch_file_fills_the_encoder_alone(tmp_path: Path, key: str | None) -> None:
    state = vit_state()
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / "mae.pth")
    model = tiny_tap()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    initialize_encoder(model, str(tmp_path / "mae.pth"))
    check_encoder(model, state, before)


def test_a_safetensors_file_fills_it_too(tmp_path: Path) -> None:
    state = vit_state(grid=6)
    save_file(state, tmp_path / "mae.safetensors")
    model = tiny_tap()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    initialize_encoder(model, str(tmp_path / "mae.safetensors"))
    check_encoder(model, state, before)
    table = model.image_encoder.pos_embed.detach()
    assert torch.equal(table, state["pos_embed"][0, 1:])  # of this size already


def test_a_photo_passes_the_patches_as_in_rgb(tmp_path: Path) -> None:
    """BGR pixels through turned filters are RGB pixels through MAE's."""
    state = vit_state()
    torch.save(state, tmp_path / "mae.pth")
    photo = torch.randint(0, 256, (48, 48, 3), dtype=torch.uint8).numpy()
    for order in ("BGR", "RGB"):
        mean, std = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)
        turned: dict[str, Any] = {"channel_order": order, "mean": mean, "std": std}
        if order == "RGB":
            turned |= {"mean": mean[::-1], "std": std[::-1]}
        model = tiny_tap(tiny_config(pixels=PixelConfig(**turned)))
        initialize_encoder(model, str(tmp_path / "mae.pth"))
        pixels, _ = prepare_images([photo], model.config)
        found = model.image_encoder.patch_embed(pixels)
        rgb = (torch.from_numpy(photo).float() - torch.tensor(mean[::-1])) / torch.tensor(std[::-1])
        expected = torch.nn.functional.conv2d(
            rgb.permute(2, 0, 1)[None], state["patch_embed.proj.weight"],
            state["patch_embed.proj.bias"], stride=8,
        )  # fmt: skip
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


# --- timm ----------------------------------------------------------------------------------------


def plain_vit(config: TAPConfig) -> Any:
    ensure_torchvision_operators()
    pytest.importorskip("timm", reason="timm is not installed")
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(3)
    return VisionTransformer(
        img_size=config.image_size, patch_size=config.patch_size, embed_dim=config.encoder_dim,
        depth=config.encoder_depth, num_heads=config.encoder_heads,
        mlp_ratio=config.encoder_mlp_dim / config.encoder_dim, num_classes=0,
    ).eval()  # fmt: skip


def test_blocks_compute_what_timm_computes(tmp_path: Path) -> None:
    """With one window over the whole grid, tokens pass the first blocks as in timm's model."""
    config = tiny_config(window_size=6, encoder_mlp_dim=44, pixels=PixelConfig(channel_order="RGB"))
    vit = plain_vit(config)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    model = TAP(config).eval()
    initialize_encoder(model, str(tmp_path / "vit.pth"))
    tokens = torch.randn(2, 36, config.encoder_dim)
    for ours, theirs in zip(model.image_encoder.blocks, vit.blocks, strict=True):
        torch.testing.assert_close(ours(tokens), theirs(tokens), rtol=1e-3, atol=1e-4)
    table = vit.pos_embed[0, 1:]
    torch.testing.assert_close(model.image_encoder.pos_embed, torch.nn.Parameter(table.detach()))


def test_a_name_of_timm_is_looked_up_there(monkeypatch: pytest.MonkeyPatch) -> None:
    vit = plain_vit(tiny_config(encoder_mlp_dim=44))
    import timm

    asked = []

    def create_model(name: str, **options: Any) -> Any:  # the real one would download
        asked.append((name, options))
        return vit

    monkeypatch.setattr(timm, "create_model", create_model)
    model = TAP(tiny_config(encoder_mlp_dim=44))
    initialize_encoder(model, "timm/vit_base_patch16_224.mae")
    assert asked == [("vit_base_patch16_224.mae", {"pretrained": True, "num_classes": 0})]
    expected = vit.state_dict()["blocks.2.attn.qkv.weight"]
    assert torch.equal(model.image_encoder.blocks[2].attn.qkv.weight, expected)


def test_a_name_timm_does_not_know_is_refused() -> None:
    plain_vit(tiny_config(encoder_mlp_dim=44))
    with pytest.raises(
        ValueError, match=r"timm has no weights for 'vit_of_mine'.*patch16_224\.mae"
    ):
        initialize_encoder(tiny_tap(), "timm/vit_of_mine")


# --- what does not fit ---------------------------------------------------------------------------


def test_other_sizes_are_refused_and_listed(tmp_path: Path) -> None:
    state = vit_state(tiny_config(encoder_dim=26, encoder_depth=8))
    del state["blocks.1.norm1.bias"]
    torch.save(state, tmp_path / "mae.pth")
    model = tiny_tap()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"mae\.pth is a ViT of other sizes than the encoder"
    ) as error:
        initialize_encoder(model, str(tmp_path / "mae.pth"))
    message = str(error.value)
    for words in ("blocks.1.norm1.bias is missing", "blocks.7.mlp.fc2.bias is not in the encoder",
                  "norm.weight is (26,), expected (22,)"):  # fmt: skip
        assert words in message
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


@pytest.mark.parametrize(
    "content, message",
    [
        ({"a": torch.zeros(2)}, "expected a plain ViT with pos_embed and patch_embed.proj"),
        (torch.zeros(2), "expected tensors by name in .*, got a Tensor"),
        ({"model": Path("x")}, "is damaged, or holds more than tensors"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=f"init_encoder_from: .*{message}"):
        initialize_encoder(tiny_tap(), str(tmp_path / "other.pth"))


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
def test_a_damaged_or_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"no file at .*{name}; write timm/NAME"):
        initialize_encoder(tiny_tap(), str(tmp_path / name))
    (tmp_path / name).write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ValueError, match=rf"{name} is damaged"):
        initialize_encoder(tiny_tap(), str(tmp_path / name))
