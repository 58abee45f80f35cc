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


def _log(script: str, said: str) -> list[str]:
    """A log of buildx in which a script of the recipe said this and failed."""
    return [
        f"#9 [installed 2/3] RUN sh /run/cic/{script}",
        f"#9 1.2 {said}",
        f'#9 ERROR: process "/bin/sh -c sh /run/cic/{script}" did not complete successfully: '
        "exit code: 1",
        "------",
        f" > [installed 2/3] RUN sh /run/cic/{script}:",
        "------",
    ]
