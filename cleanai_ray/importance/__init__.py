"""Importance methods: per-channel scores of a dependency group; high = keep. A file a method."""
