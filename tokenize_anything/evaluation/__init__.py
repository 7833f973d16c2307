"""Evaluation: each evaluator yields (metric, value) pairs."""
