"""What really removing image tokens does to an answer: removal curves and the cliff layer."""
