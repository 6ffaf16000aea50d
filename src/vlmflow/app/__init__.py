"""The page on which a model is asked, explained and truncated: ``vlmflow app``."""
