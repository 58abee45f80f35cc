"""requirements.txt as pip reads it: which lines are wrong, and what they name."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from image_builder.errors import BadDescription
from image_builder.sources.pip_lines import logical_lines
from image_builder.sources.requirements import MAX_FILES, Requirements, read_requirements
from image_builder.sources.step import StepFolder

SHA256 = "c0ffee" * 10 + "f00d"


def folder(files: dict[str, str]) -> StepFolder:
    """A fake of a step's folder."""

    def kind_of(path: str) -> Literal["file", "folder"] | None:
        if path in files:
            return "file"
        return "folder" if any(one.startswith(f"{path}/") for one in files) else None

    return StepFolder(kind_of=kind_of, read=files.get)


def read(text: str, files: dict[str, str] | None = None, *, is_final: bool = True) -> Requirements:
    found = read_requirements(text, folder(files or {}), is_final=is_final)
    assert found is not None
    return found


def refusal(text: str, files: dict[str, str] | None = None) -> BadDescription:
    with pytest.raises(BadDescription) as caught:
        read(text, files)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    "text",
    [
        "numpy\nscipy>=1.2,<2 # why\n\n# a comment\nPyYAML[x,y]==1.*; python_version>'3.8'\n",
        "--index-url https://host.test/simple\n--extra-index-url=https://host.test/\n--pre\nsix\n",
        "-i https://host.test/simple\n--no-binary :all:\n--no-binary=six\n",
        f"six==1.16 --hash=sha256:{SHA256} \\\n    --hash sha512:{SHA256 * 2}\n",
        "numpy \\\n  >=1.2 \\\n  # a comment ends it\nsix\n",
        "git+https://host.test/x.git@v1#egg=x\nx @ git+https://host.test/x.git\n",
        "-e git+https://host.test/x.git#egg=x\n",
        "-e git://host.test/x.git#egg=x\n",
        "x --global-option --quiet\n",
        "https://host.test/x-1-py3-none-any.whl\nx @ https://host.test/x.zip\n",
        "-r https://host.test/other.txt\n",
        "-f https://host.test/wheels\n--find-links=https://host.test/wheels\n",
        "six (>=1.0)\n",
        "--pre --prefer-binary\n-i https://host.test/simple --no-index\n",
        f"six==1.16 --hash=sha256:{SHA256}\ncolorama; sys_platform == 'win32'\n",
    ],
)
def test_what_pip_reads_and_needs_no_file(text: str) -> None:
    found = read(text)
    assert not found.in_step and not found.warnings and found.text == text


STEP = {
    "base.txt": "numpy\n",
    "base space.txt": "six\n",
    "my lib/setup.py": "",
    "requirements/dev.txt": "-r ../base.txt\npytest\n",
    "wheels/x-1-py3-none-any.whl": "",
    "external/gt4py/setup.py": "",
    "lib/pyproject.toml": "",
    "foo-1.0.tgz": "",
    "setup.py": "",
    "data/notes.md": "",
    "wheels/bad.whl": "",
}


@pytest.mark.parametrize(
    "line",
    [
        "-r base.txt",
        "-rbase.txt",
        "--requirement base.txt",
        "--requirement=base.txt",
        "-r 'base.txt'",
        "-r requirements/dev.txt",
        "-cbase.txt",
        "-c ./base.txt",
        "--constraint=base.txt",
        "-e .",
        "-e .[test]",
        "--editable=./lib",
        ".",
        "./lib",
        "external/gt4py",
        "external/gt4py/",
        "lib/[extra]",
        "foo-1.0.tgz",
        "./wheels/x-1-py3-none-any.whl",
        "wheels/x-1-py3-none-any.whl ; python_version > '3'",
        "--no-index\n-f wheels",
        "-fwheels",
        "--find-links wheels",
        "-e file:lib",
        "requirements/../lib",
        "-f ./wheels --no-index",
        "-r base\\ space.txt",
        "-e 'my lib'",
    ],
)
def test_files_of_the_step_are_found_in_its_folder(line: str) -> None:
    assert read(f"six\n{line}\n", STEP).in_step


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("torch=1.8.1", ["torch==1.8.1"]),
        ("numpy scipy", ["numpy, scipy"]),
        ("import numpy", ["import"]),
        ("six==", ["name==1.2"]),
        ("numpy>1.0.x y", ["not a Python requirement"]),
        ("pip install numpy", ["pip, install"]),
        (
            "numpy @ file:///home/conda/feedstock_root/build_artifacts/numpy_1/work",
            ["another machine"],
        ),
        ("h5py @ file:///Users/me/h5py", ["another machine"]),
        ("file:///home/me/x", ["another machine"]),
        ("/home/me/x", ["another machine"]),
        ("C:\\me\\x.whl", ["another machine"]),
        ("-e /home/me/x", ["another machine"]),
        ("-f /wheels", ["another machine"]),
        ("-r requirements/base.txt", ["requirements/base.txt", "does not have"]),
        ("-rmissing.txt", ["missing.txt"]),
        ("-c constraints.txt", ["constraints.txt"]),
        ("-e external/missing", ["external/missing"]),
        ("-r file:base.txt", ["Write ./base.txt"]),
        ("-c file:./base.txt", ["Write ./base.txt"]),
        ("file:lib", ["Write ./lib"]),
        ("lib @ file:lib", ["Write ./lib"]),
        ("x @ file:wheels/x-1-py3-none-any.whl", ["Write ./wheels/x-1"]),
        ("-f file:wheels", ["Write ./wheels"]),
        ("lib/pyproject.toml", ["no archive", "Name its folder"]),
        ("requirements/dev.txt", ["Write -r requirements/dev.txt"]),
        ("https://host.test/x-1.whl", ["not the name of a wheel"]),
        ("x @ https://host.test/x.whl#sha256=0", ["not the name of a wheel"]),
        ("wheels/bad.whl", ["not the name of a wheel"]),
        ("six --hash=md5:d41d8cd98f00b204e9800998ecf8427e", ["sha256, sha384, sha512"]),
        ("six --hash sha256:abc", ["64 hexadecimal"]),
        ("external/missing", ["external/missing"]),
        ("./missing.whl", ["missing.whl"]),
        ("bar-1.0.tar.gz", ["bar-1.0.tar.gz"]),
        ("-f missing", ["missing"]),
        ("-r ../other.txt", ["outside"]),
        ("../other", ["outside"]),
        ("-e data", ["pyproject.toml"]),
        ("data/", ["setup.py"]),
        ("-r", ["no file"]),
        ("--frobnicate", ["--frobnicate"]),
        ("-x y", ["-x"]),
        ("--index-url", ["needs a value"]),
        ("a" * 400, ["long"]),
        ("name: env", ["conda"]),
        ("git+git@host.test:x/y.git", ["Write git+https://host.test/x/y.git"]),
        ("git@host.test:x/y.git", ["Write git+https://host.test/x/y.git"]),
        ("git://host.test/x.git", ["git+https://"]),
        ("s3://bucket/x-1-py3-none-any.whl", ["https://"]),
        ("git+file:///opt/x", ["another machine"]),
        ("-e git+https://host.test/x.git", ["#egg=name"]),
        ("-e ./lib#egg=lib", ["does not have"]),
        ("-e ./lib --no-deps", ["--no-deps"]),
        ("numpy --no-deps", ["--no-deps"]),
        ("--pre=1", ["takes no value"]),
        ("-r 'base.txt", ["quote"]),
        ("-r base space.txt", ["'base'"]),
        ("- numpy", ["Write 'numpy' alone"]),
        ("lib @ ./lib", ["Write ./", "alone"]),
        ("numpy@1.26", ["Write numpy==1.26"]),
        ("numpy 1.26", ["Write numpy==1.26"]),
        ("numpy v1.26", ["Write numpy==1.26"]),
        ("'numpy'", ["quotes"]),
        ("numpy>=1.2,", ["comma"]),
        ("numpy>=1.*", ["name>=1 in place"]),
        ("foo_", ["Write foo"]),
        ("python>=3.8", ["its own Python"]),
        ("numpy\u2013x", ["U+2013 (en dash)", "'-'"]),
        ("numpy\xa0==1.2", ["no-break space", "plain blank"]),
        ("numpy==1.26 \\ ", ["blank behind its last"]),
    ],
)
def test_what_pip_would_refuse_after_hours(line: str, words: list[str]) -> None:
    error = refusal(f"{line}\nsix\n", STEP)
    assert error.file == "requirements.txt" and error.line == 1
    assert all(word in str(error) for word in words), str(error)


@pytest.mark.parametrize(
    "text",
    [
        f"six==1.16 --hash=sha256:{SHA256}\nscipy\n",
        f"scipy\nsix==1.16 \\\n  --hash=sha256:{SHA256}\n",
        "--require-hashes\nscipy==1.11\n",
        f"six==1.16 --hash=sha256:{SHA256}\n-r base.txt\n",
        f"six==1.16 --hash=sha256:{SHA256}\nx @ git+https://host.test/x.git\n",
    ],
)
def test_where_one_has_a_hash_all_need_one(text: str) -> None:
    assert "has no --hash" in refusal(text, STEP).message
    assert read(f"{text}-c hashes.txt\n", {"hashes.txt": "", **STEP}), "it may have them"


def test_every_wrong_line_is_told_and_nested_files_are_read() -> None:
    error = refusal("six\ntorch=1\n\n-r gone.txt\n")
    assert error.line == 2 and "line 4" in error.message
    nested = refusal("-r a/b.txt\n", {"a/b.txt": "-r c.txt\n", "a/c.txt": "six\nx=1\n"})
    assert (nested.file, nested.line) == ("a/c.txt", 2)
    nested = refusal("-r a/b.txt\n", {"a/b.txt": "-e ../../x\n"})
    assert (nested.file, nested.line) == ("a/b.txt", 1)


def test_files_that_name_each_other_end() -> None:
    assert read("-r a.txt\n", {"a.txt": "-r requirements.txt\n-r b.txt\n", "b.txt": "-r a.txt\n"})
    many = {f"{n}.txt": f"-r {n + 1}.txt\n" for n in range(MAX_FILES + 5)}
    assert "too many" in refusal("-r 0.txt\n", many).message


def test_what_is_told_and_not_refused() -> None:
    for line, word in (
        ("${TOKEN}", "environment"),
        ("git+ssh://git@host.test/x.git", "SSH"),
        ("x @ git+ssh://git@host.test/x.git", "SSH"),
        ("torch==2.1 --extra-index-url https://host.test/", "ignores --extra-index-url"),
        ("--extra-index-url https://host.test/ torch==2.1", "ignores torch==2.1"),
        ("--pre torch", "ignores torch"),
        ("-e git+https://host.test/x.git#egg=x --pre", "ignores --pre"),
        ("--config-settings a=b", "ignores --config-settings"),
        ("x --config-settings a=b", "23.1"),
        ("x -C a=b", "23.1"),
        ("hg+https://host.test/x", "mercurial"),
        ("x @ svn+https://host.test/x", "subversion"),
    ):
        text = line if line != "${TOKEN}" else "--index-url https://${TOKEN}@host.test/"
        (warning,) = read(f"six\n{text}\n").warnings
        assert word in warning and "line 2" in warning


def test_what_apt_brings_needs_no_warning() -> None:
    text = "hg+https://host.test/x#egg=x\n"
    found = read_requirements(text, folder({}), apt=("mercurial=6.3",))
    assert found is not None and not found.warnings


def test_a_script_may_add_files_before_pip_runs() -> None:
    assert read("-e external/gt4py\n-r more.txt\n", is_final=False).in_step
    with pytest.raises(BadDescription):
        read("torch=1\n", is_final=False)


def test_without_a_folder_files_are_not_judged() -> None:
    found = read_requirements("-r other.txt\nsix\n", None)
    assert found is not None and found.in_step
    assert found.packages == (("requirements.txt", 2, "six"),)


def test_lines_are_joined_as_pip_does() -> None:
    text = "a \\\nb\n# c \\\nd\ne#f\ng #h\n\n i\\"
    assert list(logical_lines(text)) == [(1, "a b"), (4, "d"), (5, "e#f"), (6, "g"), (8, "i")]


@given(st.text(alphabet="ab-=rfe/. \\#@:[]\n;$<>'", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read_requirements(text, folder(STEP))
    except BadDescription as error:
        assert error.file
