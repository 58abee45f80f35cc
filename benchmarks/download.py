"""Compare how fast the service and Apache send a SIF: `python3 -m benchmarks.download`.

Both send in turn, over HTTP on this machine, to the same client. Needs Apache.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rows import Row, show
from image_builder.store.folder import ImageStore
from image_builder.store.record import ImageRecord
from tests.support.site import PASSWORD, USER, free_port, make_site, running_service

SIF_BYTES = 512 * 1024**2
ROUNDS = 7
APACHE = """
ServerName localhost
Listen 127.0.0.1:{port}
ServerRoot {root}
PidFile {root}/apache.pid
ErrorLog {root}/error.log
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
DocumentRoot {files}
EnableSendfile on
{user}
"""
MODULES = Path("/usr/lib/apache2/modules")


def main() -> None:
    show(rows())


def rows() -> list[Row]:
    """Return the ratio of our rate to Apache's."""
    what = "download against Apache serving the same file"
    if shutil.which("apache2") is None or not MODULES.exists():
        return [Row(what, None, 0.9, at_least=True, note="there is no apache2")]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)  # Apache's own user reads in it
        site = make_site(root / "site")
        sif = store_sif(ImageStore(site.tmp_folder / "store"))
        with running_service(site) as service, running_apache(root / "apache", sif) as apache:
            ours_url = f"{service.url}/image_creation/images/download/a.sif"
            ours, theirs = [], []
            for _ in range(ROUNDS):
                theirs.append(fetch(apache))
                ours.append(fetch(ours_url))
    ours_s, theirs_s = statistics.median(ours), statistics.median(theirs)
    return [
        Row(
            what,
            theirs_s / ours_s,
            0.9,
            at_least=True,
            note=f"{SIF_BYTES / 1024**2 / ours_s:.0f} and {SIF_BYTES / 1024**2 / theirs_s:.0f} MB/s",
        )
    ]


def store_sif(store: ImageStore) -> Path:
    with store.temporary_path() as temporary:
        with temporary.open("wb") as file:
            for _ in range(SIF_BYTES // 1024**2):
                file.write(os.urandom(1024**2))
        record = store.publish(
            temporary,
            ImageRecord(
                identity="sha256:" + "0" * 64,
                image_id="a",
                platform="linux/amd64",
                filename="a.sif",
            ),
        )
    assert record.sha256 is not None
    return store.path_of(record.sha256)


@contextlib.contextmanager
def running_apache(root: Path, sif: Path) -> Iterator[str]:
    """Run an Apache that serves a link to `sif` and nothing else; yields its URL."""
    files = root / "files"
    files.mkdir(parents=True)
    os.link(sif, files / "a.sif")
    sif.chmod(0o644)
    port = free_port()
    configuration = root / "apache.conf"
    configuration.write_text(
        APACHE.format(
            port=port,
            root=root,
            files=files,
            modules=MODULES,
            user="User www-data\nGroup www-data" if os.geteuid() == 0 else "",
        ),
        "utf-8",
    )
    process = subprocess.Popen(["apache2", "-DFOREGROUND", "-f", str(configuration)])
    try:
        time.sleep(2)
        yield f"http://127.0.0.1:{port}/a.sif"
    finally:
        process.terminate()
        process.wait(30)


def fetch(url: str) -> float:
    """Return the seconds that the download takes; nothing is kept."""
    begun = time.monotonic()
    done = subprocess.run(
        [
            "curl",
            "--fail",
            "--silent",
            "--show-error",
            "--user",
            f"{USER}:{PASSWORD}",
            "--output",
            "/dev/null",
            "--write-out",
            "%{size_download}",
            url,
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(done.stdout) == SIF_BYTES
    return time.monotonic() - begun


if __name__ == "__main__":
    main()
