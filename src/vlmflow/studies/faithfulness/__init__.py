"""Faithfulness of maps over a task: which maps can be trusted, on which model, at what cost."""
