"""The figures of docs/fuzzing.md: all of them are bounds that it keeps."""

from __future__ import annotations

from claim import Page

page = Page("docs/fuzzing.md")
page.given("nesting 50,000 deep", "what is tried: tests/fuzzing")
page.given("1.5 GiB of memory, 30 s of processor time and 120 s on the clock for one input", "bounds: tests/fuzzing")
page.given("A request has 60 s.", "a bound: tests/fuzzing")
