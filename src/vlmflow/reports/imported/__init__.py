"""The page and figure of runs that lmms-eval made."""
