"""A model of lmms-eval: its tasks on any model of ours, with image tokens removed or not."""
