"""Put what the stages of the built-in model learnt into one file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tokenize_anything.build import load_model
from tokenize_anything.checkpoints import save_model
from tokenize_anything.companions import Companions, find_companions
from tokenize_anything.concepts import ConceptVocabulary
from tokenize_anything.text_tokenizer import TextTokenizer
from tokenize_anything.text_towers import MINILM
from tokenize_anything.training import pretrain
from tokenize_anything.training.caption_finetune import CaptionTrainer
from tokenize_anything.training.concept_head import fit_concept_head, name_indices
from tokenize_anything.training.iou_head import collect_iou_samples, fit_iou_head

ROUNDED = ("click_segmenter.", "image_encoder.", "text_decoder.", "view_namer.", "view_segmenter.")


def pack_stages(trainer: CaptionTrainer, trained: Path, path: Path) -> Path:
    """The model of stage 2 with its concepts and tokenizer, and with two heads learnt once more."""
    config = trainer.config
    concepts = ConceptVocabulary.load(Path(config.init_from).with_name(pretrain.CONCEPTS_FILE))
    tokenizer = TextTokenizer.from_file(config.text_tokenizer)
    tensors, metadata = Companions(concepts, tokenizer, concept_space=MINILM).pack()
    model = load_model(trained, device="cpu", dtype="float32")
    rows = np.arange(len(trainer.regions))
    boxes = trainer.token_source().select(rows, np.zeros_like(rows))
    fit_concept_head(model, boxes, name_indices(trainer.regions, concepts), concepts)
    fit_iou_head(model.eval(), collect_iou_samples(model, trainer.records))
    return save_model(model, path, dtype="float16", metadata=metadata, extra_tensors=tensors)


def pack_model(trained: Path, named: Path, path: Path) -> Path:
    """The model with its last captions, and the companions that it had without them."""
    model = load_model(trained, device="cpu", dtype="float32")
    tensors, metadata = find_companions(named, named, None, model.config.vocabulary_size).pack()
    return save_model(
        model, path, dtype="float16", metadata=metadata, extra_tensors=tensors, rounded=ROUNDED
    )
