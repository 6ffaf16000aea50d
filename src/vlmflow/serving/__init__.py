"""What a truncation or a certified policy means to a server: cache, concurrency, prefill."""
