"""Coverage metrics, one per file: the activity of each channel of a layer, from its statistics.

A metric is a function from `LayerStatistics` to a float64 tensor of shape [C], registered under its name.
"""
