"""Slim images: when one is made, and what the recipe's scripts find out. With real programs, links
and packages.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from image_builder.recipe import slim
from image_builder.recipe.slim import Report, SlimFailed
from image_builder.request.parsing import parse_request
from tests.conftest import PROJECT
from tests.support.planning import base, described

RECIPE = PROJECT / "image_builder" / "recipes" / "1"
MACHINE = {"platform": "linux/amd64", "container_engine": "docker"}


@pytest.fixture(scope="module")
def closure() -> ModuleType:
    return load("closure")


@pytest.fixture(scope="module")
def collect(closure: Any) -> Any:
    load("accounts")
    return load("collect")


def load(name: str) -> ModuleType:
    """A script of the recipe as a module."""
    spec = importlib.util.spec_from_file_location(name, RECIPE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("request_slim", "text", "post_install", "default", "wanted"),
    [
        (None, "", False, False, False),
        (None, "", False, True, True),
        (None, "", True, True, False),
        (None, "slim: true", True, False, True),
        (None, "slim: false", False, True, False),
        (True, "slim: false", True, False, True),
        (False, "slim: true", False, True, False),
    ],
)
def test_who_decides(
    request_slim: bool | None, text: str, post_install: bool, default: bool, wanted: bool
) -> None:
    request = parse_request(
        {"machine": MACHINE, "workflow": "w", "step_id": "s", "slim": request_slim}
    )
    assert (
        slim.is_wanted(request, described(text), has_post_install=post_install, default=default)
        is wanted
    )


@pytest.mark.parametrize(
    ("own", "other", "words"),
    [
        ({}, {}, ""),
        (
            {"os_id": "ubuntu", "os_version": "24.04"},
            {"os_id": "ubuntu", "os_version": "24.04"},
            "",
        ),
        ({}, {"os_version": "13"}, "debian 13, and the base image debian 12"),
        ({"os_id": "rocky"}, {}, "rocky"),
        ({"os_id": ""}, {"os_id": ""}, "unknown system"),
    ],
)
def test_the_runtime_base_is_of_the_same_release(
    own: dict[str, str], other: dict[str, str], words: str
) -> None:
    reason = slim.incompatibility(base(**own), base(**other))
    assert words in reason and bool(reason) is bool(words)


def test_the_environment_is_the_base_images_own() -> None:
    facts = base(
        variables={
            "PATH": "/a:/b",
            "ODD": 'a "b" $c \\\\ d',
            "SPACK_ROOT": "/opt/spack",
            "HOME": "/root",
            "LINES": "a\nb",
            "not a name": "x",
        }
    )
    assert slim.variables(facts) == ['ODD="a \\"b\\" \\$c \\\\\\\\ d"', 'PATH="/a:/b"']


def test_labels_and_folder_are_the_base_images_own() -> None:
    facts = base(
        folder="/my data", labels={"z": 'say "$HOME"', "a.b": "", "of\ntwo": "x", "lines": "1\n2"}
    )
    assert slim.labels(facts) == ['"a.b"=""', '"z"="say \\"\\$HOME\\""']
    assert (
        slim.folder(facts) == '"/my data"'
        and slim.folder(base()) == slim.folder(base(folder="\n")) == '"/"'
    )


def test_first_lines_of_a_step(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.pl").write_text("#! /usr/bin/perl -w\nprint 1;\n")
    (tmp_path / "b.sh").write_text("#!/bin/sh\n")
    (tmp_path / "data").write_bytes(b"\xff\xfe")
    (tmp_path / "link").symlink_to("/etc/passwd")
    assert slim.first_lines(tmp_path) == "/bin/sh\n/usr/bin/env python3\n/usr/bin/perl -w\n"


def test_a_report() -> None:
    report = slim.read_report(
        json.dumps(
            {
                "missing": [f"/x{n}: liba.so" for n in range(7)],
                "count": 7,
            }
        ).encode()
    )
    with pytest.raises(SlimFailed, match=r"would lack /x0: liba\.so; .*and 2 more"):
        report.require_nothing_missing()
    Report(missing=(), count=0).require_nothing_missing()
    for text in ("", "{}", "[]", '{"missing": 3, "count": 0}', "[" * 100_000, '{"count": 1e999}'):
        with pytest.raises(SlimFailed):
            slim.read_report(text.encode())


def test_a_report_of_any_size_says_little() -> None:
    told = {"missing": ["x" * 10**6] * 100, "count": 10**4000}
    with pytest.raises(SlimFailed) as failure:
        slim.read_report(json.dumps(told).encode()).require_nothing_missing()
    assert len(failure.value.message) < 4000


def test_links_are_followed_inside_the_root(closure: Any, tmp_path: Path) -> None:
    for folder in ("usr/lib", "etc"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "lib").symlink_to("usr/lib")
    (tmp_path / "usr/lib/a.so.1").write_text("x")
    (tmp_path / "usr/lib/a.so").symlink_to("/lib/a.so.1")
    (tmp_path / "round").symlink_to("/round")
    root = closure.Root(str(tmp_path))
    assert root.walk("/lib/a.so") == (["/lib", "/usr/lib/a.so", "/lib"], "/usr/lib/a.so.1")
    assert root.end("/lib/../../etc") == "/etc"
    assert root.end("/round") is None and root.end("/lib/none") is None


def test_no_link_leads_out_of_the_root(closure: Any, tmp_path: Path) -> None:
    """The root is a stranger's file system, and what is looked up is its own, never this one's."""
    inside, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (inside / "usr", outside):
        folder.mkdir(parents=True)
        (folder / "script").write_text(f"#!/{folder.name}\n")
    (inside / "folder").symlink_to(outside)
    (inside / "program").symlink_to(sys.executable)
    (inside / "linked").symlink_to("/usr")
    os.mkfifo(inside / "fifo")
    root = closure.Root(str(inside))
    assert closure.needs(root, "/folder/script", "/bin") == {}
    assert closure.needs(root, "/linked/script", "/bin") == {"/usr": "/usr"}
    assert closure.needs(root, "/program", "/bin") == {f"-> {sys.executable}": None}
    assert root.elf("/program") is None and closure.needs(root, "/fifo", "/bin") == {}


def test_libraries_of_a_program_are_those_that_the_linker_loads(closure: Any) -> None:
    if shutil.which("ldd") is None:
        pytest.skip("ldd is not installed")
    path = os.path.realpath(sys.executable)
    listed = subprocess.run(["ldd", path], check=True, capture_output=True, text=True).stdout
    expected = {
        line.split()[0]: os.path.realpath(line.split()[2])
        for line in listed.splitlines()
        if " => " in line
    }
    root = closure.Root()
    found = closure.libraries(root, path)
    assert {name: root.end(place) for name, place in found.items() if name in expected} == expected
    assert expected and closure.read_elf(__file__) is None
    interpreter = closure.read_elf(path).interpreter
    assert closure.needs(root, path, "")[interpreter] == interpreter


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A program that finds a library beside it, which finds one that nothing of its own tells where
    it is.
    """
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no gcc")
    (tmp_path / "lib").mkdir()

    def compiled(name: str, text: str, *options: str) -> None:
        (tmp_path / "source.c").write_text(text)
        subprocess.run(
            [compiler, "-o", str(tmp_path / name), str(tmp_path / "source.c"), *options], check=True
        )

    compiled("lib/libdeep.so", "int deep(void) { return 7; }\n", "-shared")
    compiled(
        "lib/libouter.so",
        "int deep(void); int outer(void) { return deep(); }\n",
        "-shared",
        f"-L{tmp_path}/lib",
        "-ldeep",
    )
    compiled(
        "program",
        "int outer(void); int main(void) { return outer(); }\n",
        f"-L{tmp_path}/lib",
        "-louter",
        "-Wl,--disable-new-dtags,-rpath,$ORIGIN/lib",
        f"-Wl,-rpath-link,{tmp_path}/lib",
    )
    return tmp_path


def test_a_programs_rpath_serves_its_libraries_too(closure: Any, linked: Path) -> None:
    found = closure.libraries(closure.Root(), str(linked / "program"))
    assert found["libouter.so"] == f"{linked}/lib/libouter.so"
    assert found["libdeep.so"] == f"{linked}/lib/libdeep.so"
    assert closure.libraries(closure.Root(), str(linked / "lib/libouter.so"))["libdeep.so"] is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/bin/sh -e", {"/bin/sh": "/bin/sh"}),
        ("/usr/bin/env -S sh -e", {"/usr/bin/env": "/usr/bin/env", "sh": "/bin/sh"}),
        (
            "/usr/bin/env nothing-of-that-name",
            {"/usr/bin/env": "/usr/bin/env", "nothing-of-that-name": None},
        ),
        ("/no/where", {"/no/where": None}),
        ("/bin/sh /etc/passwd", {"/bin/sh": "/bin/sh", "/etc/passwd": "/etc/passwd"}),
        ("", {}),
    ],
)
def test_interpreters(closure: Any, line: str, expected: dict[str, str | None]) -> None:
    assert closure.interpreters(closure.Root(), line.split(), "/nowhere:/bin") == expected


STATUS = """\
Package: perl-base
Status: install ok installed
Architecture: amd64
Source: perl
Version: 5.36
Conffiles:
 /etc/perl/as it came.conf d41d8cd98f00b204e9800998ecf8427e
 /etc/perl/edited d41d8cd98f00b204e9800998ecf8427e obsolete
 /etc/perl/gone d41d8cd98f00b204e9800998ecf8427e
Description: the interpreter
 Version: of a description's own words

Package: perl
Status: install ok installed
Architecture: all
Version: 5.36

Package: libperl-dev
Status: install ok installed
Architecture: amd64
Multi-Arch: same
Source: perl (5.36)
Version: 5.36

Package: libperl-dev
Status: install ok installed
Architecture: i386
Multi-Arch: same
Source: perl (5.36)
Version: 5.36

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1
"""


@pytest.fixture
def debian(tmp_path: Path) -> Path:
    """A root with some of Debian's packages, as dpkg and apt write them down."""
    info = tmp_path / "var/lib/dpkg/info"
    info.mkdir(parents=True)
    (tmp_path / "var/lib/apt").mkdir()
    (tmp_path / "var/lib/dpkg/status").write_text(STATUS)
    (tmp_path / "var/lib/apt/extended_states").write_text("Package: perl-base\nAuto-Installed: 1\n")
    (info / "perl-base.list").write_text("/usr\n/usr/bin/perl\n/lib/old.so\n")
    (info / "libperl-dev:amd64.list").write_text("/usr/lib/libperl.a\n")
    (info / "libperl-dev:i386.list").write_text("/usr/lib32/libperl.a\n")
    (info / "gone.list").write_text("/etc/gone.conf\n")
    return tmp_path


def test_debians_packages(collect: Any, debian: Path) -> None:
    packages = collect.Packages(str(debian))
    dev = ["libperl-dev:amd64", "libperl-dev:i386"]
    assert packages.versions == dict.fromkeys(["perl-base:amd64", "perl:all", *dev], "5.36")
    assert packages.automatic == {"perl-base"}
    assert packages.owner("/usr/bin/perl") == packages.owner("/usr/lib/old.so") == "perl-base:amd64"
    assert [packages.owner(f"/usr/{folder}/libperl.a") for folder in ("lib", "lib32")] == dev
    assert packages.owner("/opt/own") is None and packages.owner("/etc/gone.conf") is None
    assert packages.family("perl-base:amd64") == ["perl-base:amd64", "perl:all"], (
        "not what is only for building"
    )


def test_a_configuration_file_that_was_edited(collect: Any, debian: Path) -> None:
    (debian / "etc/perl").mkdir(parents=True)
    (debian / "etc/perl/as it came.conf").write_text("")
    (debian / "etc/perl/edited").write_text("x")
    packages = collect.Packages(str(debian))
    assert [
        name
        for name in ("as it came.conf", "edited", "gone", "other")
        if packages.was_edited(f"/etc/perl/{name}")
    ] == ["edited"]


def test_which_alternatives_are_chosen(collect: Any, debian: Path) -> None:
    assert collect.alternatives(str(debian)) == {}
    for folder in ("etc/alternatives", "var/lib/dpkg/alternatives"):
        (debian / folder).mkdir(parents=True)
    for name, mode, program in (("pager", "manual", "/bin/more"), ("awk", "auto", "/usr/bin/mawk")):
        (debian / "var/lib/dpkg/alternatives" / name).write_text(
            f"{mode}\n/usr/bin/{name}\n\n{program}\n5\n"
        )
        (debian / "etc/alternatives" / name).symlink_to(program)
    (debian / "var/lib/dpkg/alternatives/lost").write_text("auto\n")
    assert collect.alternatives(str(debian)) == {
        "awk": ("auto", "/usr/bin/mawk"),
        "pager": ("manual", "/bin/more"),
    }


def test_a_slim_image_asks_for_the_full_ones_versions(
    collect: Any, debian: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(collect, "ASKED", str(debian / "asked"))
    packages, before = collect.Packages(str(debian)), collect.Packages(str(debian))
    before.versions["removed:all"] = "1"
    (debian / "asked").write_text("perl=5.3*\nlibperl-dev:i386\nawk\nremoved\n")
    assert collect.to_install({"perl-base:amd64"}, packages, before) == [
        "libperl-dev:i386 5.36",
        "perl-base:amd64 5.36",
        "perl:all 5.36",
        "awk",
    ]
    (debian / "asked").write_text("libperl-dev=5.36\n")
    assert collect.to_install(set(), packages, before) == [
        "libperl-dev:amd64 5.36",
        "libperl-dev:i386 5.36",
    ]


def test_a_base_that_is_not_made_of_debians_packages(collect: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="not made of Debian packages"):
        collect.Packages(str(tmp_path))


def test_what_is_found_in_the_full_image_alone_is_missing(closure: Any, tmp_path: Path) -> None:
    verify = load("verify")
    for top in ("full", "slim"):
        for folder in ("bin", "step"):
            (tmp_path / top / folder).mkdir(parents=True)
        (tmp_path / top / "bin/sh").write_text("")
        (tmp_path / top / "step/run").write_text("#!/bin/sh\n")
        (tmp_path / top / "step/odd").write_text("#!/usr/bin/env nowhere\n")
        (tmp_path / top / "step/special").write_text("#!/bin/special\n")
        (tmp_path / top / "step/link").symlink_to("/bin/special")
    (tmp_path / "full/bin/special").write_text("")
    (tmp_path / "full/step/lost").write_text("")
    found = verify.missing(
        closure.Root(str(tmp_path / "full")),
        closure.Root(str(tmp_path / "slim")),
        [f"/step/{name}" for name in ("run", "odd", "special", "link", "lost")],
        "/bin",
        [],
    )
    assert list(found) == [
        "/step/special: /bin/special",
        "/step/link: -> /bin/special",
        "/step/lost: it is not there",
    ]


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """Two folders with files of users and groups: the full image's, and its runtime base's."""
    texts = {
        "full/passwd": "root:x:0:0::/root:/bin/bash\ntoor:x:0:0::/root:/bin/sh\nann:x:1001:1001::/home/ann:/bin/sh\n",
        "base/passwd": "root:x:0:0::/root:/bin/sh\nown:x:50:50::/:/bin/sh\n",
        "full/group": "root:x:0:\nvideo:x:44:ann,bob\nann:x:1001:\n",
        "base/group": "root:x:0:\nvideo:x:44:own,bob\n",
        "full/shadow": "root:*:1:0:99999:7:::\nann:$y$h:2:0:99999:7:::\n",
        "base/shadow": "root:*:1:0:99999:7:::\n",
        "full/gshadow": "video:!::ann\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_users_and_groups_of_the_full_image_are_added(etc: Path) -> None:
    accounts = load("accounts")
    made = {
        name: accounts.merged(str(etc / "full"), str(etc / "base"), name) for name in accounts.FILES
    }
    assert made == {
        "passwd": "root:x:0:0::/root:/bin/bash\nown:x:50:50::/:/bin/sh\ntoor:x:0:0::/root:/bin/sh\n"
        "ann:x:1001:1001::/home/ann:/bin/sh\n",
        "group": "root:x:0:\nvideo:x:44:ann,bob,own\nann:x:1001:\n",
        "shadow": "root:*:1:0:99999:7:::\nann:$y$h:2:0:99999:7:::\n",
        "gshadow": None,
    }


@pytest.mark.parametrize(
    ("file", "line", "words"),
    [
        ("passwd", "ann:x:7:7::/:/bin/sh", "user ann is 7 there and 1001 in the full image"),
        (
            "passwd",
            "other:x:1001:7::/:/bin/sh",
            "user other is 1001 there, which is ann in the full image",
        ),
        ("group", "ann:x:7:", "group ann is 7 there and 1001"),
        ("group", "x:x:1001:", "group x is 1001 there, which is ann"),
    ],
)
def test_a_name_or_number_that_means_another_in_the_base(
    etc: Path, file: str, line: str, words: str
) -> None:
    accounts = load("accounts")
    with (etc / "base" / file).open("a") as opened:
        opened.write(f"{line}\n")
    with pytest.raises(accounts.Conflict, match=words):
        accounts.merged(str(etc / "full"), str(etc / "base"), file)
