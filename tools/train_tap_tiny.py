"""Train the built-in model: two stages, two heads, outlines, clicks, names, captions; one file.

    python tools/train_tap_tiny.py --data DIR --out OUT

DIR holds train.json, train_boxes.json and images/. What is finished in OUT is not done again.
`--share 0.02` takes that share of all steps, to see the recipe through before it takes a day.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from pack_tap_tiny import pack_model, pack_stages
from recipe_files import Recipe

from tokenize_anything.semantic_sa1b.text_space import embed_texts_cached
from tokenize_anything.training import pretrain
from tokenize_anything.training.caption_config import CaptionConfig
from tokenize_anything.training.caption_finetune import CaptionTrainer
from tokenize_anything.training.caption_tokenizer import train_caption_tokenizer
from tokenize_anything.training.click_config import ClickConfig
from tokenize_anything.training.click_training import ClickTrainer
from tokenize_anything.training.config import PretrainConfig
from tokenize_anything.training.naming_config import NamingConfig
from tokenize_anything.training.naming_training import NamerTrainer
from tokenize_anything.training.view_config import ViewConfig
from tokenize_anything.training.view_training import ViewTrainer

CONFIGS = Path(__file__).parent / "configs"
OUTLINES_AND_CLICKS = (
    "views", "clicksa", "correctionsa", "clicksb", "correctionsb", "clicksc", "sketches",
)  # fmt: skip


def train(recipe: Recipe) -> Path:
    """Run all phases in order. Returns the path of the packed model."""
    out, read = recipe.out, recipe.read
    out.mkdir(parents=True, exist_ok=True)
    embed = functools.partial(embed_texts_cached, path=out / "text_embeddings.safetensors")
    for phase in recipe.phases("stage1?"):
        pretrain.Pretrainer(read(PretrainConfig, phase), embed).run()
    config = read(CaptionConfig, "stage2")
    if not Path(config.text_tokenizer).is_file():
        train_caption_tokenizer(config.data.annotation_files, config.text_tokenizer)
    trainer = CaptionTrainer(config)
    pack_stages(trainer, trainer.run(), out / "without_outlines.safetensors")
    for phase in OUTLINES_AND_CLICKS:
        if phase.startswith("clicks"):
            ClickTrainer(read(ClickConfig, phase)).run()
        else:
            ViewTrainer(read(ViewConfig, phase), embed).run()
    for phase in recipe.phases("names?"):
        named = NamerTrainer(read(NamingConfig, phase), embed).run()
    captions = CaptionTrainer(read(CaptionConfig, "captions"))
    return pack_model(captions.run(), named, out / "tap_tiny.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the annotated photos")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--configs", type=Path, default=CONFIGS, help="folder of the YAML files")
    parser.add_argument("--share", type=float, default=1.0, help="of the steps of all phases")
    print(train(Recipe(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
