"""The page and figure of a cliff study."""
