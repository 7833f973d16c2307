"""The TAP network: torch only, tensors in the model frame in, tensors out."""

from tokenize_anything.modeling.click_segmenter import ClickOutputs, ClickSegmenter
from tokenize_anything.modeling.image_decoder import (
    AttendedPrompts,
    ImageDecoder,
    RegionOutputs,
    select_mask_index,
)
from tokenize_anything.modeling.image_encoder import ImageEncoder
from tokenize_anything.modeling.prompt_encoder import PromptEncoder
from tokenize_anything.modeling.tap import TAP
from tokenize_anything.modeling.text_decoder import KVCache, TextDecoder
from tokenize_anything.modeling.two_way_transformer import ImageContext
from tokenize_anything.modeling.view_namer import ViewNamer
from tokenize_anything.modeling.view_segmenter import ViewOutputs, ViewSegmenter

__all__ = [
    "TAP",
    "AttendedPrompts",
    "ClickOutputs",
    "ClickSegmenter",
    "ImageContext",
    "ImageDecoder",
    "ImageEncoder",
    "KVCache",
    "PromptEncoder",
    "RegionOutputs",
    "TextDecoder",
    "ViewNamer",
    "ViewOutputs",
    "ViewSegmenter",
    "select_mask_index",
]
