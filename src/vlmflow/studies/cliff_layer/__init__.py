"""The cliff layer of a task."""
