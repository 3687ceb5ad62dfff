"""A small bundle with a reference, and `mlx-tasks serve` as a process of its own."""

import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import httpx
import numpy as np
from ports import free_port
from registry_workspace import write_small_bundle

from mlx_tasks.models.bundle import read_bundle
from mlx_tasks.registry.draw import draw
from mlx_tasks.registry.reference import make_reference, write_reference


def bundle_with_reference(folder, seed=3):
    write_small_bundle(folder, seed)
    bundle = read_bundle(folder)
    real = draw(bundle, [i % 3 for i in range(80)], list(range(90_000, 90_080)))
    noisy = np.clip(real + np.random.default_rng(0).normal(0, 12, real.shape), 0, 255).astype(np.uint8)
    write_reference(folder, make_reference(bundle, noisy, 120))
    return folder


class Server:
    """`mlx-tasks serve` on a free loopback port."""

    def __init__(
        self,
        *arguments: str,
        env: dict[str, str] | None = None,
        key: str | None = None,
        before: Callable[[], object] | None = None,
    ) -> None:
        """before: called in the new process before it becomes the server."""
        self.before = before
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.arguments, self.env = ["--port", str(port), "--poll", "0.1", *arguments], {**os.environ, **(env or {})}
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.Client(base_url=self.url, timeout=30, trust_env=False, headers=headers)
        self.start()

    def start(self):
        command = [sys.executable, "-m", "mlx_tasks", "serve", *self.arguments]
        self.process = subprocess.Popen(
            command,
            start_new_session=True,
            stderr=subprocess.PIPE,
            text=True,
            env=self.env,
            stdout=subprocess.DEVNULL,
            preexec_fn=self.before,
        )

    def wait(self, path="/readyz", status=200, patience_s=60):
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            try:
                answer = self.http.get(path)
                if answer.status_code == status:
                    return answer
            except httpx.TransportError:
                pass
            assert self.process.poll() is None, self.process.stderr.read()
            time.sleep(0.05)
        raise AssertionError(f"{path} never answered {status}")

    def wait_for(self, field, value, patience_s=60):
        """Until what serves has this field's value."""
        deadline = time.monotonic() + patience_s
        self.wait("/livez", patience_s=patience_s)
        while time.monotonic() < deadline:
            served = self.serving()
            if served and served[field] == value:
                return served
            time.sleep(0.05)
        raise AssertionError(f"{field} never became {value!r}: {self.serving()}, {self.http.get('/readyz').text}")

    def serving(self):
        return next((one for one in self.http.get("/v1/models").json()["data"] if one["serves"]), None)

    def draw(self, **body):
        return self.http.post("/v1/images/generations", json=body)

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        try:
            self.process.wait(15)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
            self.process.stderr.close()


def pngs(answer):
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(entry["b64_json"]) for entry in answer.json()["data"]]
