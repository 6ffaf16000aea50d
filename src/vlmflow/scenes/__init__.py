"""Bundled pictures, questions and a trained model: everything works without a network."""

from vlmflow.scenes.tasks import ALL_TASKS, POINTING, SPLITS, TASKS, Sample, sample, samples

__all__ = ["ALL_TASKS", "POINTING", "SPLITS", "TASKS", "Sample", "sample", "samples"]
