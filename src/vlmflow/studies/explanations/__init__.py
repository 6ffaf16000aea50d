"""Many answers explained: a task's samples, one after the other."""
