"""The figures of docs/samplers.md."""

from __future__ import annotations

from statistics import mean

from claim import Page
from error_control_figures import EVALUATIONS_AND_ERRORS, LOG_SPREADS, ORACLE, ORACLE_SAVED, OVER_SEARCHED, OWN_SPREADS
from schedule_tables import span

page = Page("docs/samplers.md")

for row in page.result("solver_order")["rows"]:
    if "order" in row:
        page.row(f"`{row['solver']}`", *(f"{e:.2g}" for e in row["error_at_calls"].values()), f"{row['order']:.2f}")

rows = page.result("quality_guided")["rows"]
tried = [row for row in rows if row.get("patience") == 2]


def by_tolerance(key: str, places: int) -> str:
    """The span over seeds, for each of the three tolerances."""
    told = [span([row[key] for row in tried if row["tolerance"] == one], places) for one in (0.02, 0.04, 0.08)]
    return f"{told[0]}, {told[1]} and {told[2]}"


early = [100 * row["too_early"] for row in rows if "too_early" in row]
early_of_two = [100 * row["too_early"] for row in tried]
page.says(
    f"tolerances of 0.02, 0.04 and 0.08 stop the images after {by_tolerance('mean_nfe', 1)} evaluations on average "
    f"with errors of {by_tolerance('error', 3)}, {span(early_of_two, 0)} % of them too early "
    f"({mean(early):.0f} % on average over seeds, tolerances and patience 1 and 2)."
)
fixed = [row["fixed"] for row in rows if "fixed" in row]
there = [row["fixed_error_at_that_mean"] for row in tried]
page.says(
    f"Fixed grids with searched ends have {span(there, 3)} at those means, and {fixed[0]['4']:.3f} at four evaluations."
)
page.says(f"An oracle that knows each image's error needs {by_tolerance('oracle_nfe', 1)}:")
page.given("three seeds, coverage 0.9, patience 2", "what was asked for: config of the result")

page.result("steps_per_image")
page.says(EVALUATIONS_AND_ERRORS)
page.says(f"half the error of the default grids at five, and {OVER_SEARCHED} more evaluations than searched grids")
factor = 2.718281828 ** mean(LOG_SPREADS)
page.says(f"by a factor of {factor:.1f} (standard deviation of its logarithm {span(LOG_SPREADS, 2)})")
page.holds(max(OWN_SPREADS) < 0.5, "the error-controlled steps of a batch differ by less than half an evaluation")
page.says(f"saves {ORACLE} at equal mean error in three seeds, most often under 5")
page.holds(ORACLE_SAVED[len(ORACLE_SAVED) // 2] < 5, "it saves most often under 5 %")
page.given("the 30 % that were hoped for", "a hope, not a measurement")

kept = [row for row in page.result("steps_by_class")["rows"] if row.get("coverage") == 0.95 and "mean_nfe" in row]
saved = {key: [100 * row[key] for row in kept] for key in ("saved_same_promise", "saved_same_share", "oracle_saved")}
promise, share = saved["saved_same_promise"], saved["saved_same_share"]
page.says(
    f"{mean(promise):.0f} % fewer ({span(promise, 0)}, three seeds) than one number for all that promises as much"
)
page.says(f"{mean(share):.0f} % fewer than one with as many images within the quality")
page.holds(mean(saved["oracle_saved"]) > 50, "an oracle of single images would save more than half")

detector = page.result("domain_detector")
test, unseen = detector["rows"][0], detector["rows"][1]
for label, row in (
    ("other shares of the fitted sources", test),
    ("sources never seen (other typefaces, pattern families)", unseen),
):
    page.row(
        label,
        f"{100 * row['image_accuracy']:.1f} % of {row['images']:,}",
        f"{100 * row['set_accuracy']:.1f} % of {row['sets']}",
        f"{row['calibration_error']:.3f}",
    )
named = []
for row in (test, unseen):
    photographs = row["confusion"]["photographs"]
    named.append(100 * photographs["photographs"] / sum(photographs.values()))
page.says(f"it names {span(named, 0)} % of the images")
settings = [row for row in detector["rows"] if "domain" in row]
for row in settings:
    best = row["best"]
    page.row(
        row["domain"],
        f"`{best['solver']}`, `{best['grid']}`, sigma {best['sigma_first']:g} to {best['sigma_last']:g}",
        *(f"{row[key]:#.2g}" for key in ("error", "error_of_unknowns_settings", "error_of_uniform_ddim")),
    )
plain = [row["error_of_uniform_ddim"] / row["error"] for row in settings]
worth = max(row["error_of_unknowns_settings"] / row["error"] for row in settings)
page.says(
    f"Leaving the plain grid is worth a factor of {span(plain, 0)}; knowing the domain at most another "
    f"{100 * (worth - 1):.0f} %."
)
page.given(
    "| `alpha_bar` | `alpha^2`, as diffusers' `alphas_cumprod`, equal to it to the bit | 0.99996 to 2.4e-9 |",
    "the cosine's own values",
)
page.given("| `sigma` | `std / alpha`: noise over signal | 0.0064 to 20,000 |", "the cosine's own values")
page.given("Range (cosine schedule, 1,000 timesteps)", "a definition")
page.given("quantiles of Beta(0.6, 0.6) over", "a definition: Lee et al. 2024")
page.given("`sigma` from 10 to 0.1, spaced evenly", "a setting: config of the result")
page.given("(4,096 against 15,000)", "what diffusers computes: tests/test_samplers_following.py follows it")
page.given("of 256 of a domain's images smeared by 0.15", "a setting: config of the result")
page.given("sigma 80 to 0.2.", "the settings themselves: include/domains.json")
