"""The network once more, in plain float64: one image, one prompt, one head at a time.

Written from the description of the model, not from the package; every function takes `weights`, a
state dict in float64, and the prefix of the names it reads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]


def weights_of(module: nn.Module) -> Weights:
    """State dict in float64."""
    return {name: value.double() for name, value in module.state_dict().items()}


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def layer_norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    """Over the last axis, eps 1e-5."""
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    """The exact form, with the error function."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def relu(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def softmax(x: Tensor) -> Tensor:
    """Of a vector."""
    powers = (x - x.max()).exp()
    return powers / powers.sum()


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    *,
    is_causal: bool = False,
) -> Tensor:
    """One head: query (Lq,d), key and value (Lk,d), bias (Lq,Lk) to (Lq,d)."""
    rows = []
    for index, row in enumerate(query):
        scores = key @ row / math.sqrt(len(row))
        if bias is not None:
            scores = scores + bias[index]
        last = index + 1 if is_causal else len(key)
        rows.append(softmax(scores[:last]) @ value[:last])
    return torch.stack(rows)


def projected_attention(
    query: Tensor, key: Tensor, value: Tensor, weights: Weights, name: str, *, num_heads: int
) -> Tensor:
    """Separate projections, heads in consecutive channels, output projection."""
    query = linear(query, weights, f"{name}.q_proj")
    key = linear(key, weights, f"{name}.k_proj")
    value = linear(value, weights, f"{name}.v_proj")
    size = query.shape[-1] // num_heads
    heads = [
        attend(*(x[:, head * size : (head + 1) * size] for x in (query, key, value)))
        for head in range(num_heads)
    ]
    return linear(torch.cat(heads, dim=-1), weights, f"{name}.proj")


# --- image decoder ---


def two_way_transformer(
    tokens: Tensor, features: Tensor, feature_codes: Tensor, weights: Weights, depth: int
) -> tuple[Tensor, Tensor]:
    """Decode tokens (T,C) with features and feature_codes (h*w,C)."""
    codes, num_heads = tokens, tokens.shape[-1] // 32
    for index in range(depth):
        block = f"blocks.{index}"

        def attention(q: Tensor, k: Tensor, v: Tensor, name: str, block: str = block) -> Tensor:
            return projected_attention(q, k, v, weights, f"{block}.{name}", num_heads=num_heads)

        if index == 0:
            tokens = attention(tokens, tokens, tokens, "self_attn")
        else:
            tokens = tokens + attention(tokens + codes, tokens + codes, tokens, "self_attn")
        tokens = layer_norm(tokens, weights, f"{block}.norm1")
        tokens = tokens + attention(
            tokens + codes, features + feature_codes, features, "token_to_image"
        )
        tokens = layer_norm(tokens, weights, f"{block}.norm2")
        hidden = relu(linear(tokens, weights, f"{block}.mlp.fc1"))
        tokens = layer_norm(
            tokens + linear(hidden, weights, f"{block}.mlp.fc2"), weights, f"{block}.norm3"
        )
        features = features + attention(
            features + feature_codes, tokens + codes, tokens, "image_to_token"
        )
        features = layer_norm(features, weights, f"{block}.norm4")
    tokens = tokens + projected_attention(
        tokens + codes,
        features + feature_codes,
        features,
        weights,
        "final_token_to_image",
        num_heads=num_heads,
    )
    return layer_norm(tokens, weights, "norm"), features


def prediction_head(x: Tensor, weights: Weights, name: str) -> Tensor:
    x = relu(linear(x, weights, f"{name}.layers.0"))
    x = relu(linear(x, weights, f"{name}.layers.1"))
    return linear(x, weights, f"{name}.layers.2")


def double_size(x: Tensor, weights: Weights, name: str) -> Tensor:
    """Transposed convolution 2x2 with stride 2: each pixel of (C,h,w) becomes a 2x2 patch."""
    kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]  # (C,out,2,2)
    _, height, width = x.shape
    out = torch.zeros(len(bias), 2 * height, 2 * width, dtype=x.dtype)
    for row in range(2 * height):
        for column in range(2 * width):
            pixel = x[:, row // 2, column // 2]
            out[:, row, column] = pixel @ kernel[:, :, row % 2, column % 2] + bias
    return out


def image_decoder(
    features: Tensor, grid_encoding: Tensor, points: Tensor, weights: Weights, depth: int
) -> dict[str, Tensor]:
    """One prompt: features and grid_encoding (C,h,w), points (N,C)."""
    dim, height, width = features.shape
    names = ("semantic_tokens", "iou_token", "mask_tokens")
    tokens = torch.cat([*(weights[name] for name in names), points])
    start = "transformer."
    inner = {name.removeprefix(start): value for name, value in weights.items()}
    tokens, pixels = two_way_transformer(
        tokens, features.reshape(dim, -1).T, grid_encoding.reshape(dim, -1).T, inner, depth
    )
    upscaled = double_size(pixels.T.reshape(dim, height, width), weights, "upscale1")
    upscaled = layer_norm(upscaled.permute(1, 2, 0), weights, "upscale_norm").permute(2, 0, 1)
    upscaled = gelu(double_size(gelu(upscaled), weights, "upscale2"))
    masks = []
    for slot in range(4):
        per_pixel = prediction_head(tokens[5 + slot], weights, f"mask_heads.{slot}")
        masks.append((per_pixel[:, None, None] * upscaled).sum(0))
    return {
        "mask_logits": torch.stack(masks),
        "iou_scores": prediction_head(tokens[4], weights, "iou_head"),
        "mask_tokens": tokens[5:9],
        "semantic_tokens": tokens[:4],
        "semantic_embeddings": prediction_head(tokens[:4], weights, "semantic_head"),
    }


# --- image encoder ---


def convolution(x: Tensor, kernel: Tensor, padding: int) -> Tensor:
    """(C,h,w) with kernel (out,C,k,k), stride 1, no bias."""
    size = kernel.shape[-1]
    _, height, width = x.shape
    padded = torch.zeros(len(x), height + 2 * padding, width + 2 * padding, dtype=x.dtype)
    padded[:, padding : padding + height, padding : padding + width] = x
    out = torch.zeros(len(kernel), height, width, dtype=x.dtype)
    for row in range(height):
        for column in range(width):
            window = padded[:, row : row + size, column : column + size]
            out[:, row, column] = (kernel * window).flatten(1).sum(1)
    return out


def batch_norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    """With running statistics, eps 1e-5, channels first."""
    mean, var = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
    scale = weights[f"{name}.weight"] / (var + 1e-5).sqrt()
    return (x - mean[:, None, None]) * scale[:, None, None] + weights[f"{name}.bias"][:, None, None]


def conv_norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    kernel = weights[f"{name}.0.weight"]
    return batch_norm(convolution(x, kernel, kernel.shape[-1] // 2), weights, f"{name}.1")


def window_bias(table: Tensor, window_size: int) -> Tensor:
    """Bias table ((2w-1)²) of one head to (w², w²), query by key."""
    side = 2 * window_size - 1
    bias = torch.zeros(window_size**2, window_size**2, dtype=table.dtype)
    for query in range(window_size**2):
        for key in range(window_size**2):
            dy = query // window_size - key // window_size
            dx = query % window_size - key % window_size
            bias[query, key] = table[(dy + window_size - 1) * side + dx + window_size - 1]
    return bias


def window_attention(
    x: Tensor, weights: Weights, name: str, num_heads: int, window_size: int
) -> Tensor:
    """Self-attention of one window (w²,E)."""
    query, key, value = linear(x, weights, f"{name}.qkv").chunk(3, dim=-1)
    size = x.shape[-1] // num_heads
    heads = []
    for head in range(num_heads):
        part = slice(head * size, (head + 1) * size)
        bias = window_bias(weights[f"{name}.position_bias.weight"][head], window_size)
        heads.append(attend(query[:, part], key[:, part], value[:, part], bias))
    return linear(torch.cat(heads, dim=-1), weights, f"{name}.proj")


def image_encoder(
    pixels: Tensor, weights: Weights, *, patch: int, window: int, depth: int, num_heads: int
) -> Tensor:
    """One image (3,S,S) to (C,h,w)."""
    side = pixels.shape[-1] // patch
    kernel, bias = weights["patch_embed.weight"], weights["patch_embed.bias"]
    x = torch.zeros(side, side, len(bias), dtype=pixels.dtype)
    for row in range(side):
        for column in range(side):
            cut = pixels[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            position = weights["pos_embed"][row * side + column]
            x[row, column] = (kernel * cut).flatten(1).sum(1) + bias + position
    for index in range(depth):
        name = f"blocks.{index}"
        for row in range(0, side, window):
            for column in range(0, side, window):
                part = (slice(row, row + window), slice(column, column + window))
                tokens = x[part].reshape(window**2, -1)
                normed = layer_norm(tokens, weights, f"{name}.norm1")
                tokens = tokens + window_attention(
                    normed, weights, f"{name}.attn", num_heads, window
                )
                hidden = linear(
                    layer_norm(tokens, weights, f"{name}.norm2"), weights, f"{name}.mlp.fc1"
                )
                tokens = tokens + linear(gelu(hidden), weights, f"{name}.mlp.fc2")
                x[part] = tokens.reshape(window, window, -1)
        if index == depth - 1:
            x = layer_norm(x, weights, "norm")
        if (index + 1) % (depth // 4) == 0:
            x = x + cross_window(x, weights, f"cross_window.{(index + 1) // (depth // 4) - 1}")
    return conv_norm(conv_norm(x.permute(2, 0, 1), weights, "neck.0"), weights, "neck.1")


def cross_window(x: Tensor, weights: Weights, name: str) -> Tensor:
    """The branch beside the residual, (h,w,E)."""
    x = gelu(conv_norm(x.permute(2, 0, 1), weights, f"{name}.conv1"))
    x = gelu(conv_norm(x, weights, f"{name}.conv2"))
    return conv_norm(x, weights, f"{name}.conv3").permute(1, 2, 0)


# --- text decoder ---


def rotate(x: Tensor) -> Tensor:
    """Rotary code of one head (L,d): channels 2i, 2i+1 form a complex number, turned by the row."""
    half = x.shape[-1] // 2
    numbers = torch.complex(x[:, 0::2], x[:, 1::2])
    for row in range(len(x)):
        for pair in range(half):
            angle = row * 10000.0 ** (-pair / half)
            numbers[row, pair] *= complex(math.cos(angle), math.sin(angle))
    return torch.stack([numbers.real, numbers.imag], dim=-1).flatten(1)


def text_decoder(semantic_token: Tensor, token_ids: Tensor, weights: Weights, depth: int) -> Tensor:
    """One caption: semantic_token (C,), token_ids (L,) to logits (L,V)."""
    visual = linear(semantic_token, weights, "visual_proj")
    x = torch.cat([visual[None], weights["word_embedding.weight"][token_ids]])
    num_heads = x.shape[-1] // 64
    for index in range(depth):
        name = f"blocks.{index}"
        normed = layer_norm(x, weights, f"{name}.norm1")
        query, key, value = linear(normed, weights, f"{name}.qkv").chunk(3, dim=-1)
        heads = []
        for head in range(num_heads):
            part = slice(head * 64, (head + 1) * 64)
            heads.append(
                attend(rotate(query[:, part]), rotate(key[:, part]), value[:, part], is_causal=True)
            )
        x = x + linear(torch.cat(heads, dim=-1), weights, f"{name}.proj")
        hidden = gelu(linear(layer_norm(x, weights, f"{name}.norm2"), weights, f"{name}.mlp.fc1"))
        x = x + linear(hidden, weights, f"{name}.mlp.fc2")
    return linear(layer_norm(x, weights, "norm"), weights, "word_proj")[1:]
