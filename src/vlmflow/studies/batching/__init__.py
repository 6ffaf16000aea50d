"""Many prompts: prepared while the model runs, and put into batches that fit into memory."""
