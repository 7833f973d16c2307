"""Put what the stages of the built-in model learnt into one file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tokenize_anything.build import load_model
from tokenize_anything.checkpoints import save_model
from tokenize_anything.companions import Companions, find_companions
from tokenize_anything.concepts import ConceptVocabulary
from tokenize_anything.data.coco_lvis import read_regions
from tokenize_anything.text_tokenizer import TextTokenizer
from tokenize_anything.text_towers import MINILM
from tokenize_anything.training import pretrain
from tokenize_anything.training.caption_finetune import CaptionTrainer
from tokenize_anything.training.concept_head import fit_concept_head, name_indices
from tokenize_anything.training.iou_head import collect_iou_samples, fit_iou_head
from tokenize_anything.training.view_concepts import collect_view_features, fit_view_concepts
from tokenize_anything.training.view_config import ViewConfig


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


def pack_outlines(config: ViewConfig, trained: Path, path: Path) -> Path:
    """The model with outlines and its companions, one head of the outlines learnt once more."""
    model = load_model(trained, device="cpu", dtype="float32")
    own = find_companions(trained, trained, None, model.config.vocabulary_size)
    assert own.concepts is not None
    records, texts = read_regions(config.data.annotation_files, config.data.image_folder)
    features, names = collect_view_features(model, records, texts, own.concepts)
    fit_view_concepts(model, features, names, own.concepts)
    tensors, metadata = own.pack()
    return save_model(model, path, dtype="float16", metadata=metadata, extra_tensors=tensors)
