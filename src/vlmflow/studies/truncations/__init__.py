"""Truncations and their controls, compared over a task."""
