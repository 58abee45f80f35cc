"""Why an image build failed, read from its log. (Being written.)"""
import dataclasses
from collections.abc import Sequence
from image_builder.errors import ErrorCode

@dataclasses.dataclass(frozen=True, kw_only=True)
class Cause:
    code: ErrorCode
    package: str = ""
    step: str = ""
    message: str = ""
    excerpt: tuple[str, ...] = ()

def classify(lines: Sequence[str], *, step: str) -> Cause:
    return Cause(code=ErrorCode.BUILD_STEP_FAILED, step=step, message="A step of the image build failed.", excerpt=tuple(lines[-15:]))
