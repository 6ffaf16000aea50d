"""Bundled pictures, questions and a trained model: everything works without a network."""

from vlmflow.scenes.tasks import POINTING, SPLITS, TASKS, Sample, sample, samples

__all__ = ["POINTING", "SPLITS", "TASKS", "Sample", "sample", "samples"]
