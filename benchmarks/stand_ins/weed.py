#!/usr/bin/python3
"""`weed server -dir=FOLDER -s3.config=FILE`, done by Swift: four servers, one device, S3 on port 8333.

Access keys must read ACCOUNT:USER, which is how Swift names whoever may come in; whoever does may do everything here.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

ETC = Path("/etc/swift")
PORTS = {"object": 6200, "container": 6201, "account": 6202}
PIPELINE = "catch_errors gatekeeper healthcheck cache listing_formats s3api tempauth bulk slo dlo copy proxy-server"


def options() -> dict[str, str]:
    """-name=value of the command line."""
    return dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:] if "=" in word)


def write_settings(folder: Path, people: list[dict]) -> None:
    """Swift's configuration and its rings; both follow from nothing but this file, so data stay readable."""
    users = ""
    for one in people:
        account, _, user = one["accessKey"].partition(":")
        assert account and user, f"{one['accessKey']} must read ACCOUNT:USER here"
        users += f"user_{account}_{user} = {one['secretKey']} .admin\n"
    (ETC / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = trial\n")
    filters = "".join(
        f"[filter:{name}]\nuse = egg:swift#{'memcache' if name == 'cache' else name}\n"
        for name in PIPELINE.split()[:-1]
        if name not in ("s3api", "tempauth")
    )
    (ETC / "proxy-server.conf").write_text(
        "[DEFAULT]\nbind_ip = 0.0.0.0\nbind_port = 8333\nworkers = 2\nuser = swift\n"
        f"[pipeline:main]\npipeline = {PIPELINE}\n"
        "[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\nallow_account_management = true\n"
        "[filter:s3api]\nuse = egg:swift#s3api\nlocation = us-east-1\ns3_acl = false\n"
        f"[filter:tempauth]\nuse = egg:swift#tempauth\n{users}{filters}"
    )
    for kind, port in PORTS.items():
        (ETC / f"{kind}-server.conf").write_text(
            f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {port}\nworkers = 1\nuser = swift\ndevices = {folder}\n"
            f"mount_check = false\n[pipeline:main]\npipeline = {kind}-server\n"
            f"[app:{kind}-server]\nuse = egg:swift#{kind}\n"
        )
        builder = f"/tmp/{kind}.builder"
        for words in (
            ["create", "4", "1", "1"],
            [
                "add",
                "--region",
                "1",
                "--zone",
                "1",
                "--ip",
                "127.0.0.1",
                "--port",
                str(port),
                "--device",
                "d1",
                "--weight",
                "1",
            ],
            ["rebalance"],
        ):
            subprocess.run(["swift-ring-builder", builder, *words], check=True, stdout=subprocess.DEVNULL)
        os.replace(f"/tmp/{kind}.ring.gz", ETC / f"{kind}.ring.gz")


def main() -> None:
    """Serve until told to stop; one server's end is the end of all."""
    os.umask(0o022)  # Swift's servers read their configuration as a user of their own
    given = options()
    folder = Path(given["dir"])
    (folder / "d1").mkdir(parents=True, exist_ok=True)
    subprocess.run(["chown", "-R", "swift:swift", str(folder)], check=True)
    people = json.loads(Path(given["s3.config"]).read_text())["identities"]
    write_settings(folder, [one["credentials"][0] for one in people])
    servers = [subprocess.Popen(["memcached", "-u", "swift", "-l", "127.0.0.1"])]
    servers += [
        subprocess.Popen([f"swift-{kind}-server", str(ETC / f"{kind}-server.conf"), "-v"]) for kind in (*PORTS, "proxy")
    ]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        os.wait()
    finally:
        for server in servers:
            server.terminate()


if __name__ == "__main__":
    main()
