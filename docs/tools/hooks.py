"""What MkDocs calls when it builds the site: generated pages, documents outside docs/, and files they link to."""

from __future__ import annotations

from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from reference_pages import pages
from repository_links import ELSEWHERE, ROOT, documents, for_the_site, relative_links, site_path


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not below docs/, and every file of the repository that a document links to."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    for document, path in ELSEWHERE.items():
        files.append(File.generated(config, path, content=(ROOT / document).read_text(encoding="utf-8")))
    for document in documents():
        text = (ROOT / document).read_text(encoding="utf-8")
        for _, linked, _ in relative_links(document, text):
            path = site_path(linked)
            if path.startswith("repository/") and (ROOT / linked).is_file() and path not in files.src_uris:
                files.append(File.generated(config, path, abs_src_path=str(ROOT / linked)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Return a page's text with links that work on the site."""
    names = {site: document for document, site in ELSEWHERE.items()}
    return for_the_site(names.get(page.file.src_uri, f"docs/{page.file.src_uri}"), markdown)
