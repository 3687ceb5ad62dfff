"""`make fuzz`: every target with new seeds for a stated time; the inputs of findings stay in .run/fuzz.

    PYTHONPATH=tests python -m fuzzing --seconds 300 [--only image http] [--first 1000]
    PYTHONPATH=tests python -m fuzzing --only image --case 123     one case again, its input left in .run/fuzz

Ends with 1 where anything was found.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from fuzzing.served import Receiver, image_request
from fuzzing.targets import ROOT, TARGETS, run
from mlx_tasks.data.children import Bounds, Lost, in_children

BOUNDS = Bounds(memory_bytes=3 * 2**29, cpu_s=30.0, wall_s=120.0)
"""What one input of a file may take."""
_ROUND = 200
SERVED = ("http", "alert")


def try_files(name: str, seeds: range) -> Iterator[tuple[int, str]]:
    """(seed, what was found) of each finding among a target's cases, which run in a child process."""
    for seed, found in zip(seeds, in_children(run, [(name, seed) for seed in seeds], 1, BOUNDS), strict=True):
        if isinstance(found, Lost):
            yield seed, found.why
        elif found:
            yield seed, found


def main() -> int:
    """Fuzz until the time is over, round by round; the number of findings decides the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--only", nargs="+", choices=[*TARGETS, *SERVED], default=[*TARGETS, *SERVED])
    parser.add_argument("--first", type=int, default=int(time.time()) % 1_000_000 * 1000, help="first seed")
    parser.add_argument("--case", type=int, help="one seed of one target again")
    arguments = parser.parse_args()
    kept = ROOT / ".run" / "fuzz"
    if arguments.case is not None:
        (name,) = arguments.only
        folder = kept / f"{name}-{arguments.case}"
        shutil.rmtree(folder, ignore_errors=True)
        found = run((name, arguments.case), str(folder)) if name in TARGETS else _served(name, arguments.case)
        print(f"{name} {arguments.case}: {found or 'as promised'}\n  {folder}")
        return int(bool(found))
    print(f"seeds from {arguments.first}", flush=True)
    ends, first, told = time.monotonic() + arguments.seconds, arguments.first, {}
    tried = 0
    while time.monotonic() < ends:
        for name in arguments.only:
            seeds = range(first, first + _ROUND)
            for seed, found in try_files(name, seeds) if name in TARGETS else _all_served(name, seeds):
                told.setdefault(f"{name}: {found[:80]}", []).append(seed)
                if len(told[f"{name}: {found[:80]}"]) == 1:
                    again = f"PYTHONPATH=tests {sys.executable} -m fuzzing --only {name} --case {seed}"
                    print(f"FOUND {name} {seed}: {found}\n  again: {again}", flush=True)
                    if name in TARGETS and "ended" not in found and "took" not in found:
                        run((name, seed), str(kept / f"{name}-{seed}"))
            tried += len(seeds)
            if time.monotonic() >= ends:
                break
        first += _ROUND
    print(f"{tried} inputs, {sum(map(len, told.values()))} findings of {len(told)} kinds")
    return int(bool(told))


def _all_served(name: str, seeds: range) -> Iterator[tuple[int, str]]:
    if name == "alert":
        with Receiver() as receiver:
            yield from ((seed, found) for seed in seeds if (found := receiver.alert(seed)))
        return
    from serving_world import Server, bundle_with_reference

    with TemporaryDirectory() as folder:
        server = Server("--bundle", str(bundle_with_reference(Path(folder, "digits"))))
        try:
            server.wait()
            port = int(server.url.rsplit(":", 1)[1])
            yield from ((seed, found) for seed in seeds if (found := image_request(port, seed)))
            assert server.process.poll() is None, "the server ended"
        finally:
            server.stop()


def _served(name: str, seed: int) -> str:
    return next((found for _, found in _all_served(name, range(seed, seed + 1))), "")


if __name__ == "__main__":
    raise SystemExit(main())
