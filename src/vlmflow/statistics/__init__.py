"""Intervals, paired differences and rank correlation."""
