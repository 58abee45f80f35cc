"""What a full image tells for its slim one: only what has its shape goes on."""

from __future__ import annotations

import pytest

from image_builder.recipe import slim_facts
from image_builder.recipe.slim import SlimFailed

GOOD = {
    "packages": b"libc6:amd64 2.36-9+deb12u10\nbc:amd64 1.07.1-3+b1\nc-compiler\nbc:amd64=1.*\n",
    "versions": b"adduser:all 3.134\nlibstdc++6:amd64 12.2.0-14+deb12u1\nxz:amd64 2:1.0~rc1-1\n",
    "alternatives": b"awk auto /usr/bin/mawk\nx86_64-linux-gnu.tool+1 manual /opt/a..b/x\n",
    "passwd": "root:x:0:0:root:/root:/bin/bash\n_apt:x:42:65534::/nonexistent:/usr/sbin/nologin\n"
    "user.name:x:1000:1000:José P,,,:/home/u:\nsync$:*:4:65534:s:/bin:/bin/sync\n".encode(),
    "group": b"root:x:0:\nsudo:x:27:user.name,other\n",
    "shadow": b"root:*:19000:0:99999:7:::\nu:$y$j9T$a/b.c$d:19000:0:99999:7:::\n_apt:!:1::::::\n",
    "gshadow": b"root:*::\nsudo:!::a,b\n",
}
APT = ("c-compiler", "bc:amd64=1.*")
BAD = {
    "packages": [
        "/run/cic/full/carrier.deb",
        "./carrier.deb",
        "carrier.deb",
        "bc",
        "bc:amd64",
        "bc:amd64=1.07",
        "-o Dir::Etc=/x",
        "--allow-unauthenticated",
        "bc:amd64 1.0 /tmp/x.deb",
        "bc:amd64 1.0\tx",
        "bc:amd64 $(id)",
        "bc:amd64 '1'",
        "bc/testing",
        "c-compiler+",
        "C:amd64 1",
        "bc:amd64 1\u2028",
        "b" * 3000 + ":amd64 1",
    ],
    "versions": ["bc:amd64 1.0\\nPackage: *", "bc:amd64", "bc:amd64 x", "* 1", "bc:amd64 1 2"],
    "alternatives": [
        "--set auto /bin/sh",
        "awk auto usr/bin/mawk",
        "awk auto /usr/../../etc",
        "awk auto /../etc",
        "awk other /usr/bin/mawk",
        "../awk auto /usr/bin/mawk",
        "a/b auto /usr/bin/mawk",
        "awk auto /usr/bin/my awk",
    ],
    "passwd": [
        "root:x:0:0:root:/root",
        "root:x:zero:0:root:/root:/bin/sh",
        "root:x:0:0:root:root:/bin/sh",
        "root:x:0:0:root:/root:sh",
        "+::::::",
        "-x:x:0:0::/root:/bin/sh",
        "a:x:99999999999:0::/root:/bin/sh",
        "root:x:0:0:a\x07:/root:/bin/sh",
    ],
    "group": ["root:x:0", "root:x:x:", "+:::", "a b:x:1:"],
    "shadow": ["root", "root:*:a:0:99999:7:::", "+::::::::"],
    "gshadow": ["root:*:", "a b:*::"],
}


def test_what_a_debian_tells_goes_on() -> None:
    checked = slim_facts.checked({**GOOD, "unknown": b"\0"}, apt=APT)
    assert {name: text.encode() for name, text in checked.items()} == GOOD
    assert GOOD.keys() == set(slim_facts.NAMES) == BAD.keys()


@pytest.mark.parametrize(
    ("name", "line"), [(name, line) for name, lines in BAD.items() for line in lines]
)
def test_a_line_without_its_shape_ends_the_slim_image(name: str, line: str) -> None:
    for content in (f"{line}\n", line, GOOD[name].decode() + line, f"\n{line}\n\n"):
        with pytest.raises(SlimFailed, match=f"of its {name} holds a line") as failure:
            slim_facts.checked({name: content.encode()}, apt=APT)
        assert len(failure.value.message) < 500


def test_what_is_no_text_ends_it_too() -> None:
    with pytest.raises(SlimFailed, match="no text"):
        slim_facts.checked({"packages": b"bc:amd64 1\xff\n"}, apt=())


def test_long_files_take_linear_time() -> None:
    """No line makes a pattern look back: 4 MB of each worst case end at once."""
    for name, worst in {
        "packages": "a" * 4_000_000,
        "passwd": "a:x:0:0:" + "b" * 4_000_000,
        "shadow": "a:" + "0" * 4_000_000,
        "alternatives": "a auto /" + "/" * 4_000_000,
        "versions": "a:a-" * 1_000_000,
    }.items():
        with pytest.raises(SlimFailed):
            slim_facts.checked({name: worst.encode()}, apt=())
