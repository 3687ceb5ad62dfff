"""From a prompt to a class: its name in any spelling, or a caption that holds one."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from mlx_tasks.data.class_names import name_key, squeeze
from mlx_tasks.errors import DataError

ANY_CLASS = -1
LISTED = 20
"""Names that a message lists at most."""


class ClassNames:
    """A model's class names, ready to be looked up: built once, and a look-up takes no longer for more classes.

    Names are equal where `data.class_names.name_key` says so. Of several classes with equal names (`A` and `a`) the one
    that is spelt as asked for is meant.
    """

    def __init__(self, names: Sequence[str], captions: Sequence[str] = ()) -> None:
        """captions: a class' caption in training, one a class or none; it names its class where it stands alone."""
        self.names = tuple(names)
        self._spelt = {name: label for label, name in enumerate(self.names)}
        self._by_key: dict[str, list[int]] = defaultdict(list)
        self._by_caption: dict[str, list[int]] = defaultdict(list)
        for label, name in enumerate(self.names):
            if key := name_key(name):
                self._by_key[key].append(label)
        for label, caption in enumerate(captions[: len(self.names)]):
            self._by_caption[name_key(caption)].append(label)
        self._lengths = sorted({len(key) for key in self._by_key}, reverse=True)

    def named(self, label: str) -> int:
        """The class of this name.  Raises: DataError for none, or several none of which is spelt so."""
        if label in self._spelt:
            return self._spelt[label]
        found = self._by_key.get(name_key(label), [])
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(f"class: {label[:80]!r} may be {self._listed(found)}: spell one of them as it stands here")
        raise DataError(f"class: one of the model's ({self._listed()}), got {label[:80]!r}")

    def in_prompt(self, prompt: str) -> int:
        """The one class that a prompt names; ANY_CLASS for a model without classes.

        A name counts where it stands as words of its own ("cat" is not in "caterpillar"); in scripts that set no spaces
        it counts anywhere. A name inside a longer one that is there ("bear" in "polar bear") does not count.
        Raises: DataError where no class or more than one is named, with the names.
        """
        if not self.names:
            return ANY_CLASS
        if prompt.strip() in self._spelt:
            return self._spelt[prompt.strip()]
        squeezed = squeeze(prompt)
        trained = self._by_caption.get(squeezed.text, [])
        if len(trained) == 1:
            return trained[0]
        text, end_before, labels = squeezed.text, 0, set[int]()
        for start in squeezed.starts:
            for length in self._lengths:
                end = start + length
                if end in squeezed.ends and (found := self._by_key.get(text[start:end])):
                    if end > end_before:  # else it stands inside one that began earlier
                        labels.update(self._as_spelt(found, prompt))
                        end_before = end
                    break
        if len(labels) == 1:
            return labels.pop()
        if labels:
            raise DataError(f"prompt: it must name one class, this one names {self._listed(sorted(labels), ' and ')}")
        raise DataError(f"prompt: it must name one of the model's classes ({self._listed()}), got {prompt[:80]!r}")

    def _as_spelt(self, labels: list[int], prompt: str) -> list[int]:
        """Of classes with equal names, those whose own spelling is in the prompt; all where none is."""
        if len(labels) == 1:
            return labels
        spelt = [one for one in labels if re.search(rf"(?<!\w){re.escape(self.names[one])}(?!\w)", prompt)]
        return spelt or labels

    def _listed(self, labels: Sequence[int] | None = None, between: str = ", ") -> str:
        """Names for a message, the first of them and each of bounded length; without quotes where all are meant."""
        if labels is None:
            names = [name if len(name) <= 40 else f"{name[:40]}..." for name in self.names[:LISTED]]
            return ", ".join([*names, *(["..."] if len(self.names) > LISTED else [])]) or "none"
        names = [repr(self.names[label][:40]) for label in labels[:LISTED]]
        return between.join(names) + (f"{between}others" if len(labels) > LISTED else "")
