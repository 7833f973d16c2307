"""Tokenize anything: mask, concept, caption and region token for any point, box, sketch or mask."""

from tokenize_anything.build import build_model, load_model
from tokenize_anything.concepts import ConceptVocabulary
from tokenize_anything.config import PixelConfig, TAPConfig
from tokenize_anything.everything_config import EverythingConfig
from tokenize_anything.modeling import TAP, RegionOutputs
from tokenize_anything.predictor import EncodedImage, TAPPredictor
from tokenize_anything.prompts import PointLabel, PointPrompts
from tokenize_anything.regions import RegionPredictions
from tokenize_anything.text_generation import GenerationConfig
from tokenize_anything.text_tokenizer import TextTokenizer

__version__ = "0.1.0"

__all__ = [
    "TAP",
    "ConceptVocabulary",
    "EncodedImage",
    "EverythingConfig",
    "GenerationConfig",
    "PixelConfig",
    "PointLabel",
    "PointPrompts",
    "RegionOutputs",
    "RegionPredictions",
    "TAPConfig",
    "TAPPredictor",
    "TextTokenizer",
    "build_model",
    "load_model",
]
