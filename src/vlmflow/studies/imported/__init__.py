"""Runs of lmms-eval, read back from their logs: what truncation cost there."""
