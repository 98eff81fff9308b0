"""What an old PyTorch cannot do, for the tests that ask it."""

from __future__ import annotations

import pytest
import torch

VERSION = tuple(map(int, torch.__version__.split(".")[:2]))

NEEDS_EXPORT = pytest.mark.skipif(VERSION < (2, 7), reason="an older torch.export refuses these models")
