"""Executors, which run the work of a study: in this process, or on a Ray cluster."""
