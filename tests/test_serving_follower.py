"""Facts about versions: a new one is tried out beside the old, a broken one never serves, and no request is dropped."""

import json
import shutil
import threading
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from registry_workspace import write_small_bundle
from serving_world import bundle_with_reference

from mlx_tasks.errors import DataError, UnavailableError
from mlx_tasks.models.bundle import read_bundle, write_bundle
from mlx_tasks.models.digests import bundle_digest, write_digests
from mlx_tasks.registry.draw import draw
from mlx_tasks.serving.engine import Job, Plan
from mlx_tasks.serving.follower import Follower
from mlx_tasks.serving.library import RegistrySource, Served
from mlx_tasks.serving.loading import load
from mlx_tasks.serving.trial import try_out
from mlx_tasks.serving.worker import QueueFullError, Worker


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return bundle_with_reference(tmp_path_factory.mktemp("first") / "1")


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    return bundle_with_reference(tmp_path_factory.mktemp("second") / "2", seed=8)


class Naming:
    """A source whose answer a test changes."""

    def __init__(self, answer, store=None):
        self.answer, self.good, self.store, self.fetched = answer, None, store, []

    def wanted(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def find(self, reference):
        return self.wanted()

    def fetch(self, served):
        self.fetched.append(served.id)

    def keep(self, folders):
        pass

    def versions(self):
        return []

    def accepted(self, served):
        self.good = served

    def last_good(self):
        return self.good


PASSED = {}


def tried_once(served, rows, stopped):
    """A real trial for each version that these tests share."""
    key = (served.folder, bundle_digest(Path(served.folder)), served.stamp)
    if str(key) not in PASSED:
        PASSED[str(key)] = try_out(served, rows, stopped)
    return PASSED[str(key)]


@pytest.fixture
def serving():
    """serving(source) -> (worker, follower), ended with the test."""
    began = []

    def begin(source, queue_images=256):
        worker = Worker(queue_images)
        follower = Follower(worker, source, poll_s=0.05, trial=tried_once)
        for thread in (worker, follower):
            thread.start()
            began.append(thread)
        return worker, follower

    yield begin
    for thread in reversed(began):
        thread.stop()
        thread.join(30)


def until(condition, patience_s=30):
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def one(worker, seed=1, steps=None):
    plan = Plan.own(worker.current.engine.bundle) if steps is None else steps
    return worker.submit(Job(plan, [1], [seed]))


def test_a_swap_drops_no_request_and_each_image_is_one_versions_own(first, second, serving):
    source = Naming(Served("digits", "1", str(first)))
    worker, follower = serving(source)
    until(lambda: worker.ready)
    expected = {str(f): draw(read_bundle(f), [1] * 60, list(range(60))) for f in (first, second)}
    results, stop = [], threading.Event()

    def ask(start):
        seed = start
        while not stop.is_set():
            ticket = one(worker, seed % 60)
            results.append((seed % 60, ticket.loaded.folder, ticket.future.result(30).images))
            seed += 4

    def more_images():
        enough = len(results) + 25
        until(lambda: len(results) >= enough)

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for served in (Served("digits", "2", str(second)), Served("digits", "1", str(first))) * 2:
        more_images()
        source.answer = served
        until(lambda served=served: worker.current.folder == served.folder)
    more_images()
    stop.set()
    for thread in threads:
        thread.join(30)
    assert {folder for _, folder, _ in results} == {str(first), str(second)}
    for seed, folder, images in results:
        np.testing.assert_array_equal(images[0], expected[folder][seed])
    assert follower.swaps == 5


def test_the_old_version_is_kept_and_a_way_back_costs_no_loading(first, second, serving):
    source = Naming(Served("digits", "1", str(first)))
    worker, _ = serving(source)
    until(lambda: worker.ready)
    old = worker.current
    source.answer = Served("digits", "2", str(second))
    until(lambda: worker.current is not old)
    assert worker.previous is old
    source.answer = Served("digits", "1", str(first))
    until(lambda: worker.current is old)


def broken_weights(folder):
    """Finite, and far from what was registered."""
    bundle = read_bundle(folder)
    bundle.model.conv_out.weight = bundle.model.conv_out.weight * 3.0
    reference = folder.parent / "kept"
    shutil.move(folder / "reference", reference)
    write_bundle(folder, bundle.model, bundle.schedule, bundle.sampler)
    shutil.move(reference, folder / "reference")
    write_digests(folder)


def huge_weights(folder):
    bundle = read_bundle(folder)
    bundle.model.conv_out.weight = bundle.model.conv_out.weight * 1e37
    shutil.rmtree(folder / "reference")
    write_bundle(folder, bundle.model, bundle.schedule, bundle.sampler)


def flat_weights(folder):
    bundle = read_bundle(folder)
    bundle.model.conv_out.weight = mx.zeros_like(bundle.model.conv_out.weight)
    bundle.model.conv_out.bias = mx.full((1,), -50.0)
    shutil.rmtree(folder / "reference")
    write_bundle(folder, bundle.model, bundle.schedule, bundle.sampler)


def changed_file(folder):
    path = folder / "sampler.json"
    path.write_text(path.read_text().replace("999", "998"))


def not_finite(folder):
    from safetensors.numpy import load_file, save_file

    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_out.bias"][:] = np.nan
    save_file(weights, path, metadata={"format": "pt"})
    write_digests(folder)


def pickled(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))
    write_digests(folder)


def leaves_its_folder(folder):
    told = json.loads((folder / "digests.json").read_text())
    told["files"]["../../outside"] = "0" * 64
    (folder / "digests.json").write_text(json.dumps(told))


BROKEN = {
    broken_weights: "does not draw the images it was registered with",
    huge_weights: "not finite",
    flat_weights: "images of one colour",
    changed_file: "differ from digests.json",
    not_finite: "not finite in conv_out.bias",
    pickled: "pickle|safetensors",
    leaves_its_folder: "relative file names",
}


@pytest.mark.parametrize("harm", BROKEN, ids=lambda harm: harm.__name__)
def test_a_broken_version_never_serves(first, tmp_path, serving, harm):
    bad = tmp_path / "9"
    shutil.copytree(first, bad)
    harm(bad)
    source = Naming(Served("digits", "1", str(first)))
    worker, follower = serving(source)
    until(lambda: worker.ready)
    before = one(worker).future.result(30).images
    source.answer = Served("digits", "9", str(bad))
    until(lambda: follower.problem)
    import re

    assert re.search(BROKEN[harm], follower.problem), follower.problem
    assert worker.current.model.version == "1"
    np.testing.assert_array_equal(one(worker).future.result(30).images, before)
    source.answer = Served("digits", "1", str(first))
    until(lambda: not follower.problem)


def test_a_digest_that_was_told_must_be_the_bundles(first):
    with pytest.raises(DataError, match="expected 000000000000"):
        load(Served("digits", "1", str(first), "0" * 64))


def test_without_the_registry_what_served_last_serves(first, tmp_path, serving):
    source = Naming(UnavailableError("the registry is away"))
    source.good = Served("digits", "1", str(first))
    worker, follower = serving(source)
    until(lambda: worker.ready)
    assert worker.current.model.version == "1" and follower.problem == "the registry is away"
    source.answer = Served("digits", "1", str(first))
    until(lambda: not follower.problem)


def test_the_store_remembers_the_last_good_version_of_what_is_followed(first, tmp_path):
    def source(reference):
        return RegistrySource("http://127.0.0.1:9", reference, tmp_path)

    champion = source("digits@champion")
    assert champion.last_good() is None
    served = Served("digits", "1", str(first), "d")
    champion.accepted(served)
    assert source("digits@champion").last_good() == served
    source("digits@serving").accepted(Served("digits", "2", str(first)))  # another server of the store
    assert source("digits@champion").last_good() == served
    assert source("other@champion").last_good() is None
    champion.accepted(Served("digits", "2", str(tmp_path / "gone")))
    assert champion.last_good() is None
    for text in ("{", "[]", '{"name": 1}', json.dumps({"name": "digits", "version": "1", "folder": "."})):
        (tmp_path / "last_good" / "digits@champion.json").write_text(text)
        assert champion.last_good() is None
    with pytest.raises(UnavailableError):
        champion.wanted()


@pytest.mark.parametrize("reference", ["digits", "@champion", "digits/1@champion", ""])
def test_a_reference_of_another_form_is_refused(tmp_path, reference):
    with pytest.raises(DataError, match="NAME@ALIAS or NAME/VERSION"):
        RegistrySource("http://127.0.0.1:9", reference, tmp_path)


def test_a_full_queue_refuses_and_a_stop_answers_those_who_wait(first, serving):
    worker, _ = serving(Naming(Served("digits", "1", str(first))), queue_images=2)
    until(lambda: worker.ready)
    engine = worker.current.engine
    going, release, step = threading.Event(), threading.Event(), engine.step

    def slow():
        going.set()
        release.wait(20)
        return step()

    engine.step = slow
    engine.most_rows = 1
    drawing = one(worker, 1)
    assert going.wait(10)
    waiting = [one(worker, 2), one(worker, 3)]
    with pytest.raises(QueueFullError, match=r"work of 2 images waits .* the queue holds 2 for each of 1 callers"):
        one(worker, 4)
    waiting[0].cancel()
    waiting.append(one(worker, 5))  # who left has made room
    worker.stop()
    release.set()
    assert drawing.future.result(20).images.shape == (1, 8, 8, 1)
    for ticket in waiting[1:]:
        with pytest.raises(UnavailableError, match="stopping"):
            ticket.future.result(20)
    with pytest.raises(UnavailableError):
        one(worker, 6)


def test_an_engine_that_fails_costs_its_requests_and_not_the_server(first, serving):
    worker, _ = serving(Naming(Served("digits", "1", str(first))))
    until(lambda: worker.ready)
    engine = worker.current.engine
    evaluate, engine._evaluate = engine._evaluate, lambda calls: 1 / 0
    failed = one(worker)
    with pytest.raises(ZeroDivisionError):
        failed.future.result(20)
    engine._evaluate = evaluate
    assert one(worker).future.result(20).images is not None


def test_a_bundle_without_classes_serves(tmp_path, serving):
    write_small_bundle(tmp_path / "plain", classes=())
    worker, _ = serving(Naming(Served("plain", "1", str(tmp_path / "plain"))))
    until(lambda: worker.ready)
    bundle = worker.current.engine.bundle
    found = worker.submit(Job(Plan.own(bundle), [-1], [4])).future.result(20)
    np.testing.assert_array_equal(found.images, draw(bundle, [-1], [4]))


def test_a_drill_damages_what_serves_and_not_its_files(first, serving, tmp_path):
    """What `serve --drill` does on its signal; the version that comes next is whole again."""
    from mlx_tasks.serving.drill import parse_drill

    copy = tmp_path / "2"
    shutil.copytree(first, copy)
    source = Naming(Served("digits", "1", str(first)))
    worker, _ = serving(source)
    until(lambda: worker.ready)
    before = one(worker).future.result(30).images
    worker.do(parse_drill("noise:0.5"))
    until(lambda: not np.array_equal(one(worker).future.result(30).images, before))
    assert np.array_equal(draw(read_bundle(first), [1], [1]), before)
    source.answer = Served("digits", "2", str(copy))
    until(lambda: worker.current.folder == str(copy))
    np.testing.assert_array_equal(one(worker).future.result(30).images, before)
    for wrong in ("noise", "noise:0", "noise:much", "fire:1", ""):
        with pytest.raises(DataError, match="noise:AMOUNT"):
            parse_drill(wrong)
