"""Data sets of the Hugging Face hub, or local copies of them."""
