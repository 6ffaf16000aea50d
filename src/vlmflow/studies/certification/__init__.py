"""Certifying a truncation: exits per input at a risk that is promised."""
