"""Pruning: from scores to a selection of channels, a plan and a smaller model."""
