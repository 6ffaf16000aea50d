"""Explaining one answer: options, passes and the result put together."""
