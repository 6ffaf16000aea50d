"""The page and figure of a study of truncations."""
