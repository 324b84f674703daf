"""The folder of a report: whose it is, and what an earlier report has left in it.

Imported by the command line, so it must stay light.
"""

import html
import re
from pathlib import Path

TABLES = ("ranking", "table", "benchmarks", "learning", "differences", "metrics", "revival", "matrix")
"""names of the tables, each with three files"""
WRITTEN = ("index.html", "figures", *(f"{table}.*" for table in TABLES))
"""patterns of what a report writes"""
GENERATOR = b'<meta name="generator" content="edge-grpo-report">'


def is_report(folder: Path) -> bool:
    """Whether edge-grpo-report has written the page that lies there."""
    page = folder / "index.html"
    return page.is_file() and GENERATOR in page.read_bytes()[:1000]


def drop_report(folder: Path) -> None:
    """Delete an earlier report's tables and figures, some of which the new one may not have; nothing of others.

    The figures are those that its page offers for download.
    """
    if is_report(folder):
        offered = re.findall(r'download="([^"/]+)\.pdf"', (folder / "index.html").read_text(encoding="utf-8"))
        tables = (folder / f"{table}.{kind}" for table in TABLES for kind in ("md", "tex", "csv"))
        figures = (folder / "figures" / f"{html.unescape(name)}.{kind}" for name in offered for kind in ("png", "pdf"))
        for path in (*tables, *figures):
            path.unlink(missing_ok=True)
