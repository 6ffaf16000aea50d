"""Comparing rankings: each against random tokens, at equal numbers of tokens and at equal cost."""
