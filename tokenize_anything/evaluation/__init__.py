"""Evaluation: each evaluator yields (metric, value) pairs; `tap evaluate` calls the same ones."""

from tokenize_anything.evaluation.captioning import evaluate_captioning
from tokenize_anything.evaluation.classification import evaluate_classification
from tokenize_anything.evaluation.clicks import evaluate_clicks
from tokenize_anything.evaluation.interactive import evaluate_interactive
from tokenize_anything.evaluation.recognition import evaluate_recognition
from tokenize_anything.evaluation.runner import RunnerConfig, RunTimes
from tokenize_anything.evaluation.segmentation import evaluate_segmentation
from tokenize_anything.evaluation.video import evaluate_tracker, evaluate_video

__all__ = [
    "RunTimes",
    "RunnerConfig",
    "evaluate_captioning",
    "evaluate_classification",
    "evaluate_clicks",
    "evaluate_interactive",
    "evaluate_recognition",
    "evaluate_segmentation",
    "evaluate_tracker",
    "evaluate_video",
]
