"""The page and figures of a study of faithfulness."""
