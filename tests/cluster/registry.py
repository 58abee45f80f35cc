"""An image registry on a host of its own, over TLS with a CA that nobody knows, asking for a
password.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.cluster.network import Host

SYSTEM_CA = Path("/etc/ssl/certs/ca-certificates.crt")


class Registry:
    """`ca_bundle` holds what clients have to trust."""

    def __init__(self, address: str, user: str, password: str, ca_bundle: Path) -> None:
        self.address, self.user, self.password, self.ca_bundle = address, user, password, ca_bundle

    def environ(self, repository: str) -> dict[str, str]:
        """What lets a service keep its images there."""
        return {
            "CIC_REGISTRY_URL": self.address,
            "CIC_REGISTRY_USER": self.user,
            "CIC_REGISTRY_TOKEN": self.password,
            "CIC_BUILD_STORAGE": f"oras://{self.address}/{repository}",
            "CIC_BUILD_CA_BUNDLE": str(self.ca_bundle),
        }


@contextlib.contextmanager
def registry(host: Host, root: Path) -> Iterator[Registry]:
    """Debian's docker-registry, until the block ends."""
    root.mkdir()
    user, password = "pusher", secrets.token_hex(16)
    hashed = subprocess.run(
        ["htpasswd", "-niB", user], input=password.encode(), capture_output=True, check=True
    )
    (root / "htpasswd").write_bytes(hashed.stdout)
    certificate, key = root / "certificate.pem", root / "key.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=registry",
            "-addext",
            f"subjectAltName=IP:{host.address}",
            "-keyout",
            str(key),
            "-out",
            str(certificate),
        ],
        check=True,
        capture_output=True,
    )
    bundle = root / "bundle.pem"
    bundle.write_bytes(
        (SYSTEM_CA.read_bytes() if SYSTEM_CA.exists() else b"") + certificate.read_bytes()
    )
    (root / "config.yml").write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {root}/data}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '{host.address}:5000', tls: {{certificate: {certificate}, key: {key}}}}}\n"
        f"auth: {{htpasswd: {{realm: test, path: {root}/htpasswd}}}}\n",
        "utf-8",
    )
    with (root / "log").open("wb") as output:
        process = subprocess.Popen(
            [*host.prefix, "docker-registry", "serve", str(root / "config.yml")],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        end = time.monotonic() + 30
        while True:
            with (
                contextlib.suppress(OSError),
                socket.create_connection((host.address, 5000), timeout=2),
            ):
                break
            assert process.poll() is None and time.monotonic() < end, (root / "log").read_text()
            time.sleep(0.1)
        yield Registry(f"{host.address}:5000", user, password, bundle)
    finally:
        process.terminate()
        process.wait(10)
