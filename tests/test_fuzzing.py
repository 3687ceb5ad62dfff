"""Some hundred damaged inputs of every kind, of fixed seeds: `make fuzz` tries more (docs/fuzzing.md)."""

import random

import pytest
from fuzzing.__main__ import try_files
from fuzzing.mutate import damaged_bytes, damaged_json
from fuzzing.served import BODIES, Receiver, image_request
from fuzzing.targets import TARGETS, run
from serving_world import Server, bundle_with_reference

COUNTS = {"image": 400, "metadata": 100, "caption_file": 60, "card": 12, "params": 15, "scheduler": 300, "bundle": 80}


@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_file_ends_in_one_of_the_ways_that_are_promised(name):
    assert dict(try_files(name, range(COUNTS[name]))) == {}


def test_a_damaged_request_is_answered_and_never_the_server_s_failure(tmp_path):
    server = Server("--bundle", str(bundle_with_reference(tmp_path / "digits")))
    try:
        server.wait()
        port = int(server.url.rsplit(":", 1)[1])
        assert [found for seed in range(150) if (found := image_request(port, seed))] == []
        assert server.draw(prompt="two").status_code == 200
    finally:
        server.stop()


def test_a_damaged_webhook_is_answered_and_never_the_receiver_s_failure():
    with Receiver() as receiver:
        assert [found for seed in range(300) if (found := receiver.alert(seed))] == []


def test_a_finding_is_told_with_its_place_and_its_input_is_kept(tmp_path, monkeypatch):
    def broken(folder, rng):
        (folder / "input").write_bytes(damaged_bytes(b"sound", b"", rng))
        raise RuntimeError("not promised")

    monkeypatch.setitem(TARGETS, "broken", broken)
    found = run(("broken", 3), str(tmp_path / "kept"))
    assert found.startswith("RuntimeError at test_fuzzing.py:") and found.endswith("not promised")
    assert (tmp_path / "kept" / "input").read_bytes() == damaged_bytes(b"sound", b"", random.Random("broken 3"))


def test_damage_is_of_the_seed_alone_and_seldom_none():
    texts = [damaged_json(BODIES[0], random.Random(seed)) for seed in range(200)]
    assert texts == [damaged_json(BODIES[0], random.Random(seed)) for seed in range(200)]
    assert len(set(texts)) > 150
