"""What every number of the report means, for someone who sees it for the first time."""

from __future__ import annotations

GLOSSARY: tuple[tuple[str, str], ...] = (
    (
        "Frechet distance",
        "How far the generated images are from held-out real ones, taken as clouds of points in a space of random "
        "convolutions that nobody trained. 0 is a perfect match; how small is good, the reference sets show. It "
        "has no unit and depends on the number of images, so only equal counts compare. Published FID values live "
        "in another space and do not compare either.",
    ),
    (
        "Kernel distance",
        "The same question as the Frechet distance, without the assumption of a Gaussian cloud, and without bias at "
        "small counts. 0, or slightly below it, means no difference was found.",
    ),
    (
        "Precision",
        "The share of generated images that lie among real ones: low where many look wrong.",
    ),
    (
        "Recall",
        "The share of real images that lie among generated ones: low where kinds of images never come.",
    ),
    (
        "Two-sample accuracy",
        "How often a simple classifier tells a generated image from a real one. 0.5 is guessing: it sees no "
        "difference. 1.0 is certainty. Its p-value is the chance of such an accuracy if there were no difference.",
    ),
    (
        "Image-text score",
        "How well images fit their captions, 0 to 100, as judged by a small image-text model trained on this "
        "dataset's captions. What it is worth is said beside it: how often that model picks the right caption of "
        "a held-out image, and its score for captions that were shuffled.",
    ),
    (
        "Learned features",
        "The Frechet distance again, in the features of a small network that learned to take noise out of this "
        "dataset's training images. It sees shapes better than random convolutions do; its values compare only "
        "between candidates scored with the same network.",
    ),
    (
        "Density, coverage",
        "Precision and recall's steadier relatives: how many real neighbourhoods a generated image lies in, on "
        "average (about 1 is best), and the share of real neighbourhoods that hold a generated image.",
    ),
    (
        "Near copies",
        "The share of generated images that lie nearer to a training image than 5 % of held-out real images do. "
        "About 0.05 is what fresh images score; much more means that training images are being copied.",
    ),
    (
        "Sanity ladder",
        "Sets of known worth (real images, the same with grain, blurred, a class missing, a Gaussian, noise) that "
        "every metric must put in order before its word counts.",
    ),
    (
        "Interval [low, high]",
        "Where the number would fall, at the stated confidence, if the same measurement were made on other "
        "images. Two candidates whose intervals overlap widely are not to be told apart by that number.",
    ),
    (
        "NFE",
        "Network evaluations one image costs. Guidance runs the network twice a step, so a guided step counts 2.",
    ),
    (
        "Steps",
        "Intervals of the sampler's grid, from noise to image.",
    ),
    (
        "Latency",
        "Milliseconds one image takes on this machine, drawn in batches of the stated size: the median of "
        "repeated runs after a warm-up.",
    ),
    (
        "Teacher, student, searched student",
        "The teacher is trained on the images. Each student learns to do in half the steps what the one before "
        "does. The searched student has a network of its own, found by trying many, and learns from the teacher.",
    ),
    (
        "Guidance",
        "The teacher exaggerates the difference between drawing a given class and drawing anything; the scale "
        "says how much. Students have it built in.",
    ),
    (
        "Log SNR",
        "How much of a noisy image is image: the logarithm of signal power over noise power. Sampling goes from "
        "very negative (noise) to positive (data); a grid is the list of places where the network is asked on the "
        "way.",
    ),
    (
        "Pareto front",
        "The architectures that no other one beats in error, latency and memory at once.",
    ),
    (
        "Gate",
        "Rules a winner must meet before it may serve as champion. A refusal is an answer, not a failure.",
    ),
)
"""(term, explanation) in the order in which the report needs them."""
