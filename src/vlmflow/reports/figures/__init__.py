"""Figures of one explained answer."""
