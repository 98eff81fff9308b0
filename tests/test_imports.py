"""What importing a module drags along; who may import whom is checked by import-linter (`make lint`)."""

from __future__ import annotations
