"""The figures of docs/data.md."""

from __future__ import annotations

from claim import Page

page = Page("docs/data.md")

for row in page.result("near_duplicates")["rows"]:
    label = "digits (1797)" if row["images"] == "digits" else row["images"]
    shares = (f"{row[kind] - 1e-9:.2f}" for kind in ("JPEG 80", "half size", "blurred", "brighter"))
    page.row(label, row["taken_for_copies"], *(share.removeprefix("-") for share in shares))

rows = page.result("manifest_speed")["rows"]
for row in (row for row in rows if row["what"] == "stage"):
    page.row(f"{row['images']:,}", row["workers"], f"{row['peak_mb']:.0f} MB", f"{row['stage_s']:.0f} s")
looks = [row for row in rows if row["what"] == "looks"]
told = [f"{row['group_s']:.1f} s for {row['images']:,}" for row in looks]
page.says(f"{', '.join(told[:-1])} and {told[-1]}")

page.given("or the file is above 1 GiB", "a bound: mlx_tasks/data/decode.py")
page.given("Pillow's own limit of 178,956,970 pixels", "Pillow's")
page.given("No text is expanded beyond 1 MB", "a bound: mlx_tasks/data/rescue.py")
page.given("4,000 and more in as many as", "a rule: mlx_tasks/data/children.py")
page.given("1 GiB and 48 bytes for each pixel of `data.max_pixels` (3.5 GB by default)", "a bound")
page.given("20 times a second", "how often the parent looks")
page.given("| processor time | 120 s |", "a bound: mlx_tasks/data/children.py")
page.given("| time on the clock | 900 s,", "a bound: mlx_tasks/data/children.py")
page.given("| length of the file | 1 GiB |", "a bound: mlx_tasks/data/decode.py")
page.given("(cosine at least 0.98)", "a rule: mlx_tasks/data/near.py")
