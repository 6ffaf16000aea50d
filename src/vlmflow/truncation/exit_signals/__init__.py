"""Exit signals: what tells that a prompt needs its image tokens no longer."""
