"""How far a map can be trusted: what the answer is worth as the picture appears and vanishes."""
