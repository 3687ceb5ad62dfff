"""DVC, hashing a folder without what nobody could read in it: broken links, pipes, files without the right to read.

DVC stops at the first of them, before the stage starts that would put it into quarantine and say why; at a pipe it
waits for ever. `python -m mlx_tasks.workspace.dvc_walk` is the command `dvc` with this.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def without_unreadable_files() -> Iterator[None]:
    """Inside, DVC's hashes of folders leave out what cannot be read, so that it counts as not being there."""
    from dvc_data.hashfile import build
    from dvc_objects.fs.local import LocalFileSystem

    walk = build._walk_files

    def readable(fs: Any, path: str, ignore: Any = None) -> Iterator[tuple[str, dict[str, Any]]]:
        if not isinstance(fs, LocalFileSystem):
            yield from walk(fs, path, ignore=ignore)
            return
        for root, _, names in ignore.walk(fs, path) if ignore else fs.walk(path):
            places = {str(name): os.path.join(str(root), str(name)) for name in names}
            yield str(root), {name: fs.info(place) for name, place in places.items() if is_readable_file(place)}

    build._walk_files = readable  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        build._walk_files = walk


def is_readable_file(path: str) -> bool:
    """Whether the path, links followed, is a plain file that this process may read."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode) and os.access(path, os.R_OK)
    except OSError:
        return False


def main(arguments: list[str]) -> int:
    """The command `dvc`."""
    from dvc.cli import main as dvc

    with without_unreadable_files():
        return int(dvc(arguments) or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
