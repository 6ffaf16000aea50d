"""The page and figure of a certificate."""
