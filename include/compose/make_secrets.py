"""Write the control plane's secrets to .env, and one file of settings for each worker. Needs Python and `openssl`.

    make_secrets.py [--hosts plane.example.org,192.0.2.7]   what .env holds already stays; what it lacks is added
    make_secrets.py --worker mac2 [--computes-only]         writes worker-mac2.env too: the control plane knows mac2
    make_secrets.py --remove mac2                           a lost Mac: everything that it held is worth nothing
    make_secrets.py --rotate                                new secrets (but STAY), new files for all workers

After each of them `docker compose up -d` starts again what is concerned. All files are for their owner alone, and git
ignores them.
"""

from __future__ import annotations

import argparse
import base64
import ipaddress
import os
import re
import secrets
import sys
from pathlib import Path

import certificates
import workers

ROOT = Path(__file__).resolve().parent.parent.parent
LOOPBACK = ("127.0.0.1", "localhost")
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")


def _packed(pem: str) -> str:
    return base64.b64encode(pem.encode()).decode()


def _unpacked(word: str) -> str:
    return base64.b64decode(word).decode()


MAKERS = {
    "POSTGRES_PASSWORD": lambda: secrets.token_hex(24),  # letters and digits: it becomes part of an address
    "AIRFLOW_DB_PASSWORD": lambda: secrets.token_hex(24),
    "MLFLOW_DB_PASSWORD": lambda: secrets.token_hex(24),
    "AIRFLOW_FERNET_KEY": lambda: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    "AIRFLOW_SIGNING_KEY": lambda: _packed(certificates.private_key()),
    "AIRFLOW_API_SECRET_KEY": lambda: secrets.token_hex(32),
    "AIRFLOW_ADMIN_PASSWORD": lambda: secrets.token_urlsafe(18),
    "MLFLOW_ADMIN_PASSWORD": lambda: secrets.token_urlsafe(18),
    "MLFLOW_SESSION_KEY": lambda: secrets.token_hex(32),
    "GRAFANA_ADMIN_PASSWORD": lambda: secrets.token_urlsafe(18),
    "WATCH_PASSWORD": lambda: secrets.token_urlsafe(18),
    "STORE_ADMIN_ACCESS_KEY": lambda: secrets.token_hex(10),
    "STORE_ADMIN_SECRET_KEY": lambda: secrets.token_hex(20),
    "STORE_ACCESS_KEY": lambda: secrets.token_hex(10),
    "STORE_SECRET_KEY": lambda: secrets.token_hex(20),
    "ALERT_TOKEN": lambda: secrets.token_hex(24),
    "ALERT_SECRET": lambda: secrets.token_hex(24),
}
STAY = {"POSTGRES_PASSWORD", "AIRFLOW_FERNET_KEY"}
"""They belong to what the volumes hold: another password opens no old cluster, another key reads no old row."""
OF_FILES = ("TLS_AUTHORITY", "TLS_AUTHORITY_KEY", "TLS_CERTIFICATE", "TLS_KEY")
GONE = {"AIRFLOW_JWT_SECRET"}


def main() -> None:
    """Do what was asked, and say what to do next."""
    given = _arguments()
    values = {name: value for name, value in _read(given.folder / ".env").items() if name not in GONE}
    if given.rotate:
        values = {name: value for name, value in values.items() if name in STAY or name not in MAKERS}
    added = {name: make() for name, make in MAKERS.items() if not values.get(name)}
    values = workers.none() | values | added
    values["ADO_HOSTS"] = ",".join(_hosts(given.hosts, values.get("ADO_HOSTS")))
    _certify(values, given)
    said = _workers(values, given)
    values["STORE_IDENTITIES"] = workers.store_identities(values)
    values["REGISTRARS"] = ",".join(["admin", *workers.registrars(values)])
    _write(given.folder / ".env", "The control plane's secrets: docker compose reads them.", values)
    print(f".env: {len(added)} made, {len(MAKERS) - len(added)} kept; this machine is {values['ADO_HOSTS']}")
    for line in said:
        print(line)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", help="names and addresses under which workers and browsers reach this machine")
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--worker", metavar="NAME", help="let the control plane know this worker, and write its file")
    one.add_argument("--remove", metavar="NAME", help="let the control plane forget this worker")
    one.add_argument(
        "--rotate", action="store_true", help="new secrets for all, new files for the workers that are known"
    )
    parser.add_argument("--computes-only", action="store_true", help="with --worker: it may not touch the registry")
    parser.add_argument(
        "--certificate", type=Path, help="a certificate of your own for the proxy (PEM, with its chain)"
    )
    parser.add_argument("--key", type=Path, help="the key of --certificate (PEM)")
    parser.add_argument("--folder", type=Path, default=ROOT, help="where the files go (default: the checkout)")
    given = parser.parse_args()
    if given.computes_only and not given.worker:
        parser.error("--computes-only says something of --worker NAME")
    if (given.certificate is None) != (given.key is None):
        parser.error("--certificate and --key belong together")
    return given


def _hosts(given: str | None, kept: str | None) -> list[str]:
    """Names of this machine, the first one is what workers' files name.  Raises: SystemExit for one that is none."""
    told = given if given is not None else kept
    if told is None and sys.stdin.isatty():
        told = input(
            "names or addresses under which workers and browsers reach this machine, comma-separated [127.0.0.1]: "
        )
    hosts = [host.strip() for host in (told or "").split(",") if host.strip()]
    for host in hosts:
        if not HOST.fullmatch(host) and not _is_address(host):
            raise SystemExit(
                f"--hosts must be names or addresses without scheme and port, comma-separated; got {host!r}"
            )
    return list(dict.fromkeys([*hosts, *LOOPBACK]))


def _is_address(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False


def _certify(values: dict[str, str], given: argparse.Namespace) -> None:
    """TLS of the proxy: one's own certificate, or one by an authority that this control plane has for itself."""
    if given.certificate:
        chain = given.certificate.read_text()
        values |= {"TLS_CERTIFICATE": _packed(chain), "TLS_KEY": _packed(given.key.read_text()), "TLS_OWN": "yes"}
        values.setdefault("TLS_AUTHORITY", "")
        values.setdefault("TLS_AUTHORITY_KEY", "")
        return
    if values.get("TLS_OWN") and not given.rotate:
        return
    hosts = values["ADO_HOSTS"].split(",")
    good = all(values.get(name) for name in OF_FILES)
    if good and not given.rotate and certificates.is_good(_unpacked(values["TLS_CERTIFICATE"]), hosts):
        return
    if not good or given.rotate:
        key, certificate = certificates.authority()
        values |= {"TLS_AUTHORITY_KEY": _packed(key), "TLS_AUTHORITY": _packed(certificate)}
        values.pop("TLS_OWN", None)
    key, certificate = certificates.server(
        _unpacked(values["TLS_AUTHORITY_KEY"]), _unpacked(values["TLS_AUTHORITY"]), hosts
    )
    values |= {"TLS_KEY": _packed(key), "TLS_CERTIFICATE": _packed(certificate)}


def _workers(values: dict[str, str], given: argparse.Namespace) -> list[str]:
    """Change whom the control plane knows; what to tell."""
    if given.remove is not None:
        if not workers.remove(values, given.remove):
            known = ", ".join(workers.names(values)) or "nobody"
            raise SystemExit(f"there is no worker {given.remove!r}: the control plane knows {known}")
        # A task at hand holds a token of its own, which this key signed.
        values["AIRFLOW_SIGNING_KEY"] = MAKERS["AIRFLOW_SIGNING_KEY"]()
        (given.folder / f"worker-{given.remove}.env").unlink(missing_ok=True)
        return [
            f"{given.remove} is out once this ran: docker compose up -d   (tasks at hand start again from checkpoints)"
        ]
    chosen = {given.worker: given.computes_only} if given.worker else {}
    if given.rotate:
        chosen = {name: name not in workers.registrars(values) for name in workers.names(values)}
    said = []
    for name, only_computes in chosen.items():
        settings = workers.add(values, name, only_computes)
        title = "A worker's settings: as worker.env on that machine alone, mode 600, then `make worker`."
        _write(given.folder / f"worker-{name}.env", title, settings)
        said.append(f"worker-{name}.env: copy it to {name} as worker.env; it is the only copy of that worker's key")
    return [*said, "then: docker compose up -d"] if said else []


def _read(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    lines = (line.partition("=") for line in path.read_text().splitlines() if line.strip() and line[0] != "#")
    return {name.strip(): value.strip() for name, _, value in lines}


def _write(path: Path, title: str, values: dict[str, str]) -> None:
    """A file for its owner alone from its first byte on; the old one stays whole until the new one is."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)  # of a run that was ended: it may have another mode, or be somebody's link
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"# {title}\n" + "".join(f"{name}={value}\n" for name, value in values.items()))
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


if __name__ == "__main__":
    main()
