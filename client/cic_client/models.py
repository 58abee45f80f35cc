"""Define the service's answers. Fields that a newer service adds are kept as they come."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from cic_client.errors import UnexpectedAnswer

FINISHED, FAILED = "FINISHED", "FAILED"
Read = TypeVar("Read", bound="Answer")


class Answer(BaseModel):
    """A JSON object of the service."""

    # What checks an answer is made when the first one comes: all of it takes longer than a call.
    model_config = ConfigDict(frozen=True, extra="allow", defer_build=True)

    @classmethod
    def of(cls: type[Read], content: bytes) -> Read:
        """Return the JSON object that a service answers. Raises `UnexpectedAnswer`."""
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "JSON"
            raise UnexpectedAnswer.because(f"{where}: {first['msg']}") from None

    def as_json(self) -> dict[str, Any]:
        """Return the object as the service sent it."""
        return self.model_dump(mode="json", exclude_unset=True)


class WrongField(Answer):
    """A wrong field of a request, and what to write instead."""

    field: str = ""
    problem: str = ""
    hint: str = ""


class Problem(Answer):
    """Why the service refuses a call (RFC 9457)."""

    title: str = ""
    detail: str = ""
    code: str = ""
    hint: str = ""
    errors: list[WrongField] = []


class Progress(Answer):
    """How many packages are installed."""

    done: int
    total: int
    what: str | None = None


class Build(Answer):
    """A build. Times are in UTC, in the form of RFC 3339."""

    status: str
    message: str | None = None
    image_id: str
    filename: str | None = None
    id: str
    created_at: str
    started_at: str | None = None
    building_at: str | None = None
    converting_at: str | None = None
    ended_at: str | None = None
    stage: str | None = None
    progress: Progress | None = None
    error_code: str | None = None
    hint: str | None = None
    identity: str | None = None
    sha256: str | None = None
    size_bytes: int | None = None
    pushed_digest: str | None = None
    audit: dict[str, Any] | None = None
    push: bool = False
    visibility: str = ""
    warnings: list[str] = []
    request: dict[str, Any] = {}

    @property
    def has_ended(self) -> bool:
        """Whether the status is one of the last two."""
        return self.status in (FINISHED, FAILED)


class Span(Answer):
    """A part of a build: a `step`, a `layer` or a `package`. Times are as a build's."""

    kind: str
    name: str
    version: str | None = None
    hash: str | None = None
    began_at: str
    ended_at: str | None = None
    seconds: float | None = None
    outcome: str | None = None


class Timeline(Answer):
    """What ran in a build, and when, in the order in which it began."""

    began_at: str
    ended_at: str | None = None
    spans: list[Span] = []
    left_out: int = 0


class BuildList(Answer):
    """A page of the caller's builds, newest first."""

    builds: list[Build]
    page: int
    per_page: int
    total: int
    pages: int


class Plan(Answer):
    """What would be built."""

    image_id: str
    filename: str | None = None
    identity: str | None = None
    spack_yaml: str | None = None
    dockerfile: str
    warnings: list[str] = []
    description_yaml: str | None = None


class ImageSummary(Answer):
    """A finished image, as lists show it."""

    filename: str
    image_id: str
    identity: str
    platform: str
    sha256: str | None = None
    size_bytes: int | None = None
    created_at: str
    visibility: str = ""


class Image(ImageSummary):
    """A finished image, and what is known of how it was made."""

    request: dict[str, Any] = {}
    recipe: str = ""
    commit: str | None = None
    audit: dict[str, Any] | None = None
    scan: dict[str, Any] | None = None
    image_bytes: int | None = None
    slim: bool = False
    full_because: str = ""
    labels: dict[str, str] = {}
    documents: list[str] = []
    pinned: bool = False
    shared_with: list[str] | None = None
    shared_with_groups: list[str] | None = None


class ImageList(Answer):
    """The finished images, newest first."""

    images: list[ImageSummary]


class Package(Answer):
    """A package that is installed in an image. What is not known is None."""

    name: str
    version: str
    kind: str
    licence: str | None = None
    hash: str | None = None
    origin: str | None = None


class PackageList(Answer):
    """A page of what is installed in an image, by name. Without a `source`, nothing is known."""

    packages: list[Package]
    source: str | None = None
    page: int
    per_page: int
    total: int
    pages: int


class Finding(Answer):
    """Something to know before an image is used on a machine."""

    level: str
    subject: str
    message: str
    hint: str = ""
    rule: str = ""
    source: list[str] = []


class Check(Answer):
    """Whether an image works on a machine, and the line that runs it there."""

    image: str
    machine: str
    ok: bool
    answer: str
    findings: list[Finding] = []
    unknown: list[str] = []
    run_command: str = ""


class Recognised(Answer):
    """A machine, recognised from facts that were collected there."""

    machine: dict[str, str]
    facts: dict[str, str]
    nearest: list[dict[str, Any]] = []
    notes: list[str] = []


class Architecture(Answer):
    """A CPU target that a request may name."""

    name: str
    family: str
    platform: str
    vendor: str = ""
    aliases: list[str] = []
    parents: list[str] = []


class ArchitectureList(Answer):
    """The known CPU targets and platforms."""

    architectures: list[Architecture]
    platforms: list[str]


class Machine(Answer):
    """A machine of the catalogue. What is not known is None."""

    name: str
    title: str = ""
    platform: str
    architecture: str | None = None
    container_engine: str = ""
    mpi: str | None = None
    gpu: str | None = None


class MachineList(Answer):
    """The machine catalogue."""

    machines: list[Machine]


class Webhook(Answer):
    """An address that is told of your builds."""

    id: int
    url: str
    events: list[str]
    on: bool
    why_off: str | None = None
    created_at: str = ""


class NewWebhook(Webhook):
    """A new webhook with the secret that signs its notices."""

    secret: str


class WebhookList(Answer):
    """Your webhooks."""

    webhooks: list[Webhook]


class UnderWay(Answer):
    """A notice that is being sent."""

    notice: str


class Mail(Answer):
    """Where you get mail, and of what."""

    address: str
    events: list[str]
    on: bool
    confirmed: bool


class Notice(Answer):
    """What was, or is to be, sent of a build; `outcome` is None until that is over."""

    id: str
    event: str
    build: str | None = None
    webhook: int | None = None
    created_at: str
    outcome: str | None = None
    tries: int
    tried: list[dict[str, Any]] = []
    next_try_at: str | None = None
    ended_at: str | None = None


class NoticeList(Answer):
    """The latest notices, newest first."""

    notices: list[Notice]


class Health(Answer):
    """Whether the service is alive or ready."""

    status: str
    checks: dict[str, str] = {}


class LogPart(BaseModel):
    """A part of a build's log. `next_offset` is the byte where the next part begins."""

    model_config = ConfigDict(frozen=True)

    content: bytes
    next_offset: int
    is_complete: bool


class GroupList(Answer):
    """The groups that you are in."""

    groups: list[str]


class DeviceLogIn(Answer):
    """Where a program logs its user in with the device flow (RFC 8628)."""

    issuer: str
    client_id: str
    device_authorization_endpoint: str
    token_endpoint: str
    scopes: list[str] = ["openid"]
    name: str = "your institute"


class LoggedIn(Answer):
    """A token of the service, and until when it is good."""

    token: str
    user: str = ""
    expires_at: str = ""
