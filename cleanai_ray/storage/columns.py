"""How a column of a Parquet file of a run directory is written down: its name, its type, and what it holds."""

from __future__ import annotations

import pyarrow as pa

TEXT, REAL, COUNT, FLAG = pa.string(), pa.float64(), pa.int64(), pa.bool_()


def described(*columns: tuple[str, pa.DataType, str]) -> pa.Schema:
    """Return the schema of a table whose columns carry their descriptions."""
    return pa.schema([pa.field(name, kind, metadata={"description": text}) for name, kind, text in columns])
