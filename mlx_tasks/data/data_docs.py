"""Data Docs that open from disk: Great Expectations' pages without what they would fetch from elsewhere."""

from __future__ import annotations

import html
import re
import shutil
from pathlib import Path

from mlx_tasks.files import atomic_write_text

_STYLE = Path(__file__).with_name("data_docs.css")
_SCRIPTS = re.compile(r"<script\b.*?</script>", re.DOTALL | re.IGNORECASE)
_REMOTE_LINKS = re.compile(r"<link\b[^>]*href=\"https?:[^>]*>", re.IGNORECASE)
_REMOTE_RULES = re.compile(r"@import[^;]*https?:[^;]*;|@font-face\s*\{[^}]*\}", re.IGNORECASE)
_LOAD_TIME = re.compile(r"(?<=>)\d{8}T\d{6}\.\d{6}Z(?=<)")
_REMOTE_LOGO = re.compile(r"https://great-expectations-web-assets[^\"')]*")
_MODAL = re.compile(r"<div class=\"modal fade ge-walkthrough-modal\".*?(?=<script|</body>)", re.DOTALL)
_RANDOM_IDS = re.compile(r"(?<=-collapse-body)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LOGO = "static/images/logo-long.png"

_INDEX = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Data Docs</title><style>{style}</style></head>
<body><nav class="navbar"><img src="{logo}" alt="Great Expectations" height="50"></nav>
<div class="container-fluid"><h1>Data Docs</h1>
<p>What the manifest of accepted images was checked for, and what was found.</p>
<ul>{links}</ul></div></body></html>
"""


def make_offline(docs: Path) -> None:
    """Change the site in place so that its pages ask no other host for anything and still read well.

    As written, they load styles, scripts and fonts from eight content networks, and a logo with the time and the
    context's id. The checks' results are plain HTML; scripts only fold and filter them, and the index page, which
    scripts build, is written anew. The time at which the data was loaded and random ids
    go, so that equal data gives equal pages.
    """
    style = _STYLE.read_text(encoding="utf-8")
    pages = sorted(path for path in docs.rglob("*.html") if path != docs / "index.html")
    for page in pages:
        text = page.read_text(encoding="utf-8")
        up = "../" * len(page.relative_to(docs).parent.parts)
        text = _REMOTE_LOGO.sub(up + _LOGO, _MODAL.sub("", text))
        text = _RANDOM_IDS.sub("", _LOAD_TIME.sub("not kept", text))
        text = _REMOTE_RULES.sub("", _REMOTE_LINKS.sub("", _SCRIPTS.sub("", text)))
        atomic_write_text(page, text.replace("</head>", f"<style>{style}</style></head>", 1))
    links = "".join(f'<li><a href="{html.escape(_relative(p, docs))}">{_title(p, docs)}</a></li>' for p in pages)
    atomic_write_text(docs / "index.html", _INDEX.format(style=style, logo=_LOGO, links=links))
    for unused in (docs / "static").glob("*/*"):
        if unused.name not in {Path(_LOGO).name, "favicon.ico"}:
            shutil.rmtree(unused) if unused.is_dir() else unused.unlink()


def _relative(page: Path, docs: Path) -> str:
    return page.relative_to(docs).as_posix()


def _title(page: Path, docs: Path) -> str:
    kind = "What is expected" if page.relative_to(docs).parts[0] == "expectations" else "What was found"
    return f"{kind}: {html.escape(page.stem)}"
