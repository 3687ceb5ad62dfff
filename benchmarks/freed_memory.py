"""What does it bring that freed memory is kept (`hardware.prepare`), on a Linux CPU?

    python benchmarks/freed_memory.py

The gradients of a 3x3 convolution of 64 x 16 x 16 x 32, in a process that keeps what it freed and in one that gives it
back, taken in turn; medians of each process's repeats.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

from record import ROOT, ratio, save, spread

TURNS, REPEATS = 7, 15
CHILD = """
import json, sys, time
from mlx_tasks import hardware
if sys.argv[1] == "given back":
    hardware._keep_freed_memory = lambda: None
hardware.prepare()
import mlx.core as mx
x, w = mx.random.normal((64, 16, 16, 32)), mx.random.normal((32, 3, 3, 32))
gradients = mx.grad(lambda x, w: mx.conv2d(x, w, padding=1).square().sum(), argnums=(0, 1))
mx.eval(x, w)
seconds = []
for _ in range(int(sys.argv[2]) + 3):
    started = time.perf_counter()
    mx.eval(gradients(x, w))
    seconds.append(time.perf_counter() - started)
print(json.dumps(seconds[3:]))
"""


def once(way: str) -> float:
    """Milliseconds of one backward pass, the median of a fresh process's repeats."""
    command = [sys.executable, "-c", CHILD, way, str(REPEATS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=300)
    return 1000 * statistics.median(json.loads(done.stdout))


def main() -> None:
    """Take turns, tell, save."""
    taken: dict[str, list[float]] = {"kept": [], "given back": []}
    for _ in range(TURNS):
        for way, values in taken.items():
            values.append(once(way))
    row = {
        "kept_ms": spread(taken["kept"]),
        "given_back_ms": spread(taken["given back"]),
        "given_back_over_kept": ratio(taken["given back"], taken["kept"]),
    }
    print(row)
    save("freed_memory", question="What does it bring to keep freed memory?", config={"repeats": REPEATS}, rows=[row])


if __name__ == "__main__":
    main()
