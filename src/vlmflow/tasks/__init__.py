"""Data sets with their questions, reference answers and metrics."""
