"""A function over many items in child processes: what takes one down is lost alone, whatever way it goes."""

import os
import signal
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from mlx_tasks.data.children import Bounds, Lost, in_children

BOUNDS = Bounds(memory_bytes=400_000_000)


def answer(item: int | str) -> object:
    """The item's double; a word says what goes wrong instead."""
    match item:
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "leave":
            os._exit(3)
        case "spin":
            while True:
                pass
        case "sleep":
            signal.pause()
        case "eat":
            eaten = []
            while True:
                eaten.append(np.ones(4_000_000))  # 32 MB, touched
        case "spoil":
            # Sound by itself, and the next item in the same process crashes: as after a write out of bounds.
            os.environ["SPOILT"] = "yes"
        case "object":
            raise KeyError("a fault of ours")
    if "SPOILT" in os.environ and item != "spoil":
        os.kill(os.getpid(), signal.SIGSEGV)
    return item * 2


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("crash", "it was ended by SIGSEGV"),
        ("leave", "its process ended with exit code 3"),
        ("spin", "it took more than 0.5 s of processor time and was stopped"),
        ("sleep", "it did not end within 1 s and was stopped"),
        ("eat", "it took more than 400 MB and was stopped"),
    ],
)
def test_what_takes_its_process_down_is_lost_and_nothing_else_is(word, why):
    items = [*range(20), word, *range(20)]
    doubles = [number * 2 for number in range(20)]
    bounds = replace(BOUNDS, **{"spin": {"cpu_s": 0.5}, "sleep": {"wall_s": 1.0}}.get(word, {}))
    assert list(in_children(answer, items, 1, bounds)) == [*doubles, Lost(why), *doubles]


def test_an_item_that_falls_to_what_another_left_is_not_lost():
    assert list(in_children(answer, [1, "spoil", 2, 3], 1, BOUNDS)) == [2, "spoilspoil", 4, 6]


def test_answers_come_in_order_from_several_children_with_losses_between():
    items = ["crash" if number % 80 == 20 else number for number in range(160)]
    expected = [Lost("it was ended by SIGSEGV") if item == "crash" else item * 2 for item in items]
    assert list(in_children(answer, items, 2, BOUNDS)) == expected


def test_an_exception_of_the_function_is_raised_here_with_its_place():
    with pytest.raises(KeyError, match="a fault of ours") as caught:
        list(in_children(answer, [1, "object", 2], 1, BOUNDS))
    assert "in answer" in caught.value.__notes__[0]


def test_few_answers_are_held_while_nobody_asks():
    """A child does not run ahead of who takes the answers by more than a stated number."""
    items = Counted(range(10_000))
    answers = in_children(answer, items, 1, BOUNDS)
    assert [next(answers) for _ in range(3)] == [0, 2, 4]
    assert items.most < 300
    answers.close()


def test_no_items_need_no_child():
    started = time.monotonic()
    assert list(in_children(answer, [], 4, BOUNDS)) == []
    assert time.monotonic() - started < 0.1


class Counted(list):
    """Items that remember the highest place asked for."""

    most = 0

    def __getitem__(self, place):
        self.most = max(self.most, place)
        return super().__getitem__(place)


def test_another_copy_of_the_package_in_the_way_is_not_taken(tmp_path, monkeypatch):
    """As MLflow leaves `sys.path` when it has loaded a model with source files of its own."""
    (tmp_path / "mlx_tasks" / "data").mkdir(parents=True)
    for folder in (tmp_path / "mlx_tasks", tmp_path / "mlx_tasks" / "data"):
        (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert list(in_children(answer, [1, 2], 1, BOUNDS)) == [2, 4]
    assert sys.path[0] == str(tmp_path)
