"""The book of sampler settings: versions, the nearest entry, and a run's own entries."""

import json

import numpy as np
import pytest

from mlx_tasks.cli import main
from mlx_tasks.diffusion import NoiseSchedule
from mlx_tasks.domains.book import BOOK, Entry, SettingsBook, mean_statistics
from mlx_tasks.domains.examples import draw
from mlx_tasks.errors import DataError, ExitCode

SCHEDULE = NoiseSchedule.cosine()


def statistics(domain, seed=0):
    return mean_statistics(draw(domain, "test", 60, 16, np.random.default_rng(seed)))


def entry(domain, budget=4, bundle="a", sigmas=None, seed=0):
    levels = tuple(np.geomspace(20.0, 0.2, budget)) if sigmas is None else sigmas
    return Entry(domain, statistics(domain, seed), budget, levels, 0.05, 0.14, bundle, 16)


def test_a_new_dataset_starts_from_the_nearest_images():
    domains = ("digits", "letters", "photographs", "textures", "abstracts")
    book = SettingsBook().with_entries([entry(name, bundle=name) for name in domains])
    for name in domains:
        found = book.nearest(statistics(name, seed=7))
        assert found[0][1].domain == name
        assert [distance for distance, _ in found] == sorted(distance for distance, _ in found)


def test_the_grid_of_another_budget_keeps_ends_and_shape():
    levels = (30.0, 3.0, 0.3)
    book = SettingsBook().with_entries([entry("digits", 3, sigmas=levels)])
    same = book.grid_for(statistics("digits"), 3, SCHEDULE)
    np.testing.assert_allclose(same.sigmas[:-1], levels, rtol=0.03)
    longer = book.grid_for(statistics("digits"), 5, SCHEDULE)
    np.testing.assert_allclose(longer.sigmas[:-1], np.geomspace(30.0, 0.3, 5), rtol=0.03)
    assert book.grid_for(statistics("digits"), 1, SCHEDULE).num_steps == 1
    both = book.with_entries([entry("digits", 6, sigmas=tuple(np.geomspace(9.0, 0.1, 6)))])
    assert both.grid_for(statistics("digits"), 5, SCHEDULE).sigmas[0] == pytest.approx(9.0, rel=0.03)
    better = Entry(
        **{**vars(both.entries[-1]), "sigmas": tuple(np.geomspace(7.0, 0.1, 6)), "error": 0.01, "bundle": "c"}
    )
    improved = both.with_entries([better]).grid_for(statistics("digits"), 5, SCHEDULE)
    assert improved.sigmas[0] == pytest.approx(7.0, rel=0.03)
    assert SettingsBook().grid_for(statistics("digits"), 4, SCHEDULE) is None


def test_versions_count_and_name_the_one_before(tmp_path):
    first = SettingsBook().with_entries([entry("digits")])
    second = first.with_entries([entry("digits", bundle="b"), entry("textures", bundle="b", budget=6)])
    assert (first.version, first.previous) == (1, None) and (second.version, second.previous) == (2, first.digest)
    replaced = second.with_entries([entry("digits", sigmas=(9.0, 3.0, 1.0, 0.1))])
    assert len(replaced.entries) == 3 and replaced.version == 3
    assert second.with_entries([entry("digits")]) is second and second.with_entries([]) is second
    second.save(tmp_path / "book.json")
    assert SettingsBook.load(tmp_path / "book.json") == second
    assert SettingsBook.load(tmp_path / "nowhere.json") == SettingsBook()


@pytest.mark.parametrize("change", [{"version": 9}, {"entries": []}, {"entries": 3}, {"digest": "0"}])
def test_a_book_that_was_changed_by_hand_is_refused(tmp_path, change):
    path = tmp_path / "book.json"
    SettingsBook().with_entries([entry("digits")]).save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=r"book\.json (holds other entries|is no book)"):
        SettingsBook.load(path)


@pytest.mark.parametrize("sigmas", [(1.0, 2.0, 0.5, 0.1), (3.0, 1.0), (3.0, 2.0, 1.0, 0.0)])
def test_an_entry_that_is_no_grid_is_refused(sigmas):
    with pytest.raises(DataError, match="as many falling sigmas"):
        entry("digits", 4, sigmas=sigmas)


def test_the_book_that_is_shipped_is_whole():
    book = SettingsBook.load(BOOK)
    assert book.version >= 1 and all(found.error < found.uniform_error for found in book.entries)


def test_a_folder_without_a_run_is_named(tmp_path, capsys):
    command = ["domains", "learn", str(tmp_path), "--book", str(tmp_path / "book.json")]
    assert main(command) == ExitCode.BAD_INPUT
    assert "holds no finished run of the tune stage" in capsys.readouterr().err
    assert not (tmp_path / "book.json").exists()
