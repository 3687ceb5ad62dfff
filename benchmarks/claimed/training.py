"""The figures of docs/training.md."""

from __future__ import annotations

from claim import Page
from schedule_tables import listed

page = Page("docs/training.md")
rows = {(row["schedule"], row["seed"]): row for row in page.result("learned_schedule")["rows"]}
less, worse = [], []
for seed in (0, 1, 2):
    learned, cosine = rows["learned", seed], rows["cosine", seed]
    less.append(100 * (1 - learned["loss_spread"] / cosine["loss_spread"]))
    worse.append(100 * (learned["validation_loss"] / cosine["validation_loss"] - 1))
page.says(f"the training loss varies by {listed(less, 0, ' and ')} % less from step to step")
told = [f"{abs(value):.1f} % {'higher' if value > 0 else 'lower'}" for value in worse]
page.says(f"the validation loss of the same objective is {told[0]}, {told[1]} and {told[2]} than with the cosine")
freed = page.result("freed_memory")["rows"][0]["given_back_over_kept"]
page.says(
    f"take {freed['median']:.1f} times as long as keeping it does (`hardware.prepare`; {freed['low']:.1f} to "
    f"{freed['high']:.1f} in seven turns"
)
page.holds(freed["repeats"] == 7, "there were seven turns")
