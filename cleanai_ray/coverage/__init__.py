"""Coverage metrics: per-channel activity of one layer, derived from its statistics. A file a metric.

A metric is a function from `LayerStatistics` to a float64 tensor of shape [C], registered under its name.
"""
