"""The figures of docs/orchestration.md."""

from __future__ import annotations

from claim import Page

page = Page("docs/orchestration.md")
page.given("up to 1 MB, and no secret", "a limit: tests/test_workspace_snapshot.py")
page.given("ADO_GIT_TIMEOUT_S (300 s)", "a setting")
