"""How answers are scored, as each data set's own script defines it: one metric per file."""
