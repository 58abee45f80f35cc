"""Logs of builds that really failed, and what is to be read from them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from image_builder.build.failures.buildx_log import failed_step
from image_builder.build.failures.classify import CONVERT, PUSH, Cause, classify
from image_builder.build.failures.excerpts import MAX_LINES
from image_builder.errors import ErrorCode
from tests.conftest import PROJECT

CORPUS = PROJECT / "tests" / "data" / "failures"
NAMES = sorted(path.stem for path in CORPUS.glob("*.log"))


def log_of(name: str) -> list[str]:
    return (CORPUS / f"{name}.log").read_text("utf-8").splitlines()


def about(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CORPUS / f"{name}.yaml").read_text("utf-8"))
    return content


def cause_of(name: str) -> Cause:
    return classify(log_of(name), step=about(name)["step"])


@pytest.mark.parametrize("name", NAMES)
def test_a_log_tells_its_cause(name: str) -> None:
    cause, expected = cause_of(name), about(name)["expected"]
    assert (cause.code.value, cause.step) == (expected["code"], expected["step"])
    assert cause.package == expected.get("package", cause.package)
    assert cause.message and about(name)["how"]


@pytest.mark.parametrize(
    "name", [name for name in NAMES if "excerpt_has" in about(name)["expected"]]
)
def test_the_excerpt_holds_the_line_that_matters(name: str) -> None:
    cause = cause_of(name)
    assert any(about(name)["expected"]["excerpt_has"] in line for line in cause.excerpt), (
        cause.excerpt
    )
    assert len(cause.excerpt) <= MAX_LINES
    assert not any(line.startswith(("#", "------")) for line in cause.excerpt)


def test_the_corpus_is_large_and_covers_the_causes_that_a_log_can_have() -> None:
    codes = {about(name)["expected"]["code"] for name in NAMES}
    assert len(NAMES) >= 30
    assert {
        "APT_FAILED",
        "PIP_FAILED",
        "BAD_DESCRIPTION",
        "CONCRETIZATION_FAILED",
        "COMPILER_TOO_OLD",
        "FETCH_FAILED",
        "COMPILE_FAILED",
        "OUT_OF_MEMORY",
        "NO_SPACE",
        "TARGET_NOT_EXECUTABLE",
        "POST_INSTALL_FAILED",
        "TIMEOUT",
        "BASE_IMAGE_UNAVAILABLE",
        "DOCKER_UNAVAILABLE",
        "CANCELLED",
        "PUSH_FAILED",
        "IMAGE_REGISTRY_UNAVAILABLE",
        "CONVERSION_FAILED",
        "BUILD_STEP_FAILED",
        "TOO_MANY_PROCESSES",
    } == codes


def test_the_end_of_a_log_is_nearly_always_enough() -> None:
    """Only the last lines of a long log are kept: at least nine in ten causes are found in 60 of
    them.
    """
    long = [name for name in NAMES if len(log_of(name)) > 60]
    right = [
        name
        for name in long
        if classify(log_of(name)[-60:], step=about(name)["step"]).code.value
        == about(name)["expected"]["code"]
    ]
    assert len(long) >= 20
    assert len(right) >= 0.9 * len(long), sorted(set(long) - set(right))


def test_noise_after_the_failure_does_not_hide_it() -> None:
    log = log_of("spack-0.23-compile-error")
    place = next(
        n for n, line in enumerate(log) if "Terminating after first install failure" in line
    )
    noise = ["#13 3.000 cleaning up: error: a harmless word"] * 300
    cause = classify([*log[:place], *noise, *log[place:]], step="final")
    assert (cause.code, cause.package) == (ErrorCode.COMPILE_FAILED, "badcode")
    assert any("mesh_types.h" in line for line in cause.excerpt)


def test_words_of_a_package_that_was_built_are_not_the_cause() -> None:
    log = log_of("spack-0.23-compile-error")
    place = next(n for n, line in enumerate(log) if "Installing badcode" in line)
    said = [
        "#13 1.0 tests of allocation: Cannot allocate memory, as expected",
        "#13 1.1 checking what happens: No space left on device",
    ]
    assert (
        classify([*log[:place], *said, *log[place:]], step="final").code is ErrorCode.COMPILE_FAILED
    )


def test_colours_and_line_ends_make_no_difference() -> None:
    log = [f"\x1b[1;31m{line}\x1b[0m\r\n" for line in log_of("apt-unknown-package")]
    assert classify(log, step="final") == cause_of("apt-unknown-package")


def test_the_scripts_of_the_recipe_are_known_by_their_names() -> None:
    for script, step in [
        ("apt.sh", "apt"),
        ("pip.sh", "pip"),
        ("concretize.sh", "spack concretize"),
        ("install.sh", "spack install"),
        ("post_install.sh", "post_inst.sh"),
        ("tools.sh", "tools"),
        ("runtime.sh", "apt"),
    ]:
        log = [
            f'#9 [final 1/1] RUN --mount=type=bind,source=cic/lib.sh ["sh", "/run/cic/{script}"]',
            "#9 0.1 nothing",
            f'#9 ERROR: process "sh /run/cic/{script}" did not complete successfully: exit code: 1',
        ]
        assert classify(log, step="final").step == step


def test_the_recipes_own_words_are_the_message() -> None:
    log = [
        '#9 [base 2/2] RUN ["sh", "/run/cic/tools.sh"]',
        "#9 0.1 cic: error: the base image has no spack, neither on the PATH nor in /opt/spack or /spack",
        '#9 ERROR: process "sh /run/cic/tools.sh" did not complete successfully: exit code: 1',
    ]
    cause = classify(log, step="final")
    assert cause.code is ErrorCode.BUILD_STEP_FAILED and cause.message.startswith(
        "the base image has no spack"
    )


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            "cic: error: the packages are not to be had in the full image's versions: a:all is 2, not 1",
            "the packages are not to be had in the full image's versions: a:all is 2, not 1",
        ),
        ("E: Version '0.1' for 'bc' was not found", "apt cannot install bc in version 0.1."),
    ],
)
def test_why_a_slim_images_packages_are_not_installed(said: str, message: str) -> None:
    log = [
        '#9 [slim 2/5] RUN --mount=type=bind,source=cic/apt.sh ["sh", "/run/cic/runtime.sh"]',
        f"#9 0.1 {said}",
        '#9 ERROR: process "sh /run/cic/runtime.sh" did not complete successfully: exit code: 1',
    ]
    cause = classify(log, step="report")
    assert cause.code is ErrorCode.APT_FAILED and cause.message == message


@pytest.mark.parametrize(
    "error",
    [
        "Unable to locate package bc",
        "Couldn't find any package by glob 'bc'",
        "Package 'bc' has no installation candidate",
        "Version '0.1' for 'bc' was not found",
    ],
)
def test_apts_error_is_found_when_its_first_letter_is_elsewhere(error: str) -> None:
    """So a loaded machine's BuildKit mixed apt's two outputs."""
    log = [
        '#9 [final 2/5] RUN --mount=type=bind,source=cic/apt.sh ["sh", "/run/cic/apt.sh"]',
        "#9 0.1 EPackage bc is not available, but is referred to by another package.",
        f"#9 0.2 : {error}",
        '#9 ERROR: process "sh /run/cic/apt.sh" did not complete successfully: exit code: 100',
    ]
    cause = classify(log, step="final")
    assert cause.code is ErrorCode.APT_FAILED
    assert cause.message.startswith("apt cannot install bc")
    assert any(error in line for line in cause.excerpt)


@pytest.mark.parametrize(
    "error",
    [
        "No valid version for 'heat' satisfies '@9:'",
        "No version for 'zlib' satisfies '@1.2' and '@1.3'",
        "No versions available for package 'zlib'",
        "No valid compiler for zlib satisfies '%gcc'",
        "'zlib' compiler constraints '%gcc@9' and '%gcc@12' are incompatible",
        "'zlib target=zen2' cannot satisfy constraint 'target=haswell'",
        "'zlib target=zen4' is not compatible with this machine",
        "'zlib' is not a valid dependency for any package in the DAG",
        "'Spec(libs=both)' is not a valid value for 'zlib' variant 'libs'",
        "Cannot find valid provider for virtual mpi",
        "Spec cannot include multiple providers for virtual 'mpi'",
        "Attempted to use external for 'zlib' which does not satisfy any configured external spec",
        "Compiler gcc@13 requested for zlib cannot be found. Set install_missing_compilers:true",
        "Cyclic dependency detected between 'a' and 'b'",
    ],
)
def test_a_conflict_in_the_words_of_spack_0_19(error: str) -> None:
    """It does not say that the environment failed to concretize."""
    log = [
        '#9 [concretized 1/1] RUN ["sh", "/run/cic/concretize.sh"]',
        f"#9 9.157 ==> Error: {error}",
        '#9 ERROR: process "sh /run/cic/concretize.sh" did not complete successfully: exit code: 1',
    ]
    cause = classify(log, step="lock")
    assert cause.code is ErrorCode.CONCRETIZATION_FAILED
    assert any(error in line for line in cause.excerpt)


def test_a_failed_step_is_taken_out_of_the_log() -> None:
    failed = failed_step(log_of("apt-unknown-package"))
    assert failed.exit_code == 123 and failed.command == "/bin/sh -c /cic/apt.sh"
    assert failed.lines[-1] == "E: Unable to locate package libhdf5-parallel-dev"
    assert "RUN" in failed.name


@given(
    st.lists(
        st.one_of(
            st.text(max_size=80),
            st.sampled_from(
                [
                    "#5 [1/2] RUN x",
                    "#5 1.2 ==> Error: ",
                    "#5 ERROR: ",
                    "#5 0.1 ==> Error: FetchError: ",
                    "ERROR: failed to solve: ",
                    '#5 ERROR: process "sh /run/cic/install.sh" did not complete successfully: exit code: 1',
                    "#5 0.1   >> 3 x",
                    '#5 ERROR: process "sh /run/cic/pip.sh" did not complete successfully: exit code: 137',
                    "#5 2.0 Collecting x[y]",
                ]
            ),
        ),
        max_size=12,
    ),
    st.sampled_from(["final", "lock", PUSH, CONVERT, ""]),
)
def test_no_log_is_too_odd(lines: list[str], step: str) -> None:
    cause = classify(lines, step=step)
    assert isinstance(cause.code, ErrorCode) and cause.message
    assert dataclasses.replace(cause) == cause and len(cause.excerpt) <= MAX_LINES
