"""Reads what Grafana would be provisioned with, and answers /api/health while all of it can be read."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml


def problem() -> str | None:
    """What is wrong with the provisioning, or None."""
    try:
        assert os.environ["GF_SECURITY_ADMIN_PASSWORD"], "no password"
        for path in Path("/etc/grafana/provisioning").rglob("*.yml"):
            told = yaml.safe_load(path.read_text())
            for provider in told.get("providers", []):
                boards = list(Path(provider["options"]["path"]).glob("*.json"))
                assert boards, f"{path}: no dashboard"
                for board in boards:
                    json.loads(board.read_text())
        Path("/var/lib/grafana/written").write_text("")
    except (AssertionError, KeyError, OSError, ValueError, yaml.YAMLError) as error:
        return f"{type(error).__name__}: {error}"
    return None


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        wrong = problem() if self.path == "/api/health" else "not here: this is a stand-in"
        body = json.dumps({"database": "ok"} if wrong is None else {"error": wrong}).encode()
        self.send_response(200 if wrong is None else 503)
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("0.0.0.0", 3000), Handler).serve_forever()
