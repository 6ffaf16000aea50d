"""Measuring: one forward and one backward pass, the signals, and the result object."""
