"""Why an image is refused: the reasons, what each means for whoever must act, and the exception that carries one."""

from __future__ import annotations

REASONS: dict[str, str] = {
    "missing_file": "the metadata names a file that is not in the folder",
    "outside_folder": "the metadata names a file outside the dataset's folder, or a link leads out of it",
    "unreadable": "the file cannot be opened (permissions, a broken link, a disk error), or is none (a pipe, a device)",
    "not_an_image": "the bytes are no image of a format that is read here, whatever the name says",
    "truncated": "the file ends before the image does",
    "corrupt": "the image is damaged: its decoder or its checksums say so",
    "unsupported_mode": "the pixels are of a kind with no one way to eight bits (floats, 32-bit integers, Lab)",
    "bomb": "the header asks for more pixels than data.max_pixels, or the file is above 1 GiB; nothing was decoded",
    "too_small": "the shorter side is below data.min_side",
    "bad_aspect": "the longer side over the shorter is above data.max_aspect_ratio",
    "missing_label": "other images have a label and this one has none",
    "bad_label": "the label is no text or whole number, or the same pixels stand elsewhere under another label",
    "missing_caption": "other images have a caption and this one has neither caption nor label",
}
"""Each reason with one sentence for the quarantine page and docs/data.md."""


class Refusal(Exception):
    """An image is refused.

    Attributes:
        reason: a key of REASONS.
        detail: the value that broke the rule, for one line of text.
        width: from the header where it could be read, else 0 (pixels).
        height: as width.
    """

    def __init__(self, reason: str, detail: str, width: int = 0, height: int = 0) -> None:
        assert reason in REASONS, reason
        self.reason = reason
        self.detail = detail
        self.width = width
        self.height = height
        super().__init__(f"{reason}: {detail}")
