"""The page of a published table that was run again."""
