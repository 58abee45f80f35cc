"""Measure how often `check` is right: `python3 -m benchmarks.pairs FOLDER [--write] [--only WORD]`.

Needs root, Docker and Apptainer.

Two hosts, Debian 12 and 13 with real Slurm (munge, PMIx, one node), run in containers. Images are
userlands of Debian 11 to 13 with Open MPI 4 and 5, MPICH 3 to 5 and Intel MPI, of Debian and of PyPI;
their labels come from their files, as a build reads them. `cic_cli here` collects a host's facts.
All pairs of image, host and what its launcher offers are predicted first, and then each is started
by the job script that the service would hand over: two ranks have to find each other in time. FOLDER
keeps what was made for the next time; `--write` puts the table into the documentation, and `--only`
takes the pairs in whose line a word is.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks import userlands
from benchmarks.docs import DOCS, replace_table
from benchmarks.userlands import IMAGES, MEET, PREFIX, SITE_MPI, run
from image_builder.audit.compatibility import Report, check
from image_builder.docker import label_names
from image_builder.launch.facts import ANY_MPI, STANDARD_ABI
from image_builder.launch.script import script
from image_builder.launch.start import Start
from image_builder.request.collected_facts import parse_facts
from image_builder.request.machines import MachineFacts, machine_facts
from image_builder.request.recognise import recognise

PROJECT = Path(__file__).parents[1]
CONTAINER = "cic-pairs-host"
HOSTS = ("bookworm", "trixie")
LAUNCHERS: Mapping[str, Mapping[str, str]] = {
    "all it has": {},
    "pmi2": {"pmi": "pmi2"},
    "pmix": {"pmi": "pmix"},
}
BY_ABI: Mapping[str, Mapping[str, str]] = {
    f"{name}, site's MPICH 5": {**offered, "mpi": "mpich@5.0"}
    for name, offered in LAUNCHERS.items()
    if name != "all it has"
}
"""For images with programs that may run with the site's MPI."""
TIME_LIMIT_S = 120
MET = "ranks 2 sum 3"
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
case $(slurmd -V) in *\\ 2[0-2].*) ;; *) echo CgroupPlugin=disabled >/etc/slurm/cgroup.conf ;; esac
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """An image by its name, a host and what its launcher offers, and what is predicted of them."""

    image: str
    labels: Mapping[str, str]
    host: str
    launcher: str
    machine: MachineFacts
    report: Report
    seen: bool | None = None

    @property
    def is_right(self) -> bool:
        return self.seen == (self.report.answer != "does_not_run")

    @property
    def mpi(self) -> str:
        name = self.labels.get(label_names.MPI_NAME, "?")
        if name == ANY_MPI:
            return "no MPI"
        return f"{name} {self.labels.get(label_names.MPI_VERSION, '?')}"

    @property
    def row(self) -> tuple[str, ...]:
        rule = ", ".join(one.rule for one in self.report.findings)
        outcome = {True: "two ranks", False: "none", None: "-"}[self.seen]
        verdict = "right" if self.is_right else "wrong"
        glibc = self.labels.get(label_names.GLIBC, "?")
        by_abi = self.labels.get(label_names.MPI_NEEDED, "").startswith(STANDARD_ABI)
        image = f"{self.mpi}{' (MPI-5 ABI)' if by_abi else ''}, glibc {glibc}"
        return image, self.host, self.launcher, self.report.answer, rule, outcome, verdict


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true", help="write the table into docs/pairs.md")
    parser.add_argument("--only", default="", help="take the pairs in whose line this is")
    options = parser.parse_args()
    folder = options.folder.resolve()
    (folder / "work").mkdir(parents=True, exist_ok=True)
    userlands.make(folder, iter(HOSTS))
    labels = {one.name: userlands.labels(folder / "images" / one.name) for one in IMAGES}
    pairs = [pair for host in HOSTS for pair in _on(folder, host, labels, options.only)]
    right = sum(pair.is_right for pair in pairs)
    to_run = [pair for pair in pairs if pair.report.answer != "does_not_run"]
    met = sum(bool(pair.seen) for pair in to_run)
    summary = (
        f"{right} of {len(pairs)} predictions were right. "
        f"Of {len(to_run)} pairs that were said to run, {met} did, by the service's script."
    )
    print(summary)
    if options.write:
        replace_table(DOCS / "pairs.md", f"{summary}\n\n{_table(pairs)}")
    return int(right < len(pairs))


def _on(folder: Path, suite: str, labels: Mapping[str, Mapping[str, str]], only: str) -> list[Pair]:
    """Return what was predicted of the pairs of one host, all at once, and seen."""
    try:
        host = _start_host(folder, suite)
        collected = run("docker", "exec", CONTAINER, "bash", "/work/cic_cli", "here")
        found = dict(recognise(parse_facts(collected.encode()), {}).facts)
        predicted = [pair for pair in _predicted(labels, host, found) if only in " ".join(pair.row)]
        return [_tried(folder, pair) for pair in predicted]
    finally:
        subprocess.run(["docker", "rm", "--force", CONTAINER], capture_output=True, check=False)


def _predicted(
    labels: Mapping[str, Mapping[str, str]], host: str, found: Mapping[str, str]
) -> Iterator[Pair]:
    for image, of_image in labels.items():
        ways = dict(LAUNCHERS)
        if of_image.get(label_names.MPI_NEEDED, "").startswith(STANDARD_ABI):
            ways |= BY_ABI
        for launcher, changes in ways.items():
            machine = machine_facts({**found, **changes}, {})
            yield Pair(
                image=image,
                labels=of_image,
                host=host,
                launcher=launcher,
                machine=machine,
                report=check(of_image, machine),
            )


def _start_host(folder: Path, suite: str) -> str:
    """Start a host, and return what to call it: its Slurm and its C library."""
    (folder / "work" / "slurm.conf").write_text(SLURM_CONF, "utf-8")
    (folder / "work" / "start.sh").write_text(START_SLURM, "utf-8")
    (folder / "work" / "cic_cli").write_bytes((PROJECT / "cic_cli").read_bytes())
    if not run("docker", "images", "--quiet", f"{CONTAINER}:{suite}"):
        run("docker", "import", str(folder / f"host-{suite}.tar"), f"{CONTAINER}:{suite}")
    mounts = [
        f"-v{folder}/images:/images",
        f"-v{folder}/work:/work",
        f"-v{folder}/images/{SITE_MPI}{PREFIX}:/opt/site:ro",
        "-v/opt/apptainer:/opt/apptainer",
    ]
    options = ["--detach", "--init", "--privileged", f"--name={CONTAINER}", "--hostname=pairs"]
    run("docker", "run", *options, *mounts, f"{CONTAINER}:{suite}", "sleep", "infinity")
    run("docker", "exec", CONTAINER, "bash", "/work/start.sh")
    slurm = run("docker", "exec", CONTAINER, "srun", "--version").split()[-1]
    return f"{suite}, Slurm {slurm}"


def _tried(folder: Path, pair: Pair) -> Pair:
    """Return the pair with whether two ranks found each other, started by the service's script."""
    start = Start(
        image=pair.labels,
        machine=pair.machine,
        file=f"/images/{pair.image}",
        reference=pair.image,
        program=(MEET,),
    )
    text = script(start, "slurm").text
    if "--mpi=" not in text:  # what does not fit is started all the same, by what there is
        text = text.replace("srun ", f"srun --mpi={pair.machine.pmi[0]} ", 1)
    out = folder / "work" / "out"
    (folder / "work" / "job.sh").write_text(text, "utf-8")
    out.unlink(missing_ok=True)
    job = ("timeout", "--kill-after=5", str(TIME_LIMIT_S), "sbatch", "--wait", "--output=/work/out")
    inside = ("--env=APPTAINER_USERNS=1", "--env=SITE_MPI=/opt/site/lib", "--workdir=/work")
    subprocess.run(
        ["docker", "exec", *inside, CONTAINER, *job, "job.sh"], capture_output=True, check=False
    )
    cancel = ["docker", "exec", CONTAINER, "scancel", "--user=root"]
    subprocess.run(cancel, capture_output=True, check=False)
    said = out.read_text("utf-8", "replace") if out.exists() else ""
    seen = dataclasses.replace(pair, seen=MET in said)
    print(" | ".join(seen.row), flush=True)
    if not seen.is_right:
        print("\n".join(said.splitlines()[:15]), flush=True)
    return seen


def _table(pairs: Sequence[Pair]) -> str:
    head = ("image", "host", "launcher offers", "predicted", "by the rules", "seen", "")
    rows = [head, ("---",) * len(head), *(pair.row for pair in pairs)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    raise SystemExit(main())
