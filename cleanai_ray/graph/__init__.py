"""The dependency graph of a network's channels.

torch-pruning counts operations, which nothing here asks of it, and for that imports timm where it is installed: three
seconds in every process. So timm is hidden from that import, unless it was imported before.
"""

import sys

if not {"timm", "torch_pruning"} & sys.modules.keys():
    sys.modules["timm"] = None  # type: ignore[assignment]
    try:
        import torch_pruning  # noqa: F401
    finally:
        del sys.modules["timm"]
