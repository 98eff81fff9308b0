"""Dependency groups, selection of channels, the plan, and surgery."""
