"""Test what holds for finished images wherever they are stored.

Each implementation's tests import these and provide the fixture `images`, which is empty at first.
"""

from __future__ import annotations

import contextlib
import hashlib
import os

import pytest

from image_builder.store.image_store import Images
from image_builder.store.record import ImageRecord, is_filename

IDENTITY = "sha256:" + "a" * 64
OTHER_IDENTITY = "sha256:" + "b" * 64
NAME = "demo_hello_zen2_nompi_nogpu_v_latest.sif"


def record(identity: str = IDENTITY, filename: str | None = NAME, **details: object) -> ImageRecord:
    return ImageRecord(
        identity=identity,
        image_id="demo:latest",
        platform="linux/amd64",
        filename=filename,
        details=details,
    )


def publish(images: Images, content: bytes, what: ImageRecord | None = None) -> ImageRecord:
    with images.temporary_path() as temporary:
        temporary.write_bytes(content)
        return images.publish(temporary, what or record())


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def content_of(images: Images, digest: str) -> bytes:
    with images.opened(digest) as file:
        return file.read()


def test_a_published_image_is_found_by_name_digest_and_identity(images: Images) -> None:
    published = publish(images, b"one", record(audit={"ok": True}, labels={"a": "b"}))
    assert (published.sha256, published.size_bytes) == (sha256(b"one"), 3)
    assert content_of(images, sha256(b"one")) == b"one"
    for found in (
        images.by_name(NAME),
        images.by_sha256(sha256(b"one")),
        images.by_identity(IDENTITY),
    ):
        assert found == published
        assert found.details["audit"] == {"ok": True}
    listed = published.model_copy(update={"details": {"labels": {"a": "b"}}})
    assert images.images() == [listed]
    assert images.names() == {NAME: listed}
    assert images.is_known(IDENTITY) and not images.is_known(OTHER_IDENTITY)


TODAY = "demo_hello_zen2_openmpi_4_nogpu_v_latest.sif"
EARLIER = "demo_hello_zen2_openmpi-4_nogpu_v_latest.sif"


@pytest.mark.parametrize(("stored", "asked"), [(TODAY, EARLIER), (EARLIER, TODAY)])
def test_a_name_is_found_by_either_spelling(images: Images, stored: str, asked: str) -> None:
    published = publish(images, b"one", record(filename=stored))
    assert images.by_name(asked) == images.by_name(stored) == published
    assert list(images.names()) == [stored]
    assert images.by_name(asked.replace("latest", "v1")) is None


def test_an_earlier_spelling_that_is_stored_follows_its_image(images: Images) -> None:
    publish(images, b"one", record(filename=EARLIER))
    second = publish(images, b"two", record(OTHER_IDENTITY, filename=TODAY))
    assert images.by_name(EARLIER) == images.by_name(TODAY) == second
    assert {name: one.sha256 for name, one in images.names().items()} == dict.fromkeys(
        (EARLIER, TODAY), second.sha256
    )
    assert images.remove(second.sha256 or "")
    assert images.by_name(EARLIER) is images.by_name(TODAY) is None


def test_a_digest_that_the_writer_computed_is_taken(images: Images) -> None:
    with images.temporary_path() as temporary:
        temporary.write_bytes(b"one")
        assert images.publish(temporary, record(), sha256=sha256(b"one")).sha256 == sha256(b"one")
    with images.temporary_path() as temporary:
        temporary.write_bytes(b"one")
        with pytest.raises(ValueError, match="not a sha256"):
            images.publish(temporary, record(), sha256="../../one")


def test_a_name_that_moves_on_leaves_the_old_file_to_who_was_given_it(images: Images) -> None:
    first, second = publish(images, b"one"), publish(images, b"two", record(OTHER_IDENTITY))
    assert images.by_name(NAME) == second
    assert images.by_sha256(sha256(b"one")) == first
    assert images.by_identity(IDENTITY) == first
    assert content_of(images, sha256(b"one")) == b"one"


def test_a_name_means_what_was_asked_for_last_whichever_ends_last(images: Images) -> None:
    newer = publish(images, b"new", record(submitted_at=200.5))
    older = publish(images, b"old", record(OTHER_IDENTITY, submitted_at=100.5))
    assert images.by_name(NAME) == newer
    assert images.by_identity(OTHER_IDENTITY) == older, "who asked for it has it all the same"
    assert content_of(images, sha256(b"old")) == b"old"
    images.point(older)
    assert images.by_name(NAME) == newer
    again = older.model_copy(update={"details": {"submitted_at": 300}})
    images.point(again)
    assert images.by_name(NAME) == again


def test_a_docker_images_name_belongs_to_what_was_asked_for_last(images: Images) -> None:
    newer, older = record(submitted_at=200.5), record(OTHER_IDENTITY, submitted_at=100.5)
    assert images.take_name(newer)
    assert not images.take_name(older)
    assert images.take_name(record(submitted_at=100.5)), "it has the name already"
    assert not images.take_name(record(OTHER_IDENTITY, submitted_at=150.5)), "since 200.5"
    assert images.take_name(record(OTHER_IDENTITY, submitted_at=300.5))
    assert not images.take_name(newer)
    images.record(record(OTHER_IDENTITY, filename=None))
    assert images.forget(OTHER_IDENTITY)
    assert images.take_name(newer), "what is forgotten has no name"
    assert images.names() == {} and images.images() == []


def test_one_at_a_time_gives_a_name_to_docker_images(images: Images) -> None:
    with images.naming("demo:latest") as first, images.naming("demo:latest") as second:
        assert first and not second
        with images.naming("demo:other") as other:
            assert other
    with images.naming("demo:latest") as again:
        assert again


def test_a_name_can_be_given_to_a_stored_sif_without_making_it_again(images: Images) -> None:
    published = publish(images, b"one")
    other = published.model_copy(update={"filename": "other.sif"})
    images.point(other)
    assert images.by_name("other.sif") == other
    assert images.by_name(NAME) == published
    with pytest.raises(LookupError):
        images.point(published.model_copy(update={"sha256": sha256(b"never")}))


def test_an_image_without_a_sif_has_a_record_and_takes_no_sif_away(images: Images) -> None:
    alone = images.record(record(OTHER_IDENTITY, filename=None))
    assert images.by_identity(OTHER_IDENTITY) == alone
    assert images.images() == [] and images.names() == {}
    published = publish(images, b"one")
    images.record(record(filename=None, later=True))
    found = images.by_identity(IDENTITY)
    assert (
        found is not None and found.sha256 == published.sha256 and found.details == {"later": True}
    )


def test_texts_are_kept_with_an_identity(images: Images) -> None:
    images.keep_documents(IDENTITY, {"spack.yaml": "spack: ä\n", "Dockerfile": "FROM x\n"})
    images.keep_documents(IDENTITY, {"Dockerfile": "FROM y\n"})
    assert images.documents(IDENTITY) == ("Dockerfile", "spack.yaml")
    images.keep_documents(IDENTITY, {"facts.json": "{}", "spack.lock": None})
    images.keep_documents(IDENTITY, {"facts.json": None})
    assert images.documents(IDENTITY) == ("Dockerfile", "spack.yaml")
    assert images.document(IDENTITY, "Dockerfile") == "FROM y\n"
    assert images.document(IDENTITY, "spack.yaml") == "spack: ä\n"
    assert images.document(IDENTITY, "../names") is None
    assert images.documents(OTHER_IDENTITY) == images.documents("../../x") == ()
    assert not images.forget(IDENTITY) or images.documents(IDENTITY) == ()


def test_what_is_forgotten_is_gone_and_a_sif_is_not_forgotten(images: Images) -> None:
    images.keep_documents(IDENTITY, {"spack.lock": "{}"})
    images.record(record(filename=None))
    publish(images, b"two", record(OTHER_IDENTITY))
    assert images.texts_bytes(IDENTITY) >= 2
    with images.using(IDENTITY):
        assert not images.forget(IDENTITY)
    with images.using("c" * 64):
        pass
    assert images.identities().keys() == {digit * 64 for digit in "abc"} and images.forget("c" * 64)
    assert images.forget(IDENTITY) and not images.forget(OTHER_IDENTITY)
    assert images.by_identity(IDENTITY) is None
    assert images.documents(IDENTITY) == ()
    assert set(images.identities()) == {"b" * 64}


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".sif",
        "../x.sif",
        "a/b.sif",
        "a\0.sif",
        "-a.sif",
        "a.sif\n",
        "x.sif/",
        "x",
        ".hidden.sif",
        "é.sif",
        "a" * 252 + ".sif",
    ],
)
def test_what_is_no_name_is_neither_stored_nor_found(images: Images, name: str) -> None:
    assert not is_filename(name)
    assert images.by_name(name) is None
    with pytest.raises(ValueError, match="cannot be the name"):
        publish(images, b"one", record(filename=name))
    assert images.names() == {} and images.images() == []


@pytest.mark.parametrize(
    "name",
    [
        "a" * 251 + ".sif",
        "sha256." + "a" * 64 + ".sif",
        "identity.sif",
        "name.x.sif",
        "A.sif",
        "pin." + "0" * 64 + ".sif",
        "a..b__c--d.sif",
    ],
)
def test_every_name_means_what_it_was_given(images: Images, name: str) -> None:
    published = publish(images, b"one", record(filename=name))
    publish(images, b"two", record(OTHER_IDENTITY, filename="a.sif"))
    assert images.by_name(name) == published
    assert set(images.names()) == {name, "a.sif"}
    assert images.remove(sha256(b"one"))
    assert images.by_name(name) is None


@pytest.mark.parametrize("text", ["", "../" + "a" * 61, "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_what_is_no_digest_is_not_looked_up(images: Images, text: str) -> None:
    assert images.by_sha256(text) is None and images.by_identity(text) is None
    with pytest.raises(ValueError, match="not a sha256"), images.opened(text):
        pass


def test_removing_takes_what_points_there_and_leaves_the_rest(images: Images) -> None:
    published = publish(images, b"one")
    images.point(published.model_copy(update={"filename": "more.sif"}))
    second = publish(images, b"two", record(OTHER_IDENTITY, "second.sif"))
    assert images.remove(sha256(b"one"))
    assert (
        images.by_name(NAME) is images.by_name("more.sif") is images.by_identity(IDENTITY) is None
    )
    assert images.images() == [second]
    assert images.names() == {"second.sif": second}
    assert images.remove(sha256(b"one"))
    with pytest.raises(FileNotFoundError), images.opened(sha256(b"one")):
        pass


def test_what_was_removed_can_be_stored_again(images: Images) -> None:
    first = publish(images, b"one")
    assert images.remove(sha256(b"one"))
    assert publish(images, b"one").sha256 == first.sha256
    assert content_of(images, sha256(b"one")) == b"one"


@pytest.mark.parametrize("digest", [sha256(b"one"), IDENTITY])
def test_a_pinned_sif_stays(images: Images, digest: str) -> None:
    published = publish(images, b"one")
    images.pin(digest)
    assert images.is_pinned(digest) and images.is_kept(published)
    assert not images.remove(sha256(b"one"))
    assert images.by_name(NAME) == published
    images.unpin(digest)
    assert not images.is_pinned(digest) and not images.is_kept(published)
    assert images.remove(sha256(b"one"))
    assert images.by_name(NAME) is None


def test_who_uses_an_image_keeps_it(images: Images) -> None:
    published = publish(images, b"one")
    with images.using(IDENTITY):
        assert images.is_kept(published)
        assert not images.remove(sha256(b"one"))
        with images.unused(IDENTITY) as free:
            assert not free
    assert not images.remove(sha256(b"one"), unless=lambda: True)
    assert images.by_name(NAME) == published
    assert images.remove(sha256(b"one"))


def test_a_sif_that_is_read_stays(images: Images) -> None:
    publish(images, b"one")
    with images.opened(sha256(b"one")) as first, images.opened(sha256(b"one")):
        assert not images.remove(sha256(b"one"))
        publish(images, b"two")
        assert first.read() == b"one"
    assert images.remove(sha256(b"one"))


def test_a_sif_is_read_from_any_byte_on(images: Images) -> None:
    content = os.urandom(3_000_000)
    with images.opened(publish(images, content).sha256 or "") as file:
        assert file.seek(0, os.SEEK_END) == len(content)
        assert file.read(10) == b""
        assert file.seek(2_000_000) == 2_000_000
        assert file.read(1000) == content[2_000_000:2_001_000] and file.tell() == 2_001_000
        file.seek(1)
        assert file.read() == content[1:]


def test_uses_are_remembered(images: Images) -> None:
    published = publish(images, b"one")
    before = images.last_use(published)
    assert before > 1.7e9
    with images.using(IDENTITY):
        pass
    assert images.last_use(published) >= before
    assert images.identities().keys() == {"a" * 64}


def test_what_was_not_published_leaves_nothing(images: Images) -> None:
    with contextlib.suppress(RuntimeError), images.temporary_path() as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert not temporary.parent.exists()
    assert images.leftovers() == {} and images.sweep() == 0
