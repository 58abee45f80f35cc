"""Define what may be sent with a call: the models that parse it and describe it in the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from image_builder.errors import FieldProblem, InvalidRequest
from image_builder.launch.commands import PROCESSES
from image_builder.launch.script import KINDS
from image_builder.launch.start import MAX_PROCESSES
from image_builder.proof.installed import KINDS as KINDS_OF_PACKAGES
from image_builder.request.build_request import BuildRequest, Engine, Machine
from image_builder.request.parsing import field_problems, load_json
from image_builder.state import BuildState
from service.db.groups import MAX_NAME
from service.db.shares import MAX_GROUPS, MAX_USERS
from service.oidc.tokens import MAX_TOKEN_CHARACTERS

MAX_PER_PAGE = 100
MAX_PACKAGES = 1000
MAX_SEARCH = 200
MAX_OFFSET_BYTES = 2**62
STATUSES = ", ".join(BuildState.__members__)


class Query(BaseModel):
    """The parameters after the `?`. The description of each field says what to write."""

    model_config = ConfigDict(frozen=True)


class Page(Query):
    """Which builds of a list are wanted."""

    page: int = Field(default=1, ge=1, le=10**9, description="a number from 1 on")
    per_page: int = Field(
        default=20, ge=1, le=MAX_PER_PAGE, description=f"a number from 1 to {MAX_PER_PAGE}"
    )
    status: BuildState | None = Field(
        default=None,
        description=f"one of {STATUSES}; without it, or empty, all",
        json_schema_extra={"enum": [*BuildState.__members__, ""]},
    )

    @field_validator("status", mode="before")
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        return value.upper() or None if isinstance(value, str) else value


class LogQuery(Query):
    """From which byte on a log is wanted."""

    offset: int = Field(
        default=0,
        ge=0,
        lt=MAX_OFFSET_BYTES,
        description="a number of bytes: 0, or the X-Log-Offset of the last answer",
    )


class PackagesQuery(Query):
    """Which packages of an image are wanted."""

    search: str = Field(
        default="",
        max_length=MAX_SEARCH,
        description=f"words of a name, version, licence or hash, of at most {MAX_SEARCH} characters",
    )
    kind: str | None = Field(
        default=None,
        description=f"one of {', '.join(KINDS_OF_PACKAGES)}; without it, all",
        json_schema_extra={"enum": list(KINDS_OF_PACKAGES)},
    )
    page: int = Field(default=1, ge=1, le=10**9, description="a number from 1 on")
    per_page: int = Field(
        default=100,
        ge=1,
        le=MAX_PACKAGES,
        description=f"a number from 1 to {MAX_PACKAGES}",
    )

    @field_validator("kind")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in KINDS_OF_PACKAGES:
            raise ValueError("there is no such kind")
        return value


class DownloadQuery(Query):
    """Which SIF of a name is wanted."""

    sha256: str | None = Field(
        default=None, description="the sha256 of an earlier SIF of that name"
    )


class ArchitectureQuery(Query):
    """Which targets are wanted."""

    platform: str | None = Field(default=None, description="a platform such as linux/amd64")


class MachineSearch(Query):
    """Which machines of the catalogue are wanted."""

    search: str = Field(
        default="",
        max_length=MAX_SEARCH,
        description=f"words of a name, a site, a CPU or a GPU, of at most {MAX_SEARCH} characters",
    )


class MachineChoice(Query):
    """A machine of the catalogue, or what is known of one; `machines.machine_facts` reads it."""

    model_config = ConfigDict(extra="forbid")

    machine: str | None = Field(default=None, description="a name of the machine catalogue")
    platform: str | None = Field(default=None, description="a platform such as linux/amd64")
    architecture: str | None = Field(default=None, description="a target such as zen2")
    engine: str | None = Field(
        default=None, description="what runs images there, such as apptainer or podman-hpc"
    )
    mpi: str | None = Field(default=None, description="the MPI of the site, such as openmpi@4")
    gpu: str | None = Field(
        default=None, description="the newest runtime that the driver serves, such as cuda@12.2"
    )
    gpu_arch: str | None = Field(default=None, description="the GPU, such as a100")
    driver: str | None = Field(default=None, description="the version of the GPU's driver")
    launcher: str | None = Field(
        default=None, description="what begins a parallel job, such as srun --mpi=pmix"
    )
    pmi: str | None = Field(
        default=None, description="what `srun --mpi=list` prints there, such as pmix,pmi2"
    )
    kernel: str | None = Field(default=None, description="the version of Linux, such as 5.14")
    glibc: str | None = Field(
        default=None, description="the version of the C library, such as 2.31"
    )
    squashfs: str | None = Field(
        default=None, description="the compressors that the kernel reads, such as zlib,zstd"
    )
    pmix: str | None = Field(default=None, description="the version of the launcher's PMIx")
    libfabric: str | None = Field(
        default=None, description="the providers of libfabric, such as cxi,tcp"
    )
    ucx: str | None = Field(default=None, description="the transports of UCX, such as rc_mlx5,tcp")


class ScriptQuery(MachineChoice):
    """Which program of an image a script starts, and where."""

    kind: str | None = Field(
        default=None,
        description=f"one of {', '.join(KINDS)}; without it, a Slurm job script where there is Slurm",
        json_schema_extra={"enum": list(KINDS)},
    )
    program: str | None = Field(
        default=None,
        description="the program and its arguments; for a module, names of programs to wrap",
    )
    processes: int = Field(
        default=PROCESSES, ge=1, le=MAX_PROCESSES, description="how many processes an MPI has"
    )


MachineName = Annotated[
    str, Field(description="a name of the machine catalogue", examples=["lumi-c"])
]


def _no_default(schema: dict[str, Any]) -> None:
    """What is left out comes from the catalogue."""
    del schema["default"]


class CatalogueMachine(Machine):
    """A machine of the catalogue; facts sent together with its name take precedence."""

    name: MachineName
    platform: str = Field(default="", examples=["linux/amd64"], json_schema_extra=_no_default)
    container_engine: Engine = Field(
        default="singularity", examples=["singularity"], json_schema_extra=_no_default
    )


def _machine_or_lock(schema: dict[str, Any]) -> None:
    """Say that a request which names a finished build may leave out the machine."""
    schema.pop("required", None)
    schema["anyOf"] = [{"required": ["machine"]}, {"required": ["from_lock"]}]


class PostedRequest(BuildRequest):
    """A build request as programs send it: with a machine of the catalogue, without any path."""

    model_config = ConfigDict(json_schema_extra=_machine_or_lock)

    machine: Machine | CatalogueMachine | MachineName  # type: ignore[assignment]
    path: None = Field(default=None, description="library mode only")


class PostedFolder(BaseModel):
    """A build request with the folder that is to be built."""

    request: PostedRequest
    folder: Annotated[
        bytes, Field(description="a tar archive of the step's folder, plain or with gzip")
    ]


class SharedWith(BaseModel):
    """The users and groups with whom a private image is shared, besides its owner."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    users: list[Annotated[str, Field(min_length=1, max_length=64)]] = Field(
        max_length=MAX_USERS, examples=[["bob"]]
    )
    groups: list[Annotated[str, Field(min_length=1, max_length=MAX_NAME)]] = Field(
        default=[],
        max_length=MAX_GROUPS,
        description="groups of yours; left out, it is shared with none",
    )


class DeviceTokens(BaseModel):
    """What the OpenID provider gave a program at the end of the device flow."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id_token: str = Field(min_length=1, max_length=MAX_TOKEN_CHARACTERS)
    access_token: str | None = Field(
        default=None,
        max_length=MAX_TOKEN_CHARACTERS,
        description="for claims that the ID token does not have; it is used once and not kept",
    )
    name: str = Field(
        default="cic login",
        min_length=1,
        max_length=100,
        description="what the token is called; an earlier one of this name ends",
    )


Asked = TypeVar("Asked", bound=Query)
Body = TypeVar("Body", bound=BaseModel)


def parse_body(model: type[Body], raw: bytes) -> Body:
    """Return the checked JSON object of a body. Raises `InvalidRequest` with every problem."""
    fields = load_json(raw)
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise InvalidRequest(field_problems(error, model)) from None


def parse_query(model: type[Asked], given: Mapping[str, str]) -> Asked:
    """Return the checked parameters of the request.

    Raises `InvalidRequest` with every problem.
    """
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        raise InvalidRequest(
            [_problem(model, detail) for detail in error.errors(include_url=False)]
        ) from None


def _problem(model: type[Query], detail: Mapping[str, Any]) -> FieldProblem:
    name = str(detail["loc"][0])
    return FieldProblem(
        name,
        detail["msg"][0].lower() + detail["msg"][1:],
        f"write {model.model_fields[name].description}",
    )
