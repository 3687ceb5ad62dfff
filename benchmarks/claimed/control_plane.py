"""The figures of docs/control_plane.md."""

from __future__ import annotations

from claim import Page

page = Page("docs/control_plane.md")
fleet = page.result("fleet_figures")["rows"]


def figure(name: str, **more: object) -> dict:
    """The row of a figure."""
    return next(row for row in fleet if row["figure"] == name and all(row.get(k) == v for k, v in more.items()))


def told(row: dict) -> str:
    """Median with the lowest and the highest."""
    return f"{row['median']:.1f} s ({row['low']:.1f} to {row['high']:.1f}"


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}"


page.says(f"| a task that does nothing | {told(figure('seconds of a task that does nothing'))}, the first) |")
page.says(f"| between two such tasks | {told(figure('seconds between two tasks that do nothing'))}): the executor's")
beyond = figure("seconds of a stage's task beyond the stage's own")
embedded = page.result("node_overhead")["config"]["overhead"]["median"]
page.says(
    f"| a stage's task beyond the stage's own work | {told(beyond)}), where the embedded stack takes {embedded:.1f} s"
)
between = figure("seconds between two stages' tasks")
page.says(f"| between two stages' tasks | {told(between)}) |")
first = figure("seconds from the trigger to the first line of training")
page.says(f"with a dataset to validate | {first['median']:.0f} s (one run) |")
one, two, four = (figure("16 search trials", workers=count) for count in (1, 2, 4))
page.says(
    f"| 16 search trials of {one['median']:.0f} s ({one['low']:.0f} to {one['high']:.0f}) on one worker | "
    f"{one['wall_seconds']:.0f} s |"
)
page.says(f"| the same on two | {two['wall_seconds']:.0f} s: {two['speed_up']:.1f} times as fast |")
page.says(
    f"| the same on four, as many as cores | {four['wall_seconds']:.0f} s: {four['speed_up']:.1f} times as fast; "
    f"a trial takes {four['median']:.0f} s ({four['low']:.0f} to {four['high']:.0f}) then |"
)
bytes_of = {row["run"]: row for row in fleet if row["figure"] == "bytes between workers and store"}
new, more, same = (bytes_of[name] for name in ("first", "training-changed", "nothing-changed"))
page.says(
    f"first run of seven tasks | {megabytes(new['up'])} MB and {megabytes(new['down'])} MB; "
    f"{megabytes(new['new_in_the_store'])} MB are new"
)
page.says(
    f"| the same, with one step more of training | {megabytes(more['up'])} MB and {megabytes(more['down'])} MB; "
    f"{more['new_in_the_store'] / 1e6:.2f} MB new |"
)
page.says(
    f"| the same, nothing changed | {megabytes(same['up'])} MB and {megabytes(same['down'])} MB (what the other worker "
    f"had made); nothing new; {same['seconds']:.0f} s |"
)

undisturbed = page.result("chaos")["rows"][0]
page.says(f"| nothing | 1 | | | {undisturbed['longest_silence_s']} s | |")
LABELS = {
    "cache": "a byte of every file in both caches is another, and the worker is killed",
    "api-server-away": "the API server away for five minutes: training goes on",
}
latest = {row["run"]: row for name in ("chaos", "chaos_away") for row in page.result(name)["rows"]}
for name, row in latest.items():
    if name == "undisturbed":
        continue
    page.holds(row["state"] == "success" and row["equal"], f"after {name} the weights are the same")
    page.row(
        LABELS.get(name, row["fault"]),
        row["tries"],
        *("" if row[key] is None else row[key] for key in ("told_step", "resumed_step")),
        f"{row['longest_silence_s']} s",
        "yes",
    )
stages = page.result("chaos_stages")
same_bytes = sum(row["equal"] for row in stages["rows"])
page.says(f"Of the chain's {len(stages['rows'])} files {same_bytes} are the same bytes")
page.given("after 30 s without a heartbeat", "a setting of Airflow's: task_instance_heartbeat_timeout")
page.given("logs of 50 MB at most", "a setting: docker-compose.yaml")
tries = stages["config"]["disturbed"]["killed_after_s"]
page.says(f"{sum(after is not None for after in tries.values())} of the {len(tries)} stages' processes were killed")
page.holds({name for name, after in tries.items() if after is None} == {"tune", "report"}, "tune and report were not")
