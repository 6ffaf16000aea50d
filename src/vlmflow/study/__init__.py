"""Measurements over many samples of a task."""
