"""The figures of docs/extractors.md."""

from __future__ import annotations

from claim import Page

page = Page("docs/extractors.md")
speed = {row["extractor"]: row for row in page.result("features_per_second")["rows"]}


def rate(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


for label, name in (
    ("Inception v3, 299 px", "inception_v3_fid, 299 px"),
    ("CLIP ViT-B/32, 224 px", "clip_vit_b32, 224 px"),
    ("DINOv2 ViT-S/14, 224 px", "dinov2_vits14, 224 px"),
    ("AlexNet stack, 64 px", "lpips backbone alex, 64 px"),
    ("VGG16 stack, 64 px", "lpips backbone vgg, 64 px"),
):
    row = speed[name]
    page.row(
        label,
        rate(row["mlx_per_second"]["median"]),
        rate(row["torch_per_second"]["median"]),
        f"{row['torch_seconds_over_mlx_seconds']['median']:.2f}",
    )
for name in ("random_conv", "self_supervised"):
    page.says(f"| `{name}`, 32 px | {rate(speed[f'{name}, 32 px']['mlx_per_second']['median'])} | | |")

many = {(row["extractor"], row["count"]): row for row in page.result("frechet_of_many")["rows"]}
built_in, few = many["random_conv", 10_000], many["random_conv", 1000]
page.says(f"of 10,000 images of 32 pixels takes {built_in['ten_thousand_s']:.1f} s with the built-in space")
page.says(f"a million would take {60 * built_in['a_million_h']:.0f} minutes")
page.holds(abs(few["peak_mb"] - built_in["peak_mb"]) < 5, "the memory is the same at 1,000 and at 10,000")
page.says(f"the memory is the same at 1,000 and at 10,000 ({round(built_in['peak_mb'], -1):.0f} MB)")
inception = many["inception_v3_fid", 200]
page.says(
    f"With Inception 200 images took {inception['features_s']:.0f} s, so that 10,000 would take "
    f"{inception['ten_thousand_s'] / 60:.0f} minutes and a million {inception['a_million_h']:.0f} hours, in "
    f"{inception['peak_mb'] / 1000:.1f} GB whatever the count"
)
distances = sorted(many["inception_v3_fid", count]["distance_s"] for count in (100, 200))
page.says(f"takes {distances[0]:.0f} to {distances[1]:.0f} s")
page.given("a Frechet distance over 20 times that of another good filter", "tests/test_extractors_inception.py")
