"""Fine-tuning on somebody's own photos: both stages on a COCO file, and one model file out."""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass
from pathlib import Path

from tokenize_anything.build import load_model, locate_checkpoint, read_weights
from tokenize_anything.checkpoints import replace_on_success, save_model
from tokenize_anything.companions import Companions, find_companions
from tokenize_anything.concepts import ConceptVocabulary
from tokenize_anything.config import TAPConfig
from tokenize_anything.data.augment import AugmentConfig
from tokenize_anything.data.region_dataset import RegionSamplingConfig
from tokenize_anything.text_tokenizer import TextTokenizer
from tokenize_anything.text_towers import TextTower, embed_concepts, open_text_tower
from tokenize_anything.training import pretrain
from tokenize_anything.training.caption_config import CaptionConfig, CaptionValidationConfig
from tokenize_anything.training.caption_finetune import CaptionTrainer
from tokenize_anything.training.caption_tokenizer import train_caption_tokenizer
from tokenize_anything.training.caption_validation import ScoreCaptions
from tokenize_anything.training.config import (
    TRAINABLE_PARTS,
    DataConfig,
    Precision,
    PretrainConfig,
    load_config,
    require_counts,
    save_config,
)
from tokenize_anything.training.distributed import Processes
from tokenize_anything.training.naming_config import NamingConfig
from tokenize_anything.training.naming_training import NamerTrainer
from tokenize_anything.training.optimizer import OptimizerConfig
from tokenize_anything.training.own_photos import PhotoSurvey, survey_photos

logger = logging.getLogger(__name__)

FREEZABLE_PARTS = (*TRAINABLE_PARTS, "view_namer", "text_decoder")
CONFIG_FILE = "finetune.yaml"
MODEL_FILE = "model.safetensors"
TOKENIZER_FILE = "text_tokenizer.model"
REGION_FOLDER, NAME_FOLDER, CAPTION_FOLDER = "regions", "names", "captions"

REGION_EPOCHS, NAME_EPOCHS, CAPTION_EPOCHS = 12, 12, 30
MIN_STEPS, MAX_STEPS = 100, 4000
NAME_BATCH, CAPTION_BATCH = 64, 64
MAX_CROPS = 20_000  # regions kept in memory while names are learnt, 2 GB with wider views
TEACHER_RATIO = 0.75  # of the student's logit scale, as tap_tiny was trained


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Fine-tuning of a model on one data set. What is None is chosen by the data and the model.

    data: COCO-style annotation files with names, captions or both, and the folder of the photos.
    output_folder: what is kept on the way, and `model.safetensors`, the result.
    model: what to start from: a name or a file.
    freeze: parts that stay as they are, of `FREEZABLE_PARTS`. With all but the text decoder frozen
        the names still become the vocabulary; with the text decoder frozen no captions are learnt.
    validation: photos whose captions are scored on the way.
    image_size: side of the square the model sees; None keeps the model's own.
    text_tokenizer: a SentencePiece file, for models that bring none.
    fresh_text_decoder: a new text decoder and tokenizer, made of the texts of the data alone.
    num_steps: of stage 1, and of the view namer where the model has one; None makes 12 epochs of
        each, within 100 to 4000 steps.
    caption_steps: of stage 2; None makes 30 epochs, within the same limits.
    batch_size: photos of a step of stage 1.
    peak_lr: of both stages; a fresh text decoder takes five times as much.
    precision: None takes bfloat16 on CUDA and float32 elsewhere.
    num_workers: processes that prepare photos.
    """

    data: DataConfig
    output_folder: str
    model: str = "tap_tiny"
    freeze: tuple[str, ...] = ("image_encoder",)
    validation: DataConfig | None = None
    image_size: int | None = None
    text_tokenizer: str | None = None
    fresh_text_decoder: bool = False
    num_steps: int | None = None
    caption_steps: int | None = None
    batch_size: int = 8
    peak_lr: float = 2e-4
    device: str = "auto"
    precision: Precision | None = None
    num_workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        require_counts(self, ("batch_size",))
        for name in ("num_steps", "caption_steps"):
            if getattr(self, name) is not None:
                require_counts(self, (name,))
        unknown = sorted(set(self.freeze) - set(FREEZABLE_PARTS))
        if unknown:
            raise ValueError(f"freeze: expected some of {list(FREEZABLE_PARTS)}, got {unknown}")
        if not self.data.annotation_files:
            raise ValueError("data: expected COCO-style annotation files, got none")


@dataclass(frozen=True)
class FinetuneReport:
    """What came out.

    model_path: one file for `TAPPredictor.from_pretrained`.
    survey: what the data held.
    has_new_concepts: the category names became the vocabulary.
    has_new_captions: the text decoder was trained.
    """

    model_path: Path
    survey: PhotoSurvey
    has_new_concepts: bool
    has_new_captions: bool


def finetune(
    config: FinetuneConfig, *, tower: TextTower | None = None, score: ScoreCaptions | None = None
) -> FinetuneReport:
    """Train on the data, going on from what the output folder holds.

    Stage 1 runs when regions have category names; these become the vocabulary, and where the model
    has a view namer, it learns them too. Stage 2 runs when there are captions. The result holds
    weights, names and text tokenizer.

    Args:
        config: of the run.
        tower: text encoder of the model's concept space; None opens the one that belongs to it.
        score: compares captions with references during validation.

    Raises:
        FileNotFoundError: annotations, photos (listed), weights or tokenizer are missing.
        ValueError: what is there cannot be used; or the output folder is of another run.
        ImportError: a package of the text encoder or the configuration files is missing.
    """
    return _Finetuning(config, tower, score).run()


def choose_steps(num_samples: int, batch_size: int, epochs: int) -> int:
    """So many passes over the data, within sensible limits."""
    return min(max(math.ceil(epochs * num_samples / batch_size), MIN_STEPS), MAX_STEPS)


class _Finetuning:
    """One run: what both stages have to know."""

    def __init__(
        self, config: FinetuneConfig, tower: TextTower | None, score: ScoreCaptions | None
    ) -> None:
        self.config, self.tower, self.score = config, tower, score
        self.folder = Path(config.output_folder)
        self.processes = Processes.join(config.device)
        self.survey = survey_photos(config.data)
        self.source = locate_checkpoint(config.model)
        self.sizes = self._model_sizes()
        self.own = find_companions(
            config.model, self.source, config.text_tokenizer, self.sizes.vocabulary_size,
            with_concepts=not self.survey.names,
        )  # fmt: skip
        self.learns_captions = self.survey.num_captioned > 0 and "text_decoder" not in config.freeze
        trains_nothing = set(TRAINABLE_PARTS) <= set(config.freeze) and not self.learns_captions
        if config.image_size is not None and trains_nothing:
            raise ValueError("image_size: expected None, because nothing is trained at that size")
        if self.learns_captions and not config.fresh_text_decoder:
            if self.own.text_tokenizer is None:
                raise ValueError(
                    f"text_tokenizer: {config.model} brings none; name the SentencePiece file it "
                    f"was trained with, or ask for a fresh text decoder"
                )

    def run(self) -> FinetuneReport:
        report = FinetuneReport(
            self.folder / MODEL_FILE, self.survey, bool(self.survey.names), self.learns_captions
        )
        self._claim_folder()
        if report.model_path.is_file():
            logger.info("%s is finished already", report.model_path)
            return report
        trained, concepts = str(self.source), self.own.concepts
        if self.survey.names:
            trained, concepts = self._learn_regions()
        tokenizer = self.own.text_tokenizer
        if self.learns_captions:
            tokenizer = self._prepare_tokenizer()
            config = self._caption_config(trained)
            trained = str(CaptionTrainer(config, self.score).run())
        if self.processes.is_first:
            model = load_model(trained, device="cpu", dtype="float32")
            companions = Companions(concepts, tokenizer, self.own.concept_space)
            tensors, metadata = companions.pack()
            save_model(
                model, report.model_path, dtype="float16", metadata=metadata, extra_tensors=tensors
            )
        self.processes.wait()
        return report

    def _model_sizes(self) -> TAPConfig:
        sizes, _ = read_weights(self.source, dtype="float32")
        if self.config.image_size is None:
            return sizes
        return dataclasses.replace(sizes, image_size=self.config.image_size)

    def _claim_folder(self) -> None:
        """Refuse a folder that holds the parts of another run."""
        path = self.folder / CONFIG_FILE
        if path.is_file():
            if load_config(FinetuneConfig, path) != self.config:
                raise ValueError(
                    f"output_folder: {self.folder} holds a run with other settings (see {path}); "
                    f"choose another folder, or delete it to start again"
                )
        elif self.processes.is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_config(self.config, path)
        self.processes.wait()

    def _learn_regions(self) -> tuple[str, ConceptVocabulary]:
        """Stage 1, unless all of it is frozen. Returns the model and the new vocabulary."""
        tower, trained = self._open_tower(), str(self.source)
        if set(TRAINABLE_PARTS) <= set(self.config.freeze):
            concepts = embed_concepts(self.survey.names, tower)
        else:
            config = self._region_config(tower.logit_scale)
            path = pretrain.Pretrainer(config, tower.embed_texts).run()
            found = ConceptVocabulary.load(path.with_name(pretrain.CONCEPTS_FILE))
            concepts = dataclasses.replace(found, space=self.own.concept_space)
            trained = str(path)
        if self.sizes.namer_size and "view_namer" not in self.config.freeze:
            naming = self._naming_config(trained, tower.logit_scale)
            if self.processes.is_first:  # its runs are of one process
                NamerTrainer(naming, tower.embed_texts).run()
            self.processes.wait()
            trained = str(self.folder / NAME_FOLDER / MODEL_FILE)
        return trained, concepts

    def _open_tower(self) -> TextTower:
        if self.tower is not None:
            return self.tower
        if not self.own.concept_space:
            raise ValueError(
                f"model: {self.config.model} does not say which text encoder its concepts belong "
                f"to; convert it with a vocabulary that does (tap convert --concepts FILE)"
            )
        return open_text_tower(self.own.concept_space, device=self.config.device)

    def _region_config(self, logit_scale: float) -> PretrainConfig:
        config = self.config
        steps = config.num_steps or choose_steps(
            self.survey.num_images, config.batch_size, REGION_EPOCHS
        )
        frozen = tuple(part for part in config.freeze if part in TRAINABLE_PARTS)
        return PretrainConfig(
            data=config.data,
            output_folder=str(self.folder / REGION_FOLDER),
            model=self.sizes,
            init_from=str(self.source),
            freeze=frozen,
            augment=AugmentConfig(scale_range=(0.75, 1.5)),
            sampling=RegionSamplingConfig(regions_per_image=8),
            optimizer=OptimizerConfig(peak_lr=config.peak_lr, warmup_steps=max(1, steps // 20)),
            batch_size=config.batch_size,
            num_steps=steps,
            drop_path=0.0 if "image_encoder" in frozen else 0.1,
            concept_weight=0.5,
            teacher_scale=TEACHER_RATIO * logit_scale,
            student_scale=logit_scale,
            second_stage_probability=0.5,
            ema_decay=0.99,
            device=config.device,
            precision=self._precision(),
            num_workers=config.num_workers,
            seed=config.seed,
            save_every=max(1, min(200, steps // 4)),
            log_every=max(1, steps // 40),
        )

    def _naming_config(self, init_from: str, logit_scale: float) -> NamingConfig:
        config, survey = self.config, self.survey
        steps = config.num_steps or choose_steps(survey.num_named, NAME_BATCH, NAME_EPOCHS)
        photos = MAX_CROPS * survey.num_images // max(survey.num_named, 1)
        return NamingConfig(
            data=config.data,
            output_folder=str(self.folder / NAME_FOLDER),
            init_from=init_from,
            namer_size=self.sizes.namer_size,
            wide_size=self.sizes.wide_size,
            max_images=max(1, photos) if survey.num_named > MAX_CROPS else 0,
            optimizer=OptimizerConfig(
                peak_lr=2 * config.peak_lr, warmup_steps=max(1, steps // 20), weight_decay=0.05
            ),
            batch_size=NAME_BATCH,
            num_steps=steps,
            teacher_scale=TEACHER_RATIO * logit_scale,
            student_scale=logit_scale,
            ema_decay=0.99,
            device=config.device,
            precision=self._precision(),
            seed=config.seed,
            save_every=max(1, min(200, steps // 4)),
            log_every=max(1, steps // 40),
        )

    def _caption_config(self, init_from: str) -> CaptionConfig:
        config = self.config
        steps = config.caption_steps or choose_steps(
            self.survey.num_captioned, CAPTION_BATCH, CAPTION_EPOCHS
        )
        rate = config.peak_lr * (5 if config.fresh_text_decoder else 1)
        validation = None
        if config.validation is not None:
            validation = CaptionValidationConfig(data=config.validation, every=max(1, steps // 4))
        return CaptionConfig(
            data=config.data,
            output_folder=str(self.folder / CAPTION_FOLDER),
            init_from=init_from,
            text_tokenizer=str(self.folder / TOKENIZER_FILE),
            image_size=config.image_size,
            fresh_text_decoder=config.fresh_text_decoder,
            validation=validation,
            optimizer=OptimizerConfig(
                peak_lr=rate, warmup_steps=max(1, steps // 20), weight_decay=0.05
            ),
            batch_size=CAPTION_BATCH,
            num_steps=steps,
            device=config.device,
            precision=self._precision(),
            seed=config.seed,
            save_every=max(1, min(500, steps // 4)),
            log_every=max(1, steps // 40),
        )

    def _precision(self) -> Precision:
        if self.config.precision is not None:
            return self.config.precision
        return "bfloat16" if self.processes.device.type == "cuda" else "float32"

    def _prepare_tokenizer(self) -> TextTokenizer:
        """The model's own, or one learnt from the texts, as a file in the output folder."""
        path = self.folder / TOKENIZER_FILE
        if self.processes.is_first and not path.is_file():
            if self.config.fresh_text_decoder:
                train_caption_tokenizer(self.config.data.annotation_files, path)
            else:
                assert self.own.text_tokenizer is not None
                with replace_on_success(path) as temporary:
                    temporary.write_bytes(self.own.text_tokenizer.to_bytes())
        self.processes.wait()
        return TextTokenizer.from_file(path)
