"""What mkdocs does not do itself: pages from outside docs/, generated pages, the notebook, formulas as MathML.

Formulas are written as on a code host, `$...$` and `$$...$$`, and become MathML when the pages are built, which
browsers draw without a script or a font from elsewhere.
"""

import posixpath
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

from edge_grpo.programs.config_page import as_markdown

OUTSIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""files of the repository -> their pages"""
NOTEBOOK = "read_a_run.ipynb"
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)\s#]+)(#[^)\s]*)?(?=\))")
FETCHED = re.compile(
    r'<(?:script|img|iframe)[^>]*\ssrc="https?:|<link[^>]*\srel="(?:stylesheet|preconnect)"[^>]*"https?:'
)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/."""
    root = Path(config.docs_dir).parent
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(root / source).read_text()))
    files.append(File.generated(config, "settings.md", content=as_markdown()))
    for generated in notebook_files(root / "docs" / NOTEBOOK, config):
        files.append(generated)
    return files


def notebook_files(path: Path, config: MkDocsConfig) -> Iterator[File]:
    """The notebook as a page with the outputs that it was saved with, and their pictures."""
    notebook = nbformat.read(path, as_version=4)
    text, resources = MarkdownExporter().from_notebook_node(notebook)
    text = text.replace('<table border="1" class="dataframe">', "<table>")  # the theme's tables
    folder = path.stem
    for name, content in resources["outputs"].items():
        text = text.replace(f"({name})", f"({folder}/{name})")
        yield File.generated(config, f"{folder}/{name}", content=content)
    yield File.generated(config, f"{folder}.md", content=text)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links between docs/ and what lies outside it, which are right on a code host, made right for the pages."""
    sources = {target: source for source, target in OUTSIDE.items()}
    uri = page.file.src_uri
    here = posixpath.dirname(sources.get(uri, f"docs/{uri}"))

    def relinked(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here, found[1]))
        if target in OUTSIDE:
            target = f"docs/{OUTSIDE[target]}"
        elif target == f"docs/{NOTEBOOK}":
            target = target.replace(".ipynb", ".md")
        elif uri not in sources:
            return found[0]
        return posixpath.relpath(target, posixpath.join("docs", posixpath.dirname(uri))) + (found[2] or "")

    return LINK.sub(relinked, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas as MathML."""

    def drawn(found: re.Match[str]) -> str:
        display = "block" if found[1] == "div" else "inline"
        return str(convert(unescape(found[2]).strip(), display=display))

    return FORMULA.sub(drawn, html)


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse pages that a browser without a network cannot show whole."""
    fetching = [str(page) for page in sorted(Path(config.site_dir).rglob("*.html")) if FETCHED.search(page.read_text())]
    if fetching:
        raise PluginError(f"{len(fetching)} pages fetch something from elsewhere, the first of them {fetching[0]}")
