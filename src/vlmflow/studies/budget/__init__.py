"""How many image tokens a task needs: a promise per budget, smallest last."""
