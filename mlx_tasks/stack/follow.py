"""Follow a run in the terminal: which node, how far, how fast, what it scored."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from mlx_tasks.errors import UnavailableError
from mlx_tasks.files import read_json
from mlx_tasks.progress import format_progress
from mlx_tasks.stack.api import AirflowApi
from mlx_tasks.stack.news import News

POLL_S = 1.0
DONE_STATES = frozenset({"success", "failed", "upstream_failed", "skipped", "removed"})
_MARKS = {"success": "✓", "failed": "✗", "upstream_failed": "✗", "running": "▶", "skipped": "–", "up_for_retry": "↻"}


@dataclass
class Node:
    """One node of the graph as it stands: the tasks of a group, or of a mapped task, taken together."""

    name: str
    states: list[str] = field(default_factory=list)
    seconds: float = 0.0
    tries: int = 1

    @property
    def state(self) -> str:
        """The state that says most about the node."""
        for state in ("failed", "upstream_failed", "running", "up_for_retry", "queued", "scheduled"):
            if state in self.states:
                return state
        done = [s for s in self.states if s in DONE_STATES]
        if self.states and len(done) == len(self.states):
            return "success" if "success" in done else done[0]
        return "running" if done else "waiting"


def nodes_of(tasks: list[dict[str, Any]]) -> list[Node]:
    """Task instances folded into the chain's nodes, in the order in which they are first seen to start."""
    nodes: dict[str, Node] = {}
    for task in sorted(tasks, key=lambda t: t.get("start_date") or "9999"):
        name = task["task_id"].split(".")[0]
        node = nodes.setdefault(name, Node(name))
        node.states.append(task["state"] or "waiting")
        node.seconds += _seconds(task)
        node.tries = max(node.tries, task.get("try_number") or 1)
    return list(nodes.values())


def follow(
    api: AirflowApi,
    dag_id: str,
    run_id: str,
    progress_folder: Path,
    *,
    order: tuple[str, ...] = (),
    plain: bool | None = None,
) -> str:
    """Show a run until it ends; its final state.

    What the watcher of the stack did, and what a run waits for that stands still, is told too; a server that is away is
    waited for.

    Args:
        progress_folder: the workspace's `.run/progress`, read while stages run (it may not exist yet).
        order: the nodes in the order in which they shall be shown.
        plain: lines instead of a table that redraws itself; by default where stdout is no terminal.
    Raises: InterruptedStageError where `make down` ended the stack; UnavailableError where the watcher gave it up;
        DataError where there is no such run.
    """
    plain = not sys.stdout.isatty() if plain is None else plain
    news = News(api, dag_id, progress_folder)
    with _plain_view() if plain else _live_view(run_id) as show:
        while True:
            notes = news.of_the_stack()
            try:
                run, tasks = api.run(dag_id, run_id), api.tasks(dag_id, run_id)
                nodes, lines = nodes_of(tasks), _progress_lines(progress_folder)
                notes += news.of_the_run(run, tasks, lines)
            except UnavailableError as error:
                news.away(error)
                show(notes, None, {})
            else:
                rank = {name: i for i, name in enumerate(order)}
                nodes.sort(key=lambda node: rank.get(node.name, len(rank)))
                show(notes, nodes, lines)
                if run["state"] in ("success", "failed"):
                    return run["state"]
            time.sleep(POLL_S)


def _progress_lines(folder: Path) -> dict[str, str]:
    """Target -> its progress in one line, oldest first."""
    records = []
    with contextlib.suppress(OSError):
        for path in folder.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                record = read_json(path)
                records.append((record["updated"], path.stem, format_progress(record)))
    return {name: line for _, name, line in sorted(records)}


Show = Callable[[list[str], list[Node] | None, dict[str, str]], None]
"""Takes what is new in words, the nodes (None while the server is away), and a line of progress per target."""


@contextlib.contextmanager
def _plain_view() -> Iterator[Show]:
    """A view that prints what changed since it was last called."""
    seen_nodes: dict[str, str] = {}
    seen_lines: dict[str, str] = {}

    def show(notes: list[str], nodes: list[Node] | None, lines: dict[str, str]) -> None:
        for note in notes:
            print(f"! {note}", flush=True)
        for name, line in lines.items():
            if seen_lines.get(name) != line:
                seen_lines[name] = line
                print(f"  {line}", flush=True)
        for node in nodes or []:
            if node.state not in ("waiting", "scheduled", "queued") and seen_nodes.get(node.name) != node.state:
                seen_nodes[node.name] = node.state
                tail = f" after {node.seconds:.0f} s" if node.state in DONE_STATES else ""
                print(f"{_MARKS.get(node.state, ' ')} {node.name}: {node.state}{tail}", flush=True)

    yield show


@contextlib.contextmanager
def _live_view(run_id: str) -> Iterator[Show]:
    """A table that redraws itself; what is new in words stays above it."""
    from rich.live import Live

    started = time.monotonic()
    with Live(refresh_per_second=4, transient=False) as live:

        def show(notes: list[str], nodes: list[Node] | None, lines: dict[str, str]) -> None:
            for note in notes:
                live.console.print(f"! {note}", style="yellow", markup=False, highlight=False)
            if nodes is not None:
                live.update(_table(run_id, nodes, lines, time.monotonic() - started))

        yield show


def _table(run_id: str, nodes: list[Node], lines: dict[str, str], elapsed: float) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    colours = {
        "success": "green",
        "failed": "red",
        "upstream_failed": "red",
        "running": "cyan",
        "up_for_retry": "yellow",
    }
    table = Table(title=f"{run_id} · {elapsed:.0f} s", title_justify="left", expand=False)
    table.add_column("")
    table.add_column("node")
    table.add_column("state")
    table.add_column("seconds", justify="right")
    for node in nodes:
        style = colours.get(node.state, "dim")
        note = f" (try {node.tries})" if node.tries > 1 else ""
        seconds = f"{node.seconds:.0f}" if node.seconds else ""
        table.add_row(_MARKS.get(node.state, " "), node.name, node.state + note, seconds, style=style)
    return Group(table, *(Text(line, overflow="ellipsis", no_wrap=True) for line in list(lines.values())[-2:]))


def _seconds(task: dict[str, Any]) -> float:
    if not task.get("start_date"):
        return 0.0
    begin = datetime.fromisoformat(task["start_date"].replace("Z", "+00:00"))
    if task.get("end_date"):
        return (datetime.fromisoformat(task["end_date"].replace("Z", "+00:00")) - begin).total_seconds()
    return max(0.0, (datetime.now(begin.tzinfo) - begin).total_seconds())
