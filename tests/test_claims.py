"""The figures on the pages are those of the stored results, and what compares them can fail."""

import json
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import claims  # noqa: E402
from claim import Page  # noqa: E402

CLAIMED = [page for page in claims.pages() if claims.claimed(page).is_file()]


@pytest.mark.parametrize("page", claims.pages())
def test_a_page_says_what_its_results_say(page):
    assert list(claims.errors_of(page)) == []


def test_every_file_of_claims_speaks_for_a_page_that_is_there():
    assert sorted(claims.claimed(page) for page in CLAIMED) == sorted(claims.CLAIMED.glob("*.py"))


def test_results_name_commits_of_this_history():
    assert list(claims.errors_of_commits()) == []


def written(tmp_path: Path, text: str) -> Page:
    """A page of its own."""
    path = tmp_path / "page.md"
    path.write_text(text)
    return Page(str(path))


def figures(page: Page) -> list[str]:
    """The figures that no claim covers."""
    return [error.split(": ")[1].split(" has")[0] for error in page.without_result()]


def test_a_figure_that_differs_from_its_result_is_told(tmp_path):
    page = written(tmp_path, "It is 2.1 times as\nfast, at 12 ms.")
    page.says(f"{2.14:.1f} times as fast")
    assert page.errors == [] and figures(page) == ["12"]
    page.says(f"at {13:.0f} ms")
    assert page.errors == [f"{page.name} does not say, as its results do: at 13 ms"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It took 38 s, 1498 MB and 12 %.", ["38", "1498", "12"]),
        ("Of 1,797 digits 0.034 stay; -0.008 to +0.011.", ["1,797", "0.034", "-0.008", "+0.011"]),
        ("| a | 17.4 | **0.0605** |", ["17.4", "0.0605"]),
        ("Three seeds, 256 images, 4 steps, Song et al. 2023.", []),
        ("Python 3.11.7, MLX 0.32.4, to 1e-4.", []),
        ("`train.rate=0.002` and\n```\nsleep 12 s 0.5\n```\n", []),
        ("[a page](docs/v1.5/x.md)", []),
        ("Every `--poll` (2 s), by YAML 1.2, after 3 s.", ["3"]),
    ],
)
def test_what_counts_as_a_figure(tmp_path, text, found):
    assert figures(written(tmp_path, text)) == found


def test_a_figure_that_is_given_needs_to_be_there(tmp_path):
    page = written(tmp_path, "A level of 95 %.")
    page.given("A level of 95 %", "a setting")
    assert figures(page) == [] and page.errors == []
    page.given("A level of 90 %", "a setting")
    assert "no longer says" in page.errors[0]


def test_a_commit_outside_history_is_told(tmp_path, monkeypatch):
    (tmp_path / "made_up.json").write_text(json.dumps({"commit": "0000000"}))
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    if claims._git("rev-parse", "--is-shallow-repository") == "true":
        pytest.skip(claims.SHALLOW)
    assert [error.split()[3] for error in claims.errors_of_commits()] == ["0000000,"]


def test_the_command_fails_where_a_page_is_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(claims, "claimed", lambda page: tmp_path / "none.py")
    assert claims.main(["docs/search.md"]) == 1
    assert "0.72 has no stored result" in capsys.readouterr().out


def test_results_hold_the_seeds_that_their_commands_name():
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        told = json.loads(path.read_text())
        words = told["command"].split()
        seeds = {row["seed"] for row in told["rows"] if "seed" in row}
        if seeds and "--seeds" in words:
            assert len(seeds) == int(words[words.index("--seeds") + 1]), path.name


def test_helpers_of_the_claims_count_as_the_pages_print():
    tables = runpy.run_path(str(ROOT / "benchmarks" / "schedule_tables.py"))
    assert [tables["three"](value) for value in (0.19884, 0.09957, 0.00797)] == ["0.199", "0.0996", "0.0080"]
    assert tables["hundreds"](205226.7) == "205,200"
    assert tables["listed"]([1.21, 1.1, 1.26], 1, " and ") == "1.2, 1.1 and 1.3"
    assert tables["span"]([0.5, 0.25], 2) == "0.25 to 0.50"
