"""Four photos are learnt by heart: masks from boxes and from points. Captions are in
test_caption_finetune.py."""

from __future__ import annotations

import csv
from pathlib import Path

from tests.data.photos import write_photos
from tests.tiny import tiny_config
from tests.training.tiny_runs import data_config, pretrain_config
from tokenize_anything.data.augment import AugmentConfig
from tokenize_anything.data.prompt_sampling import PromptSamplingConfig
from tokenize_anything.data.region_dataset import RegionSamplingConfig
from tokenize_anything.training.config import MaskValidationConfig
from tokenize_anything.training.optimizer import OptimizerConfig
from tokenize_anything.training.pretrain import Pretrainer

STEPS = 140
MODEL = tiny_config(
    image_size=64, patch_size=4, window_size=8, encoder_dim=32, encoder_mlp_dim=64,
    decoder_mlp_dim=64,
)  # fmt: skip


def test_the_masks_of_four_photos_are_learnt(tmp_path: Path) -> None:
    """Of the averaged model, at the size of the photos, from the box and from one point of each."""
    folder = tmp_path / "set"
    write_photos(folder)
    config = pretrain_config(
        folder, tmp_path / "run", model=MODEL, sine_positions=1.0, concept_loss="none",
        augment=AugmentConfig(scale_range=(1.0, 1.0), flip=0.0, colour=0.0, anchored=True),
        sampling=RegionSamplingConfig(
            regions_per_image=2, box_only_weight=1e-6, whole_image_weight=1e-6, mask_stride=1
        ),
        prompts=PromptSamplingConfig(box_noise=0.0),
        optimizer=OptimizerConfig(peak_lr=3e-3, warmup_steps=20, weight_decay=0.0),
        validation=MaskValidationConfig(data=data_config(folder), every=STEPS),
        batch_size=4, num_steps=280, stop_step=STEPS, dice_weight=20.0, drop_path=0.0,
        decoder_dropout=0.0, second_stage_probability=0.0, ema_decay=0.9,
    )  # fmt: skip
    Pretrainer(config).run()
    with (tmp_path / "run" / "validation.csv").open(newline="") as file:
        (scores,) = csv.DictReader(file)
    assert float(scores["box_iou"]) > 0.9
    assert float(scores["point_iou"]) > 0.8  # 0.88 or more, by the processor
