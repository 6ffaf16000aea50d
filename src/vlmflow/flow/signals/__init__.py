"""Signals: how much each image token matters."""
