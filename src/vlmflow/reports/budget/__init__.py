"""The page and figure of a token budget."""
