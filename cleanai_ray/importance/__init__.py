"""Importance methods, one per file: scores for the channels of a dependency group. High means keep."""
