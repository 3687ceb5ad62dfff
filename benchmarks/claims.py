"""Whether the figures on the pages are those of the stored results: `python benchmarks/claims.py [PAGE ...]`.

Each page's figures are computed again by a file of benchmarks/claimed/ (claim.py says how). Fails where a page says
something else than its results, where a figure has no stored result, where a result names a commit that is not in
this branch's history, and where a page that holds figures has no file at all.
"""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from claim import RESULTS, ROOT, Page

CLAIMED = ROOT / "benchmarks" / "claimed"
SHALLOW = "this clone is shallow, so commits cannot be looked up: git fetch --unshallow"


def pages() -> list[str]:
    """The pages that people read, from the checkout's root."""
    found = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md"]
    return sorted(str(path.relative_to(ROOT)) for path in found if path.is_file())


def claimed(page: str) -> Path:
    """The file that speaks for a page: docs/methods/ppo.md has benchmarks/claimed/methods_ppo.py."""
    name = page.removeprefix("docs/").removesuffix(".md").replace("/", "_").lower()
    return CLAIMED / f"{name}.py"


def errors_of(page: str) -> Iterator[str]:
    """What a page claims wrongly, or without a result."""
    file = claimed(page)
    told: Page = runpy.run_path(str(file))["page"] if file.is_file() else Page(page)
    if told.name != page:
        yield f"{file.name} speaks for {told.name} and belongs to {page}"
        return
    yield from told.errors
    yield from told.without_result()


def errors_of_commits() -> Iterator[str]:
    """Results made of a commit that this branch's history does not have."""
    if _git("rev-parse", "--is-shallow-repository") == "true":
        print(SHALLOW, file=sys.stderr)
        return
    known = set(_git("rev-list", "HEAD").split())
    for path in sorted(RESULTS.glob("*.json")):
        commit = json.loads(path.read_text(encoding="utf-8"))["commit"]
        if not any(one.startswith(commit) for one in known):
            yield f"{path.name} names commit {commit}, which is not in history: take it again from a commit that is"


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def main(chosen: list[str]) -> int:
    """Print what does not hold; 0 where everything does."""
    errors = [error for page in chosen or pages() for error in errors_of(page)]
    errors += [] if chosen else list(errors_of_commits())
    print("\n".join(errors) or "every figure on the pages is that of its stored result")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
