"""Reading a report's PDF."""

from __future__ import annotations

import io

from pypdf import PdfReader

from cleanai_ray.storage.run_directory import RunDirectory


def read_pdf(run: RunDirectory) -> PdfReader:
    return PdfReader(io.BytesIO(run.read_bytes("report.pdf")))


def text_of(reader: PdfReader) -> str:
    return " ".join(" ".join(page.extract_text() for page in reader.pages).split())


def outline_of(reader: PdfReader) -> list[str]:
    return [entry.title for entry in reader.outline if not isinstance(entry, list)]
