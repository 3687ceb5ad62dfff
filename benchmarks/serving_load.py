"""What does batching bring under load? The server with batches of up to 32 rows against the same one at a time.

    python benchmarks/serving_load.py FOLDER --clients 1 4 16 64

A real load tool (hey) asks for one image a request; both servers run on loopback, one after the other, in turns, and
each figure is the median of the turns with the lowest and the highest. Throughput is given as a ratio too.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from record import RESULTS, hardware, save

QUESTION = "What do shared batches bring at 1, 4, 16 and 64 clients?"
SERVERS = {"batched": 32, "one at a time": 1}


class Server:
    """`mlx-tasks serve` for one turn."""

    def __init__(self, bundle: Path, batch: int) -> None:
        import httpx

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "mlx_tasks", "serve", "--bundle", str(bundle), "--port", str(port)]
        self.process = subprocess.Popen([*command, "--batch", str(batch)], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.url}/readyz", trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        classes = httpx.get(f"{self.url}/v1/models", trust_env=False).json()["data"][0]["classes"]
        self.body = {"class": classes[0]} if classes else {}

    def load(self, clients: int, requests: int) -> dict[str, float]:
        """Images a second and latencies (ms) of so many requests by so many clients."""
        command = ["hey", "-n", str(requests), "-c", str(clients), "-t", "0", "-m", "POST", "-T", "application/json"]
        command += ["-d", json.dumps(self.body), "-o", "csv", f"{self.url}/v1/images/generations"]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - began
        rows = list(csv.DictReader(io.StringIO(done.stdout)))
        failed = [row for row in rows if row["status-code"] != "200"]
        if failed or not rows:
            raise SystemExit(f"{len(failed)} of {len(rows)} requests failed")
        took = sorted(1000 * float(row["response-time"]) for row in rows)
        quantiles = {f"p{q}_ms": took[min(len(took) - 1, int(q / 100 * len(took)))] for q in (50, 95, 99)}
        return {"images_per_s": len(rows) / seconds, **quantiles}

    def stop(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


def middle(values: list[float]) -> dict[str, float]:
    """Median, lowest, highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--requests", type=int, default=24, help="at least, and four a client")
    parser.add_argument("--name", default="serving_load")
    given = parser.parse_args()
    if not shutil.which("hey"):
        raise SystemExit("this needs hey: `apt-get install hey`, or `brew install hey`")
    hardware.prepare()
    from mlx_tasks.models.bundle import read_bundle

    bundle = read_bundle(given.bundle)
    measured: dict[tuple[str, int], list[dict[str, float]]] = {}
    servers = {name: Server(given.bundle, batch) for name, batch in SERVERS.items()}
    try:
        for server in servers.values():
            server.load(2, 8)
        for turn in range(given.turns):
            for clients in given.clients:
                for name, server in servers.items():
                    found = server.load(clients, max(given.requests, 4 * clients))
                    measured.setdefault((name, clients), []).append(found)
            print(f"turn {turn + 1} of {given.turns}", flush=True)
    finally:
        for server in servers.values():
            server.stop()
    rows: list[dict[str, Any]] = []
    print(f"{'clients':>7}  {'server':<14}{'images/s':>9}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}   ratio of images/s")
    for clients in given.clients:
        pairs = zip(measured["batched", clients], measured["one at a time", clients], strict=True)
        ratio = middle([one["images_per_s"] / other["images_per_s"] for one, other in pairs])
        for name in SERVERS:
            found = measured[name, clients]
            figures = {key: middle([one[key] for one in found]) for key in found[0]}
            rows.append({"clients": clients, "server": name, **figures, "throughput_ratio": ratio})
            told = f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" if name == "batched" else ""
            print(
                f"{clients:>7}  {name:<14}{figures['images_per_s']['median']:>9.1f}"
                + "".join(f"{figures[f'p{q}_ms']['median']:>9.0f}" for q in (50, 95, 99))
                + f"   {told}"
            )
    config = {"nfe": bundle.sampler.nfe, "resolution": bundle.sampler.resolution, "bundle": bundle.digest}
    save(given.name, question=QUESTION, config={**config, "turns": given.turns, "cores": os.cpu_count()}, rows=rows)
    print(f"saved {RESULTS / given.name}.json")


if __name__ == "__main__":
    main()
