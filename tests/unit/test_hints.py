"""What to do next: no failure is without, and no two sentences run into one another."""

from __future__ import annotations

import pytest

from image_builder import hints
from image_builder.build.failures.classify import CONVERT, PUSH, classify
from image_builder.errors import BuildFailed, CicError, ErrorCode, with_hint
from service.db.tables import failure
from tests.unit.build.failures.test_classify import NAMES, cause_of

CERTIFICATE = (
    "ERROR: fetch: certificate verify failed: self-signed certificate in certificate chain"
)


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_has_a_hint_of_whole_sentences(code: ErrorCode) -> None:
    hint = hints.usual(code)
    assert hint[0].isupper() or hint.startswith("cic_")
    assert hint.endswith(".") and "\n" not in hint
    assert failure(CicError("It failed.", code=code))["hint"] == hint
    assert failure(CicError("It failed.", hint="Own.", code=code))["hint"] == "Own."


def test_no_code_is_made_up() -> None:
    assert set(hints._facts()["codes"]) == {code.value for code in ErrorCode}
    assert all(sign.codes and sign.hint.endswith(".") for sign in hints._signs())


@pytest.mark.parametrize("name", NAMES)
def test_every_failure_that_was_seen_has_a_hint_and_says_nothing_twice(name: str) -> None:
    cause = cause_of(name)
    assert cause.hint and cause.hint not in cause.message
    error = BuildFailed(cause.message, code=cause.code, hint=cause.hint, excerpt=cause.excerpt)
    assert failure(error)["message"].splitlines().count(cause.message) == 1


@pytest.mark.parametrize("step", [PUSH, CONVERT, "final"])
@pytest.mark.parametrize("lines", [[], ["nothing that is known"], ["FATAL: x" * 5000]])
def test_a_failure_that_was_never_seen_has_a_hint(step: str, lines: list[str]) -> None:
    assert classify(lines, step=step).hint


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("pip.sh", "pip._vendor.requests.exceptions.SSLError: CERTIFICATE_VERIFY_FAILED"),
        ("apt.sh", "E: Failed to fetch https://deb/x  Certificate verification failed"),
        ("install.sh", "==> Error: FetchError: SSL: self-signed certificate in chain"),
        ("concretize.sh", "==> Error: URLError: <urlopen error certificate verify failed>"),
        ("post_inst.sh", "curl: (60) SSL certificate problem: unable to get local issuer"),
    ],
)
def test_a_proxy_that_intercepts_tls_is_thought_of(script: str, said: str) -> None:
    cause = classify(_log(script, said), step="final")
    assert "ca_bundle" in cause.hint, cause


@pytest.mark.parametrize(
    ("script", "said", "code", "package", "word"),
    [
        ("apt.sh", "W: GPG error: http://deb bookworm InRelease: NO_PUBKEY 0E98", "APT", "", "key"),
        ("apt.sh", "E: Release file for x is not valid yet (invalid for 3h)", "APT", "", "clock"),
        ("apt.sh", "E: Release file for x is expired (invalid since 12d)", "APT", "", "apt_mirror"),
        ("apt.sh", "E: The repository 'x' does not have a Release file.", "APT", "", "archive"),
        ("apt.sh", "E: Failed to fetch x  407  Proxy Authentication", "FETCH", "", "https_proxy"),
        ("apt.sh", "E: Failed to fetch http://x  403  Forbidden", "FETCH", "", "apt_mirror"),
        ("apt.sh", "E: Failed to fetch http://x  Hash Sum mismatch", "FETCH", "", "changed"),
        ("apt.sh", "E: setgroups 65534 failed - setgroups (1)", "APT", "", "/etc/subuid"),
        ("pip.sh", "/usr/bin/python3: No module named pip", "PIP", "", "python3-pip"),
        (
            "pip.sh",
            "ERROR: Package 'foo' requires a different Python: 3.11.2 not in '<3.11'",
            "PIP",
            "foo",
            "another Python",
        ),
        (
            "pip.sh",
            "ERROR: foo-1.0-cp39-cp39-linux_x86_64.whl is not a supported wheel on this platform.",
            "PIP",
            "foo",
            "another version",
        ),
        (
            "pip.sh",
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n"
            "    six==1.16 from https://x/six-1.16-py3-none-any.whl:",
            "PIP",
            "six",
            "--hash",
        ),
        ("pip.sh", "ERROR: Wheel 'foo' located at /s/foo.whl is invalid.", "PIP", "foo", "Check"),
        ("pip.sh", "ERROR: ResolutionImpossible: for help visit x", "PIP", "", "Loosen"),
        ("pip.sh", "      x.c:1:10: fatal error: Python.h: No such file", "PIP", "", "python3-dev"),
        (
            "pip.sh",
            "      x.c:1:10: fatal error: gsl/gsl.h: No such file or directory",
            "PIP",
            "",
            "-dev",
        ),
        (
            "pip.sh",
            "      error: command 'gcc' failed: No such file or directory",
            "PIP",
            "",
            "g++",
        ),
        ("pip.sh", "      CMake must be installed to build dlib", "PIP", "", "cmake"),
        ("pip.sh", "      error: can't find Rust compiler", "PIP", "", "rustc"),
        ("pip.sh", "      error: Cannot compile MPI programs.", "PIP", "", "py-mpi4py"),
        ("pip.sh", "ERROR: Cannot find command 'hg' - do you have 'hg'", "PIP", "", "mercurial"),
        ("pip.sh", "  fatal: could not read Username for 'https://x'", "PIP", "", "private"),
        ("pip.sh", "  Host key verification failed.", "PIP", "", "SSH key"),
        ("pip.sh", "WARNING: 401 Error, Credentials not correct for x", "PIP", "", "login"),
        (
            "pip.sh",
            "ERROR: Could not install requirement foo from https://x because of HTTP error 503",
            "FETCH",
            "foo",
            "again",
        ),
        ("pip.sh", "ERROR: HTTP error 404 while getting https://x", "FETCH", "", "address"),
        ("pip.sh", "ERROR: Cannot uninstall 'PyYAML'. It is a distutils", "PIP", "PyYAML", "Leave"),
        ("pip.sh", "      The 'sklearn' PyPI package is deprecated", "PIP", "", "scikit-learn"),
        ("pip.sh", "ProtocolError: ('Connection broken: IncompleteRead(1)'", "FETCH", "", "again"),
        ("concretize.sh", "exec /bin/sh: exec format error", "EXECUTABLE", "", "binfmt"),
        ("concretize.sh", "==> Error: No compilers with spec gcc@13 found", "CONCRET", "", "apt"),
        ("concretize.sh", "==> Error: cannot bootstrap the clingo module", "FETCH", "", "clingo"),
        ("concretize.sh", "==> Error: Timed out waiting for a write lock", "STEP", "", "again"),
        (
            "install.sh",
            "==> Error: InstallError: Download of x failed: manual download required.",
            "FETCH",
            "",
            "licence",
        ),
        ("install.sh", "==> Error: 210 files blocked merging", "COMPILE", "", "view false"),
        ("post_inst.sh", "post_inst.sh: line 2: $'\\r': command not found", "POST", "", "(LF)"),
        ("post_inst.sh", "post_inst.sh: line 2: sudo: command not found", "POST", "", "sudo"),
        ("post_inst.sh", "curl: (6) Could not resolve host: x.org", "POST", "", "https_proxy"),
        ("post_inst.sh", "/usr/bin/ld: cannot find -lhdf5", "POST", "", "library"),
    ],
)
def test_what_programs_say_is_turned_into_what_to_do(
    script: str, said: str, code: str, package: str, word: str
) -> None:
    cause = classify(_log(script, *said.split("\n")), step="final")
    assert code in cause.code.value and cause.package == package, cause
    assert word in cause.hint, cause


@pytest.mark.parametrize(
    ("said", "code", "word"),
    [
        ("unexpected status from PUT request: 413 Request Entity Too Large", "PUSH", "proxy"),
        ("denied: adding 1.2 GiB of storage resource will exceed the upper limit", "PUSH", "room"),
        ("toomanyrequests: Rate exceeded", "PUSH", "later"),
        ("http: server gave HTTP response to HTTPS client", "PUSH", "insecure-registries"),
        ("errors: blob upload unknown: blob upload unknown to registry", "PUSH", "again"),
        ("The image tag '1' already exists and cannot be overwritten: immutable", "PUSH", "tag"),
        ("name unknown: The repository with name x does not exist", "PUSH", "makes this one"),
    ],
)
def test_what_registries_say_is_turned_into_what_to_do(said: str, code: str, word: str) -> None:
    cause = classify([said], step=PUSH)
    assert code in cause.code.value and word in cause.hint, cause


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ("toomanyrequests: You have reached your pull rate limit.", "limit"),
        ("pull access denied, repository does not exist or may require authorization", "login"),
        ("docker.io/x: no match for platform in manifest: not found", "platform"),
        ("http: server gave HTTP response to HTTPS client", "insecure-registries"),
        ("unexpected status from HEAD request to https://x: 503 Service Unavailable", "later"),
    ],
)
def test_what_a_base_images_registry_says(said: str, word: str) -> None:
    name = "[internal] load metadata for docker.io/group/spack:1"
    cause = classify([f"#2 {name}", f"#2 ERROR: {said}"], step="final")
    assert cause.code is ErrorCode.BASE_IMAGE_UNAVAILABLE and word in cause.hint, cause


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("failed to copy files: no space left on device", ErrorCode.NO_SPACE),
        ("did not complete successfully: cannot allocate memory", ErrorCode.OUT_OF_MEMORY),
        ("did not complete successfully: signal: killed", ErrorCode.OUT_OF_MEMORY),
    ],
)
def test_what_buildkit_itself_says_of_a_step(said: str, code: ErrorCode) -> None:
    cause = classify(["#9 [final 5/9] COPY x /x", f"#9 ERROR: {said}"], step="final")
    assert cause.code is code, cause


def test_a_registry_that_docker_does_not_trust() -> None:
    cause = classify(
        ["tls: failed to verify certificate: x509: certificate signed by unknown authority"],
        step=PUSH,
    )
    assert "/etc/docker/certs.d" in cause.hint


@pytest.mark.parametrize("script", ["concretize.sh", "install.sh"])
def test_a_base_without_spack(script: str) -> None:
    said = "cic: error: the base image has no spack, neither on the PATH nor in /opt/spack"
    cause = classify(_log(script, said), step="final")
    assert cause.message.startswith("the base image has no spack, neither")
    assert "base_image" in cause.hint and "BASE/BASE" in cause.hint


@pytest.mark.parametrize(
    ("problem", "hint", "joined"),
    [
        ("both cannot hold", "Remove mpich there", "both cannot hold. Remove mpich there"),
        ("It is full.", "Free some room.", "It is full. Free some room."),
        ("Which one?", "Say so.", "Which one? Say so."),
        ("It is full", "", "It is full"),
        ("", "Free some room.", "Free some room."),
    ],
)
def test_a_problem_and_its_hint_are_sentences(problem: str, hint: str, joined: str) -> None:
    assert with_hint(problem, hint) == joined
    if problem:
        assert str(CicError(problem, hint=hint)) == joined


def _log(script: str, *said: str) -> list[str]:
    """A log of buildx in which a script of the recipe said this and failed."""
    return [
        f"#9 [installed 2/3] RUN sh /run/cic/{script}",
        *(f"#9 1.2 {line}" for line in said),
        f'#9 ERROR: process "/bin/sh -c sh /run/cic/{script}" did not complete successfully: '
        "exit code: 1",
        "------",
        f" > [installed 2/3] RUN sh /run/cic/{script}:",
        "------",
    ]
