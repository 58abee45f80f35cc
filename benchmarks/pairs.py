"""Measure how often `check` is right: `python3 -m benchmarks.pairs FOLDER`.

Needs root, Docker and Apptainer.

A host of Debian 12 with real Slurm (munge, PMIx, one node) runs in a container, and images are
userlands of Debian 12 and 13 with their own Open MPI and MPICH. `cic_cli here` collects the host's
facts; each pair of image and launcher is predicted, and then started by the job script that the
service would hand over: two ranks have to find each other within a minute. FOLDER keeps what
mmdebstrap made for the next time.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from image_builder.audit.compatibility import check
from image_builder.launch.script import script
from image_builder.launch.start import Start
from image_builder.request.collected_facts import parse_facts
from image_builder.request.machines import MachineFacts, machine_facts
from image_builder.request.recognise import recognise

PROJECT = Path(__file__).parents[1]
HOST = "cic-pairs-host"
HOST_PACKAGES = "slurm-wlm,slurm-wlm-basic-plugins,munge,procps,openmpi-bin"
IMAGE_PACKAGES = "gcc,libc6-dev,openmpi-bin,libopenmpi-dev,mpich,libmpich-dev"
IMAGES = {
    "bookworm": {"openmpi": "4.1.4", "mpich": "4.0.2"},
    "trixie": {"openmpi": "5.0.7", "mpich": "4.2.1"},
}
LAUNCHERS: Mapping[str, Mapping[str, str]] = {
    "as found": {},
    "pmi2": {"pmi": "pmi2"},
    "pmix": {"pmi": "pmix"},
    "pmix_v4": {"pmi": "pmix_v4"},
    "cray_shasta": {"pmi": "cray_shasta"},
}
SLURM_CONF = """ClusterName=pairs
SlurmctldHost=pairs
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SlurmUser=root
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmdParameters=config_overrides
NodeName=pairs CPUs=8 State=UNKNOWN
PartitionName=p Nodes=pairs Default=YES MaxTime=INFINITE State=UP
"""
START_SLURM = """set -e
mkdir -p /run/munge /var/spool/slurmctld /var/spool/slurmd
chown munge: /run/munge
touch /etc/localtime
cp /work/slurm.conf /etc/slurm/slurm.conf
[ -e /etc/munge/munge.key ] || head -c 1024 /dev/urandom >/etc/munge/munge.key
chown munge: /etc/munge/munge.key
chmod 400 /etc/munge/munge.key
ln -sf libpmix.so.2 /usr/lib/x86_64-linux-gnu/pmix2/lib/libpmix.so  # Slurm loads it by this name
ln -sf /opt/apptainer/bin/apptainer /usr/local/bin/singularity
su -s /bin/sh munge -c /usr/sbin/munged
slurmctld
slurmd
for _ in 1 2 3 4 5 6 7 8 9; do sinfo -h -t idle | grep -q pairs && exit; sleep 1; done
"""
PROGRAM = r"""#include <mpi.h>
#include <stdio.h>
int main(int count, char **words) {
    int rank, ranks, sum = 0, one;
    MPI_Init(&count, &words);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    one = rank + 1;
    MPI_Allreduce(&one, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    if (rank == 0) printf("ranks %d sum %d\n", ranks, sum);
    MPI_Finalize();
    return 0;
}
"""
MET = "ranks 2 sum 3"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """An image by its userland and MPI, a launcher, what was predicted of them and what was seen."""

    suite: str
    mpi: str
    launcher: str
    predicted: str
    seen: bool

    @property
    def right(self) -> bool:
        return self.seen == (self.predicted != "does_not_run")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    _prepare(folder)
    try:
        _start_host(folder)
        pairs = list(_pairs(folder))
    finally:
        subprocess.run(["docker", "rm", "--force", HOST], capture_output=True, check=False)
    right = sum(pair.right for pair in pairs)
    print(f"{right} of {len(pairs)} predictions were right")
    return int(right < len(pairs))


def _prepare(folder: Path) -> None:
    """Make the userlands, and the program in each, where they are not there yet."""
    (folder / "work").mkdir(parents=True, exist_ok=True)
    _userland(folder / "host.tar", "bookworm", HOST_PACKAGES)
    for suite, mpis in IMAGES.items():
        root = folder / "images" / suite
        if not (root / "opt").is_dir():
            _userland(folder / f"{suite}.tar", suite, IMAGE_PACKAGES)
            root.mkdir(parents=True)
            _run("tar", "-C", str(root), "-xf", str(folder / f"{suite}.tar"), "--exclude=./dev/*")
        (root / "work").mkdir(exist_ok=True)
        (root / "opt" / "meet.c").write_text(PROGRAM, "utf-8")
        for mpi in mpis:
            compiled = (f"mpicc.{mpi}", "-o", f"/opt/meet_{mpi}", "/opt/meet.c")
            _run("chroot", str(root), *compiled)


def _userland(archive: Path, suite: str, packages: str) -> None:
    if not archive.exists():
        _run("mmdebstrap", "--variant=apt", f"--include={packages}", suite, str(archive))


def _start_host(folder: Path) -> None:
    (folder / "work" / "slurm.conf").write_text(SLURM_CONF, "utf-8")
    (folder / "work" / "start.sh").write_text(START_SLURM, "utf-8")
    (folder / "work" / "cic_cli").write_bytes((PROJECT / "cic_cli").read_bytes())
    _run("docker", "import", str(folder / "host.tar"), f"{HOST}:1")
    mounts = [
        f"-v{folder}/images:/images",
        f"-v{folder}/work:/work",
        "-v/opt/apptainer:/opt/apptainer",
    ]
    options = ["--detach", "--init", "--privileged", f"--name={HOST}", "--hostname=pairs"]
    _run("docker", "run", *options, *mounts, f"{HOST}:1", "sleep", "infinity")
    _run("docker", "exec", HOST, "bash", "/work/start.sh")


def _pairs(folder: Path) -> Iterator[Pair]:
    collected = _run("docker", "exec", HOST, "bash", "/work/cic_cli", "here")
    found = recognise(parse_facts(collected.encode()), {}).facts
    for suite, mpis in IMAGES.items():
        for mpi, version in mpis.items():
            for launcher, changes in LAUNCHERS.items():
                machine = machine_facts({**found, **changes}, {})
                pair = _tried(folder, suite, (mpi, version), launcher, machine)
                verdict = "right" if pair.right else "WRONG"
                met = "two ranks" if pair.seen else "none"
                line = f"{suite:9} {mpi:8} {version:6} {launcher:12}"
                print(f"{line} predicted {pair.predicted:13} seen {met:10} {verdict}", flush=True)
                yield pair


def _tried(
    folder: Path, suite: str, mpi: tuple[str, str], launcher: str, machine: MachineFacts
) -> Pair:
    name, version = mpi
    image = {
        "cic.platform": machine.platform,
        "cic.target": "x86_64",
        "cic.mpi.name": name,
        "cic.mpi.family": name,
        "cic.mpi.version": version,
    }
    start = Start(
        image=image,
        machine=machine,
        file=f"/images/{suite}",
        reference=suite,
        program=(f"/opt/meet_{name}",),
    )
    text = script(start, "slurm").text
    if "--mpi=" not in text:  # what does not fit is started all the same, by what there is
        text = text.replace("srun ", f"srun --mpi={machine.pmi[0]} ", 1)
    (folder / "work" / "job.sh").write_text(text, "utf-8")
    (folder / "work" / "out").unlink(missing_ok=True)
    job = ["timeout", "--kill-after=5", "60", "sbatch", "--wait", "--output=/work/out", "job.sh"]
    inside = ["--env=APPTAINER_USERNS=1", "--workdir=/work", HOST]
    subprocess.run(["docker", "exec", *inside, *job], capture_output=True, check=False)
    subprocess.run(
        ["docker", "exec", HOST, "scancel", "--user=root"], capture_output=True, check=False
    )
    out = folder / "work" / "out"
    seen = out.exists() and MET in out.read_text("utf-8", "replace")
    predicted = check(image, machine).answer
    return Pair(suite=suite, mpi=name, launcher=launcher, predicted=predicted, seen=seen)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    raise SystemExit(main())
