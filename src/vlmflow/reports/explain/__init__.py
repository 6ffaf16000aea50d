"""The page of one explained answer."""
