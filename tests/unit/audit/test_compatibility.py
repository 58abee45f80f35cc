"""An image's labels against machines."""

from __future__ import annotations

import dataclasses

import pytest

from image_builder.audit.compatibility import check
from image_builder.audit.compatibility.rules import rule_facts, rules
from image_builder.request import gpu_drivers
from image_builder.request.machines import Fabric, MachineFacts, load_machines

IMAGE = {
    "cic.platform": "linux/amd64",
    "cic.target": "zen2",
    "cic.mpi.name": "openmpi",
    "cic.mpi.family": "openmpi",
    "cic.mpi.version": "4.1.6",
}
CUDA = IMAGE | {"cic.gpu.runtime": "cuda", "cic.gpu.version": "12.8.1", "cic.gpu.arch": "80"}
ROCM = IMAGE | {"cic.gpu.runtime": "hip", "cic.gpu.version": "6.2.1", "cic.gpu.arch": "gfx90a"}
ROME = MachineFacts(
    name="rome",
    platform="linux/amd64",
    architecture="rome",
    mpi="openmpi@4.1.4",
    gpu="cuda@12.8",
    gpu_arch="a100",
    driver="570.124.06",
)
LUMI = MachineFacts(
    name="hills",
    platform="linux/amd64",
    architecture="trento",
    mpi="openmpi@4",
    gpu="rocm@6.0",
    gpu_arch="mi250x",
)


def levels(image: dict[str, str], machine: MachineFacts) -> list[tuple[str, str]]:
    return [(finding.level, finding.subject) for finding in check(image, machine).findings]


def test_the_right_pairing_is_accepted_and_says_how_to_run() -> None:
    report = check(CUDA, ROME, file="model.sif", program="/bin/model")
    assert report.ok and report.findings == ()
    assert report.run_command == "srun --mpi=pmix -n 2 singularity exec --nv model.sif /bin/model"


@pytest.mark.parametrize(
    ("changes", "level", "subject", "says"),
    [
        ({"architecture": "haswell"}, "error", "cpu", "clwb"),
        ({"architecture": "broadwell"}, "error", "cpu", "broadwell"),
        ({"platform": "linux/arm64", "architecture": "grace"}, "error", "platform", "linux/arm64"),
        ({"mpi": "mpich@4.0"}, "error", "mpi", 'Build it with "mpi": "mpich@4".'),
        ({"mpi": "mpich@3.4"}, "error", "mpi", "programs of one do not run with the libraries"),
        ({"mpi": "cray-mpich@8.1"}, "error", "mpi", 'Build it with "mpi": "mpich'),
        ({"mpi": "impi@2021"}, "error", "mpi", "intel-oneapi-mpi"),
        ({"mpi": "openmpi@5.0"}, "warning", "mpi", "promise of a stable binary interface"),
        ({"mpi": "openmpi@3.1"}, "error", "mpi", "another major release"),
        ({"mpi": "openmpi@5", "pmi": ("pmix_v4",)}, "warning", "mpi", "C programs run with both"),
        ({"mpi": "mpich@4", "pmi": ("pmi2",)}, "error", "mpi", "each rank would run alone"),
        ({"mpi": "mpich@4", "pmi": ("pmi2", "pmix")}, "warning", "mpi", "image's own MPI is used"),
        ({"mpi": None, "pmi": ("pmi2",)}, "error", "mpi", 'Build it with "mpi": "mpich"'),
        ({"launcher": "srun --mpi=pmi2"}, "error", "mpi", "started with pmi2"),
        ({"fabric": Fabric(families=("mpich",))}, "warning", "fabric", "may use a slower one"),
        ({"mpi": None}, "warning", "mpi", "not known"),
        ({"driver": "470.82.01"}, "error", "gpu", "525.60.13 or newer"),
        ({"driver": "550.54.14"}, "warning", "gpu", "minor version compatibility"),
        ({"driver": None, "gpu": "cuda@11.4"}, "error", "gpu", "525.60.13 or newer"),
        ({"driver": None, "gpu": "cuda@12.2"}, "warning", "gpu", "minor version compatibility"),
        ({"driver": None, "gpu": None, "gpu_arch": None}, "error", "gpu", "no GPU"),
        ({"driver": None, "gpu": "rocm@6.0", "gpu_arch": None}, "error", "gpu", "hip@6.0"),
        ({"gpu_arch": "v100"}, "error", "gpu", "70"),
        ({"gpu_arch": "h100"}, "warning", "gpu", "PTX"),
        ({"architecture": None}, "warning", "cpu", "not known"),
    ],
)
def test_pairings_that_need_a_word(
    changes: dict[str, str | None], level: str, subject: str, says: str
) -> None:
    [finding] = check(CUDA, dataclasses.replace(ROME, **changes)).findings  # type: ignore[arg-type]
    assert (finding.level, finding.subject) == (level, subject)
    assert says in str(finding)


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "zen3"},
        {"architecture": "genoa"},
        {"mpi": "openmpi@4.0"},
        {"mpi": "hpcx-mpi@2.20"},
        {"driver": "580.65.06"},
        {"gpu_arch": "a40"},
        {"gpu_arch": None},
        {"mpi": "openmpi"},
        {"pmi": ("pmi2", "pmix_v5")},
        {"mpi": None, "pmi": ("pmix",)},
        {"fabric": Fabric(families=("openmpi",))},
    ],
)
def test_machines_that_are_newer_or_say_less(changes: dict[str, str]) -> None:
    assert check(CUDA, dataclasses.replace(ROME, **changes)).findings == ()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "host", "fits"),
    [
        ("haswell", "zen2", True),
        ("x86_64_v3", "zen3", True),
        ("zen2", "icelake", False),
        ("icelake", "zen3", False),
        ("x86_64_v4", "haswell", False),
        ("x86_64_v4", "sapphirerapids", True),
    ],
)
def test_cpus_of_two_vendors(target: str, host: str, fits: bool) -> None:
    assert (
        check(IMAGE | {"cic.target": target}, dataclasses.replace(ROME, architecture=host)).ok
        is fits
    )


def test_a_power_cpu_does_not_run_what_a_newer_one_does() -> None:
    image = {"cic.platform": "linux/ppc64le", "cic.target": "power9le"}
    machine = MachineFacts(platform="linux/ppc64le", architecture="power8le")
    assert levels(image, machine) == [("error", "cpu")]


def test_the_mpich_family_understands_itself() -> None:
    image = IMAGE | {"cic.mpi.name": "mpich", "cic.mpi.family": "mpich", "cic.mpi.version": "4.2.3"}
    report = check(image, dataclasses.replace(ROME, mpi="cray-mpich@8.1.29"))
    assert report.ok
    assert report.run_command.startswith("srun --mpi=pmi2 ")


@pytest.mark.parametrize(
    ("site", "expected"),
    [
        ("rocm@6.0", []),
        ("rocm@6.3", []),
        ("rocm@5.4", [("error", "gpu")]),
        ("rocm@7.1", [("warning", "gpu")]),
        ("rocm@6", []),
    ],
)
def test_rocm_against_the_driver(site: str, expected: list[tuple[str, str]]) -> None:
    assert levels(ROCM, dataclasses.replace(LUMI, gpu=site)) == expected


def test_rocm_code_runs_on_its_own_architecture_alone() -> None:
    assert levels(ROCM, dataclasses.replace(LUMI, gpu_arch="mi300x")) == [("error", "gpu")]


def test_lines_that_run_an_image() -> None:
    binds = dataclasses.replace(
        LUMI, launcher="srun --mpi=cray_shasta", binds=("/opt/cray", "/var/spool")
    )
    assert check(ROCM, binds).run_command == (
        "srun --mpi=cray_shasta -n 2 singularity exec --rocm "
        "--bind /opt/cray,/var/spool image.sif <program>"
    )
    serial = {"cic.platform": "linux/amd64", "cic.target": "x86_64"}
    assert (
        check(serial, ROME, file="my file.sif").run_command
        == "singularity exec 'my file.sif' <program>"
    )
    docker = dataclasses.replace(ROME, engine="docker")
    assert check(CUDA, docker, file="group/model:1").run_command == (
        "docker run --rm --gpus all --env=OMPI_ALLOW_RUN_AS_ROOT=1"
        " --env=OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 group/model:1 mpirun -n 2 <program>"
    )


def test_an_image_that_says_nothing_of_itself() -> None:
    report = check({}, ROME)
    assert report.ok and [finding.subject for finding in report.findings] == ["labels"]
    assert report.as_dict()["findings"][0]["level"] == "warning"


@pytest.mark.parametrize(
    ("cuda", "driver"),
    [
        ("12.8.1", "525.60.13"),
        ("11.0.3", "450.80.02"),
        ("10.2.89", "440.33"),
        ("13", "580"),
        ("99.1", None),
    ],
)
def test_the_oldest_driver_of_a_cuda_release(cuda: str, driver: str | None) -> None:
    assert gpu_drivers.minimal_driver(cuda) == driver


MPICH = IMAGE | {"cic.mpi.name": "mpich", "cic.mpi.family": "mpich", "cic.mpi.version": "4.2.3"}


@pytest.mark.parametrize(
    ("image", "host", "rule"),
    [
        ("openmpi 4.1.6", "openmpi@4.0", None),
        ("openmpi 4.1.6", "openmpi@5.0.7", "openmpi-next-major"),
        ("openmpi 5.0.7", "openmpi@4.1", "openmpi-other-major"),
        ("openmpi 3.1.6", "openmpi@5.0", "openmpi-other-major"),
        ("openmpi 5.0.7", "hpcx-mpi@2.20", None),
        ("mpich 4.2.3", "cray-mpich@8.1.29", "mpich-newer-than-site"),
        ("mpich 3.4.3", "cray-mpich@8.1.29", None),
        ("mpich 4.2.3", "cray-mpich@9.0", None),
        ("mpich 3.0.4", "cray-mpich@8.1", "mpich-before-abi"),
        ("mpich 3.4.3", "mpich@3.0.4", "mpich-before-abi"),
        ("mpich 3.4.3", "mpich@3", None),
        ("mpich 4.2.3", "intel-oneapi-mpi@2021.17", None),
        ("mvapich2 1.9", "mpich@4", "mpich-before-abi"),
        ("mpich 5.0.2", "openmpi@5.0", "mpi-other-family"),
        ("mpich 5.0.2", "openmpi@6.0", "mpi-other-family-standard-abi"),
        ("openmpi 6.0.0", "mpich@5.0", "mpi-other-family-standard-abi"),
        ("openmpi 6.0.0", "intel-oneapi-mpi@2021.10", "mpi-other-family"),
        ("openmpi 6.0.0", "mpich", "mpi-other-family"),
    ],
)
def test_binary_interfaces_of_two_mpis(image: str, host: str, rule: str | None) -> None:
    name, _, version = image.partition(" ")
    family = "openmpi" if name == "openmpi" else "mpich"
    said = {"cic.mpi.name": name, "cic.mpi.family": family, "cic.mpi.version": version}
    findings = check(IMAGE | said, dataclasses.replace(ROME, mpi=host)).findings
    assert [finding.rule for finding in findings] == ([rule] if rule else [])


@pytest.mark.parametrize(
    ("mpi", "answer"), [("openmpi@4.1", "does_not_run"), ("cray-mpich@9.0", "runs")]
)
def test_the_launcher_of_a_vendor_is_for_the_vendors_mpi(mpi: str, answer: str) -> None:
    """Seen with Debian's Slurm, which lists cray_shasta: each rank ran alone."""
    machine = dataclasses.replace(ROME, mpi=mpi, pmi=("none", "cray_shasta"))
    assert check(MPICH, machine).answer == answer


def test_three_answers() -> None:
    assert check(IMAGE, ROME).answer == "runs"
    some = check(IMAGE, dataclasses.replace(ROME, mpi="openmpi@5"))
    none = check(IMAGE, dataclasses.replace(ROME, mpi="mpich@4"))
    assert (some.answer, some.ok) == ("runs_but", True)
    assert (none.answer, none.ok) == ("does_not_run", False)
    [finding] = none.as_dict()["findings"]
    assert finding["rule"] == "mpi-other-family" and "https://" in finding["source"][0]


def test_every_rule_says_why_and_who_says_so() -> None:
    for name, rule in rules().items():
        assert rule.message and all("http" in one or "docs/" in one for one in rule.source), name
        assert rule.hint or rule.answer == "runs_but", name
    data = {"openmpi", "mpich", "standard_abi", "pmix", "squashfs", "networks"}
    assert set(rule_facts()) == {"rules", *data}


@pytest.mark.parametrize(
    ("machine", "image", "answer", "line"),
    [
        (
            "alps-eiger",
            MPICH | {"cic.mpi.version": "3.4.3"},
            "runs",
            "srun --mpi=pmi2 -n 2 --environment=./model_1.toml <program>",
        ),
        (
            "alps-eiger",
            IMAGE,
            "runs_but",
            "srun --mpi=pmix -n 2 --environment=./model_1.toml <program>",
        ),
        (
            "perlmutter-cpu",
            MPICH | {"cic.mpi.version": "3.4.3"},
            "runs",
            "srun -n 2 podman-hpc run --rm --mpi r.org/a/model:1 <program>",
        ),
        ("perlmutter-cpu", IMAGE, "does_not_run", "srun -n 2 podman-hpc run --rm r.org/a/model:1"),
        ("lumi-c", MPICH, "runs_but", "srun --mpi=pmi2 -n 2 singularity exec model.sif <program>"),
        ("lumi-c", IMAGE, "does_not_run", "singularity exec model.sif <program>"),
    ],
)
def test_sites_start_images_with_their_own_engine(
    machine: str, image: dict[str, str], answer: str, line: str
) -> None:
    entry = load_machines()[machine]
    report = check(
        image, entry.facts(machine), file="model.sif", reference="r.org/a/model:1", is_pushed=True
    )
    assert report.answer == answer, report.findings
    assert line in report.run_command


@pytest.mark.parametrize(
    ("engine", "is_pushed", "rules_found"),
    [
        ("edf", False, ["engine-needs-registry"]),
        ("shifter", False, ["engine-needs-registry"]),
        ("edf", True, []),
        ("edf", None, []),
        ("docker", False, []),
        ("apptainer", False, []),
    ],
)
def test_engines_that_fetch_images_need_them_in_a_registry(
    engine: str, is_pushed: bool | None, rules_found: list[str]
) -> None:
    report = check(IMAGE, dataclasses.replace(ROME, engine=engine), is_pushed=is_pushed)
    assert [finding.rule for finding in report.findings] == rules_found


FACTS = MPICH | {
    "cic.facts": "1",
    "cic.glibc": "2.36",
    "cic.glibc.offered": "2.36",
    "cic.glibc.needed": "2.34",
    "cic.glibcxx": "3.4.30",
    "cic.kernel.min": "3.2.0",
    "cic.mpi.abi": "libmpi.so.12",
    "cic.mpi.needed": "libmpi.so.12",
    "cic.mpi.pmi": "pmi2",
    "cic.libfabric": "verbs",
    "cic.ucx": "ib",
}
KNOWN = dataclasses.replace(
    ROME,
    mpi="mpich@4.2",
    pmi=("pmi2", "pmix"),
    kernel="5.14.0",
    glibc="2.34",
    squashfs=("zlib", "zstd"),
    libfabric=("verbs;ofi_rxm", "tcp"),
    ucx=("rc_mlx5", "tcp"),
)


@pytest.mark.parametrize(
    ("image", "machine", "rule", "says"),
    [
        ({}, {}, None, ""),
        ({"cic.kernel.min": "6.1.0"}, {}, "kernel-too-old", "Linux 6.1.0 or newer"),
        ({}, {"kernel": "3.1.9"}, "kernel-too-old", "has 3.1.9"),
        ({"cic.glibc.needed": "2.38"}, {}, "library-too-old", "needs GLIBC_2.38"),
        ({"cic.glibcxx.needed": "3.4.32"}, {}, "library-too-old", "GLIBCXX_3.4.30 alone"),
        ({}, {"glibc": "2.41"}, None, ""),
        ({}, {"glibc": "2.41", "fabric": Fabric(families=("openmpi",))}, "fabric", "slower one"),
        (
            {},
            {"glibc": "2.41", "fabric": Fabric()},
            "glibc-older-than-site",
            "built with glibc 2.41",
        ),
        ({}, {"glibc": "2.41", "engine": "sarus"}, "glibc-older-than-site", "has 2.36"),
        ({"cic.glibc": "none"}, {"fabric": Fabric()}, "no-glibc-for-site", "no GNU C library"),
        ({}, {"libfabric": ("cxi",), "ucx": ()}, "network-not-known-to-image", "fabrics=cxi"),
        ({"cic.libfabric": "cxi"}, {"libfabric": ("cxi",), "ucx": ()}, None, ""),
        ({"cic.libfabric": "none", "cic.ucx": "none"}, {}, "network-not-known-to-image", "ib"),
        (
            {"cic.libfabric": "none", "cic.ucx": "none"},
            {"libfabric": ("tcp",), "ucx": ()},
            None,
            "",
        ),
        ({"cic.mpi.pmi": "pmix"}, {}, None, ""),
        ({"cic.mpi.pmi": "pmix"}, {"pmi": ("pmi2",)}, "mpi-launcher-speaks-other", "by pmix"),
        ({"cic.mpi.pmi": "pmi1"}, {}, "mpi-launcher-speaks-other", "by pmi1"),
        ({"cic.mpi.pmi": "none"}, {}, "mpi-finds-none", "would run alone"),
        ({"cic.mpi.pmi": "none"}, {"engine": "docker"}, None, ""),
    ],
)
def test_facts_of_an_image_against_those_of_a_machine(
    image: dict[str, str], machine: dict[str, object], rule: str | None, says: str
) -> None:
    findings = check(FACTS | image, dataclasses.replace(KNOWN, **machine)).findings  # type: ignore[arg-type]
    assert len(findings) == (rule is not None), findings
    for finding in findings:
        assert finding.rule.startswith(str(rule)) and says in str(finding)


@pytest.mark.parametrize(
    ("compressor", "machine", "rule"),
    [
        ("zstd", {}, None),
        ("gzip", {"squashfs": ("zlib",)}, None),
        ("zstd", {"squashfs": ("zlib",)}, "sif-not-read"),
        ("zstd", {"squashfs": ("zlib",), "engine": "apptainer"}, "sif-read-by-fuse"),
        ("zstd", {"squashfs": (), "kernel": "3.10.0"}, "sif-not-read"),
        ("gzip", {"squashfs": (), "kernel": "3.10.0"}, None),
        ("zstd", {"squashfs": (), "kernel": None}, None),
        ("zstd", {"squashfs": ("zlib",), "engine": "edf"}, None),
        (None, {"squashfs": ("zlib",)}, None),
    ],
)
def test_a_sif_is_read_by_the_machines_kernel(
    compressor: str | None, machine: dict[str, object], rule: str | None
) -> None:
    there = dataclasses.replace(KNOWN, **machine)  # type: ignore[arg-type]
    report = check(FACTS, there, compressor=compressor, is_pushed=True)
    assert [finding.rule for finding in report.findings if finding.subject == "sif"] == (
        [rule] if rule else []
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "meet"),
    [
        ("4.2.2", "5.0.7", True),
        ("5.0.7", "4.2.2", True),
        ("3", "5.0.7", True),
        ("2", "4.2", True),
        ("2.0.1", "4.2", False),
        ("1.2.3", "1.2.4", True),
        ("3.1.5", "1.2.4", False),
        ("3.1.5", None, True),
    ],
)
def test_releases_of_pmix_that_meet(ours: str, theirs: str | None, meet: bool) -> None:
    image = IMAGE | {"cic.facts": "1", "cic.mpi.pmi": "pmix", "cic.pmix": ours}
    report = check(image, dataclasses.replace(ROME, pmi=("pmix",), pmix=theirs))
    assert report.ok is meet, report.findings
    assert meet or report.findings[0].rule == "pmix-does-not-meet"


ABI = FACTS | {
    "cic.mpi.version": "5.0.2",
    "cic.mpi.abi": "libmpi_abi.so.1,libmpi.so.12",
    "cic.mpi.needed": "libmpi_abi.so.1",
}
NO_MPI = IMAGE | {
    "cic.facts": "1",
    "cic.mpi.name": "mpi-abi",
    "cic.mpi.family": "mpi-abi",
    "cic.mpi.version": "",
    "cic.mpi.needed": "libmpi_abi.so.1",
    "cic.mpi.pmi": "none",
    "cic.ucx": "ib",
}


@pytest.mark.parametrize(
    ("image", "machine", "rule"),
    [
        (ABI, {"mpi": "openmpi@6.0", "pmi": ("pmix",)}, "mpi-site-by-standard-abi"),
        (ABI, {"mpi": "openmpi@6.0", "pmi": ()}, "mpi-site-by-standard-abi"),
        (ABI, {"mpi": "openmpi@6.0", "pmi": ("pmi2",)}, "mpi-own-beside-site"),
        (ABI, {"mpi": "openmpi@5.0", "pmi": ("pmix",)}, "mpi-launcher-speaks-other"),
        (ABI, {"mpi": "openmpi@6.0", "pmi": ("pmix",), "engine": "sarus"}, "mpi-launcher"),
        (ABI, {"mpi": "impi@2021.19", "pmi": ("pmi2",)}, None),
        (NO_MPI, {"mpi": "mpich@5.0", "pmi": ("pmi2",)}, "mpi-site-by-standard-abi"),
        (NO_MPI, {"mpi": "mpich@5.0", "pmi": ("pmix",)}, "mpi-not-in-image"),
        (NO_MPI, {"mpi": "mpich@4.3"}, "mpi-not-in-image"),
        (NO_MPI, {"mpi": None}, "mpi-not-in-image"),
        (ABI | {"cic.mpi.pmi": "none"}, {"mpi": "mpich@5.0"}, "mpi-site-by-standard-abi"),
        (ABI | {"cic.mpi.pmi": "none"}, {"mpi": "mpich@4.3"}, "mpi-finds-none"),
        (FACTS | {"cic.mpi.version": "5.0.2"}, {"mpi": "openmpi@6.0", "pmi": ()}, "mpi-programs"),
        (ABI | {"cic.mpi.needed": "libmpi_abi.so.1,libmpi.so.12"}, {"mpi": "openmpi@6", "pmi": ()},
         "mpi-programs"),
        (MPICH | {"cic.mpi.version": "5.0.2"}, {"mpi": "openmpi@6", "pmi": ()}, "mpi-other-family-standard"),
    ],
)  # fmt: skip
def test_programs_with_the_standard_abi_meet_every_mpi_that_has_it(
    image: dict[str, str], machine: dict[str, object], rule: str | None
) -> None:
    report = check(image, dataclasses.replace(KNOWN, **machine))  # type: ignore[arg-type]
    found = [finding.rule for finding in report.findings if finding.subject == "mpi"]
    assert len(found) == (rule is not None), found
    assert not found or found[0].startswith(str(rule)), found
    assert ("$SITE_MPI" in report.run_command) is (rule == "mpi-site-by-standard-abi")


WHEELS = {
    "cic.platform": "linux/amd64",
    "cic.target": "x86_64",
    "cic.facts": "1",
    "cic.cuda.runtime": "12.4.127",
    "cic.cuda.code": "70,80,90",
    "cic.cuda.ptx": "90",
}


@pytest.mark.parametrize(
    ("image", "machine", "rules_found"),
    [
        ({}, {}, []),
        ({}, {"gpu_arch": "h100"}, []),
        ({}, {"gpu_arch": "p100"}, ["cuda-code-for-others"]),
        ({}, {"gpu_arch": "120"}, []),
        ({"cic.cuda.ptx": ""}, {"gpu_arch": "120"}, ["cuda-code-for-others"]),
        ({}, {"driver": "470.82.01"}, ["cuda-of-wheels-too-new"]),
        ({}, {"driver": None, "gpu": None, "gpu_arch": None}, []),
        ({}, {"driver": None, "gpu": "rocm@6", "gpu_arch": None}, []),
        ({"cic.cuda.code": "", "cic.cuda.ptx": ""}, {"gpu_arch": "p100"}, []),
    ],
)
def test_cuda_in_wheels(
    image: dict[str, str], machine: dict[str, object], rules_found: list[str]
) -> None:
    report = check(WHEELS | image, dataclasses.replace(ROME, **machine))  # type: ignore[arg-type]
    assert [finding.rule for finding in report.findings] == rules_found and report.ok


def test_code_that_is_there_counts_for_images_of_a_gpu() -> None:
    image = CUDA | {"cic.facts": "1", "cic.cuda.code": "80,86"}
    assert check(image, ROME).findings == ()
    [finding] = check(image, dataclasses.replace(ROME, gpu_arch="h100")).findings
    assert finding.rule == "gpu-other-architecture" and "80,86" in finding.message


def test_what_is_not_known_is_said_and_changes_no_answer() -> None:
    before = check(MPICH, KNOWN)
    assert before.answer == "runs" and "was built before" in before.unknown[0]
    assert check(FACTS, KNOWN).unknown == ()
    [unknown] = check(FACTS, dataclasses.replace(KNOWN, kernel=None, libfabric=(), ucx=())).unknown
    assert "kernel, networks" in unknown and "cic_cli here" in unknown
    assert before.as_dict()["unknown"] == list(before.unknown)
