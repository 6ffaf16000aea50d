"""Rankings: which image tokens stay."""
