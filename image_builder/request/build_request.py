"""Parses a build request once, at the edge; it is frozen from there on.

`parse_request` reports every wrong field together. The text of a request may be JSON, or JSON with
Python's bare `True`, `False` and `None`, as in the project's first documentation.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from image_builder.request import cpu_targets, gpu_arch, machine_spec

MAX_TEXT = 200
MAX_PATH = 4096
MAX_URL = 500
LATEST = "latest"
BASE = "BASE"
NEWER = frozenset(
    {"description", "packages", "folder", "repository", "name", "visibility", "from_lock"}
)
"""Fields that earlier requests did not have: where they are not given, a request is as it was."""
HOW_AND_WHENCE = frozenset(
    {"force", "push", "visibility", "path", "folder", "repository", "from_lock"}
)
"""Fields that are in no image: how it is built, who sees it, and where a step's folder came from."""
OWN_WORKFLOW, OWN_STEP = "own", "image"
"""The names of what a request describes itself and gives no name."""
LOCK_DIGEST = "lock:"
"""What the digest of a lockfile begins with that stood in a request."""
Engine = Literal["docker", "singularity"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*\Z")
_TAKEN_FOLDERS = frozenset(
    {
        "bin",
        "boot",
        "dev",
        "etc",
        "home",
        "lib",
        "lib32",
        "lib64",
        "libx32",
        "media",
        "mnt",
        "opt",
        "proc",
        "root",
        "run",
        "sbin",
        "software-catalog",
        "spack",
        "srv",
        "sys",
        "tmp",
        "usr",
        "var",
    }
)
"""Folders at the top of an image, where the step's folder is put, too."""
_VERSION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+/@-]*\Z")
_TREE = re.compile(r"[0-9a-f]{40}\Z")
_REPOSITORY = re.compile(
    r"https?://[A-Za-z0-9](?:[A-Za-z0-9-]|\.(?=[A-Za-z0-9]))*(?::[0-9]{1,5})?(?:/[A-Za-z0-9_~.+-]+)+\Z"
)
_LOCK = re.compile(r"[A-Za-z0-9][A-Za-z0-9:._+-]{0,254}\Z")
_SPEC = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(?:[@ +~%][A-Za-z0-9_@.:=,+~% /-]*)?\Z")
_GPU_ARCH = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:+-]*\Z")
"""Also what tools print: `NVIDIA A100-SXM4-40GB`, `gfx90a:xnack-`."""
_ENGINE_ALIASES = {
    "apptainer": "singularity",
    "singularityce": "singularity",
    "singularity-ce": "singularity",
}
_ENGINES_OF_REGISTRIES = frozenset(
    {"podman", "podman-hpc", "sarus", "shifter", "charliecloud", "enroot", "pyxis", "udocker"}
)
_ABSENT = frozenset({"", "none", "null", "nompi", "nogpu"})
_TRUE, _FALSE = frozenset({"true"}), frozenset({"false"})


def lock_digest(lock: dict[str, Any]) -> str:
    """Return what stands for a lockfile where a request is written down."""
    return LOCK_DIGEST + hashlib.sha256(json.dumps(lock).encode()).hexdigest()


def _problem(problem: str, hint: str) -> PydanticCustomError:
    return PydanticCustomError("request", "{problem}", {"problem": problem, "hint": hint})


def short(value: Any) -> str:
    """Return how a message shows a value: texts quoted and cut, anything else by its kind.

    The value may be of any size and depth.
    """
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    kinds = {
        bool: "a truth value",
        int: "a number",
        float: "a number",
        type(None): "null",
        list: "a list",
    }
    return kinds.get(type(value), "an object")


def _checked(value: str, shape: re.Pattern[str], hint: str) -> str:
    if len(value) > MAX_TEXT:
        raise _problem(f"is longer than {MAX_TEXT} characters", "write a shorter value")
    if not shape.match(value) or ".." in value:
        raise _problem(f"{short(value)} is not allowed here", hint)
    return value


def _folder_name(value: str) -> str:
    return _checked(
        value,
        _NAME,
        "write a folder's name: letters, digits, '.', '_', '+' and '-', "
        "beginning with a letter or digit",
    )


def _step_name(value: str) -> str:
    if _folder_name(value) in _TAKEN_FOLDERS:
        raise _problem(
            f"/{value} is taken in the image, where the step's folder would be",
            "give the step's folder another name",
        )
    return value


def _own_name(value: str) -> str:
    workflow, slash, step = value.rpartition("/")
    if slash:
        _folder_name(workflow)
    if workflow == BASE or step == BASE:
        raise _problem(f"{BASE} names base images", "choose another name")
    _step_name(step)
    return value


def _folder_digest(value: str) -> str:
    if not _TREE.match(value):
        raise _problem(
            f"{short(value)} is no folder's hash", "send the folder itself as a tar archive"
        )
    return value


def _repository(value: str) -> str:
    if re.match(r"[a-z+]+://[^/]*@", value):
        raise _problem("holds a user or password", "keep a credential in your account")
    if len(value) > MAX_URL or not _REPOSITORY.match(value) or ".." in value:
        raise _problem(
            f"{short(value)} is no repository's address",
            "write https://host/path/to/repository.git",
        )
    return value


def _lock_name(value: Any) -> Any:
    if isinstance(value, dict | None) or (isinstance(value, str) and _LOCK.match(value)):
        return value
    raise _problem(f"{short(value)} names no build", "write a build's id, or a spack.lock")


def _version_name(value: str) -> str:
    _checked(value, _VERSION, "write a branch, a tag or a commit")
    if "@{" in value or "//" in value or value.endswith(("/", ".", ".lock")):
        raise _problem(
            f"{short(value)} is not a valid git name", "write a branch, a tag or a commit"
        )
    return value


def _spec(value: str) -> str:
    one_blank = " ".join(part for part in value.split(" ") if part)
    if len(one_blank) <= MAX_TEXT and (wrong := machine_spec.problem(one_blank)):
        raise _problem(f"{short(one_blank)} {wrong[0]}", wrong[1])
    return _checked(one_blank, _SPEC, "write a Spack spec such as openmpi@4 or cuda@12")


def _absent_or_text(value: Any) -> Any:
    """Return None for None, "" and "none", which all say that something is not wanted."""
    return None if isinstance(value, str) and value.strip(" ").lower() in _ABSENT else value


def _lenient_bool(value: Any) -> Any:
    if isinstance(value, str) and value.strip(" ").lower() in _TRUE | _FALSE:
        return value.strip(" ").lower() in _TRUE
    if isinstance(value, bool) or value is None:
        return value
    raise _problem(f"{short(value)} is neither true nor false", "write true or false")


def _visibility(value: Any) -> Any:
    if value not in ("private", "site"):
        raise _problem(f"{short(value)} is not known", "write private or site")
    return value


def _text_like(shape: re.Pattern[str]) -> WithJsonSchema:
    """Return how the API's description states the shape of a text."""
    pattern = "^" + shape.pattern.replace(r"\Z", "$")
    return WithJsonSchema({"type": "string", "maxLength": MAX_TEXT, "pattern": pattern})


FolderName = Annotated[str, AfterValidator(_folder_name), _text_like(_NAME)]
StepName = Annotated[str, AfterValidator(_step_name), _text_like(_NAME)]
Version = Annotated[str, AfterValidator(_version_name), _text_like(_VERSION)]
OwnName = Annotated[
    str,
    AfterValidator(_own_name),
    WithJsonSchema(
        {
            "type": "string",
            "maxLength": 2 * MAX_TEXT + 1,
            "pattern": "^([A-Za-z0-9][A-Za-z0-9._+-]*/)?[A-Za-z0-9][A-Za-z0-9._+-]*$",
        }
    ),
]
OwnDescription = Annotated[dict[str, Any], WithJsonSchema({"type": "object"})]
"""What `eflows4hpc.yaml` would hold; `sources.own_description` checks it entry by entry."""
OwnPackages = Annotated[
    list[Any], WithJsonSchema({"type": "array", "items": {"type": "string"}, "minItems": 1})
]
FolderDigest = Annotated[
    str,
    AfterValidator(_folder_digest),
    WithJsonSchema({"type": "string", "pattern": "^[0-9a-f]{40}$"}),
]
RepositoryUrl = Annotated[
    str,
    AfterValidator(_repository),
    WithJsonSchema({"type": "string", "format": "uri", "maxLength": MAX_URL}),
]
FromLock = Annotated[
    Any,
    AfterValidator(_lock_name),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "maxLength": 255, "pattern": "^[A-Za-z0-9][A-Za-z0-9:._+-]*$"},
                {"type": "object"},
                {"type": "null"},
            ]
        }
    ),
]
"""A name of a finished build, or a `spack.lock`, which `spack.lock_check` checks."""
SpecText = Annotated[str, AfterValidator(_spec), _text_like(_SPEC)]
OptionalSpec = Annotated[
    SpecText | None, BeforeValidator(_absent_or_text, json_schema_input_type=str | None)
]
Visibility = Annotated[
    Literal["private", "site"],
    BeforeValidator(_visibility, json_schema_input_type=Literal["private", "site"]),
]
Flag = Annotated[
    bool,
    BeforeValidator(
        _lenient_bool, json_schema_input_type=bool | Literal["true", "True", "false", "False"]
    ),
]


class Strict(BaseModel):
    """Defines a part of a request: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_endless_text(cls, value: Any) -> Any:
        """Refuse a long text before any other check: not even blanks may go on for ever."""
        if isinstance(value, str) and len(value) > MAX_PATH:
            raise _problem(f"is longer than {MAX_PATH} characters", "write a shorter value")
        return value


class Machine(Strict):
    """Describes the machine that an image is for.

    `architecture` keeps what was asked for (`rome`); `target` is what it means (`zen2`).
    """

    platform: str = Field(description="Container platform", examples=["linux/amd64"])
    architecture: str | None = Field(
        default=None,
        examples=["rome", "zen2", "x86_64_v3"],
        description="archspec target or product name; none: the generic family",
    )
    container_engine: Engine = Field(examples=["singularity"])
    mpi: OptionalSpec = Field(
        default=None, examples=["openmpi@4"], description="Spack spec of the one MPI"
    )
    gpu: OptionalSpec = Field(
        default=None, examples=["cuda@12"], description="Spack spec of the GPU runtime"
    )
    gpu_arch: Annotated[str | None, BeforeValidator(_absent_or_text)] = Field(
        default=None, examples=["sm_90", "a100"], description="GPU architecture or product name"
    )

    @field_validator("platform", mode="after")
    @classmethod
    def _known_platform(cls, value: str) -> str:
        try:
            return cpu_targets.parse_platform(value)
        except cpu_targets.UnknownName as error:
            raise _problem(error.problem, error.hint) from None

    @field_validator("architecture", mode="after")
    @classmethod
    def _known_architecture(cls, value: str | None, info: ValidationInfo) -> str | None:
        name = (value or "").strip(" ").lower()
        if name in cpu_targets.GENERIC_NAMES:
            return None
        if " " in name and _NAME.match(name.replace(" ", "-")):
            name = name.replace(" ", "-")
        _checked(name, _NAME, "write an archspec target such as zen2, or a product such as rome")
        if gpu_arch.is_gpu(name) and not cpu_targets.says_something(name):
            raise _problem(f"{short(value)} is a GPU", f'write "gpu_arch": "{name}"')
        try:
            if "platform" in info.data:
                cpu_targets.resolve(name, info.data["platform"])
            else:  # the platform was wrong: still say what else is
                cpu_targets.require_known(name)
        except cpu_targets.UnknownName as error:
            raise _problem(error.problem, error.hint) from None
        return name

    @field_validator(
        "container_engine", mode="before", json_schema_input_type=Engine | Literal["apptainer"]
    )
    @classmethod
    def _known_engine(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        name = value.strip(" ").lower()
        name = _ENGINE_ALIASES.get(name, name)
        if name not in ("docker", "singularity"):
            also = f": {name} runs images of a registry, as docker does"
            hint = "write docker or singularity" + (also if name in _ENGINES_OF_REGISTRIES else "")
            raise _problem(f"unknown container engine {short(value)}", hint)
        return name

    @field_validator("gpu_arch", mode="after")
    @classmethod
    def _gpu_arch_text(cls, value: str | None) -> str | None:
        return (
            value
            if value is None
            else _checked(value, _GPU_ARCH, "write an architecture such as sm_90 or gfx90a")
        )

    @property
    def target(self) -> cpu_targets.Target:
        """Return the archspec target that `architecture` names on `platform`."""
        return cpu_targets.resolve(self.architecture, self.platform)


class BuildRequest(Strict):
    """Describes one build: a machine, what is to be built, and how to build.

    That is a step of the workflow registry (`workflow` and `step_id`), what the request itself
    describes (`description`, or `packages` for short), a folder that its user has sent, or one of a
    git repository. Without `push`, the image is pushed if an image registry is configured.
    """

    machine: Machine
    workflow: FolderName | None = Field(default=None, examples=["minimal_workflow"])
    step_id: StepName | None = Field(default=None, examples=["wordcount"])
    description: OwnDescription | None = Field(
        default=None,
        examples=[{"spack": {"specs": ["hdf5+mpi"]}}],
        description="in place of workflow and step_id: what eflows4hpc.yaml would hold",
    )
    packages: OwnPackages | None = Field(
        default=None,
        examples=[["hdf5+mpi", "fftw"]],
        description="short for a description with these Spack specs",
    )
    folder: FolderDigest | None = Field(
        default=None,
        description="a folder that you have sent, by the hash that git gives it; workflow and "
        "step_id, or name, are what it is called",
    )
    repository: RepositoryUrl | None = Field(
        default=None,
        examples=["https://git.example.org/me/flows.git"],
        description="a git repository on a host that the site allows, with path and version",
    )
    name: OwnName | None = Field(
        default=None,
        examples=["solver"],
        description="what an own description or folder is called: a step, or a workflow and a step "
        "(flows/solver)",
    )
    version: Version = Field(
        default=LATEST, description="branch, tag or commit; latest is the default branch"
    )
    path: str | None = Field(
        default=None,
        description="with repository, a folder in it; else, for the library only, a local folder",
    )
    visibility: Visibility | None = Field(
        default=None,
        description="who may see the image: private, or site for everybody; without it, private "
        "for what the request describes itself",
    )
    from_lock: FromLock = Field(
        default=None,
        examples=["f1f4699b-9048-4ecc-aff3-1c689b855adc"],
        description="build again what was kept: a build's id, whose request need not be repeated, "
        "or a spack.lock to install in place of what Spack would decide now",
    )
    force: Flag = False
    push: Flag | None = None
    slim: Flag | None = None

    @field_validator("version", mode="before", json_schema_input_type=Version | Literal[""] | None)
    @classmethod
    def _no_version_is_latest(cls, value: Any) -> Any:
        return LATEST if value is None or value == "" else value

    @field_validator("force", mode="before", json_schema_input_type=Flag | None)
    @classmethod
    def _no_force_is_false(cls, value: Any) -> Any:
        return False if value is None else value

    @field_validator("path", mode="after")
    @classmethod
    def _path_text(cls, value: str | None) -> str | None:
        if value is not None and ("\0" in value or "\n" in value):
            raise _problem("is not a path", "write the path of a folder on this machine")
        return value or None

    @model_validator(mode="after")
    def _something_to_build(self) -> BuildRequest:
        """Refuse what `parsing` reports field by field; requests from elsewhere come here alone."""
        named = (self.workflow is not None) + (self.step_id is not None)
        sources = (self.is_described, self.folder is not None, self.repository is not None)
        if sum(sources) > 1 or (self.is_described and named):
            raise _problem("names not one thing to build", "name a step, or describe an image")
        if named == 1 or (not self.is_own and not named):
            raise _problem("names no step", "name workflow and step_id")
        return self

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return the fields as earlier versions knew them, and those of `NEWER` that are given.

        Of a lockfile there is the digest: it may be large, and the inputs hold it.
        """
        fields: dict[str, Any] = handler(self)
        if isinstance(fields.get("from_lock"), dict):
            fields["from_lock"] = lock_digest(fields["from_lock"])
        return {
            name: value for name, value in fields.items() if value is not None or name not in NEWER
        }

    def image_fields(self) -> dict[str, Any]:
        """Return the fields that decide what is built, without those that only say how or whence."""
        return self.model_dump(mode="json", exclude=set(HOW_AND_WHENCE), exclude_none=True)

    @property
    def is_own(self) -> bool:
        """Return whether the user brings what is built, in place of a registry's step."""
        return self.is_described or self.folder is not None or self.repository is not None

    @property
    def is_described(self) -> bool:
        """Return whether the request itself describes what is built."""
        return self.description is not None or self.packages is not None

    @property
    def is_private(self) -> bool:
        """Return whether the image is for its user alone, where users are known."""
        return self.visibility == "private" or (self.visibility is None and self.is_own)

    @property
    def workflow_name(self) -> str:
        """Return the workflow's name: the registry's folder, or that in the own `name`."""
        return self.workflow or (self.name or "").rpartition("/")[0] or OWN_WORKFLOW

    @property
    def step_name(self) -> str:
        """Return the step's name, which is a folder in the image, too."""
        return self.step_id or (self.name or "").rpartition("/")[2] or OWN_STEP

    @property
    def is_base(self) -> bool:
        """Return whether this asks for the base image itself."""
        return self.workflow == BASE and self.step_id == BASE and not self.is_own
