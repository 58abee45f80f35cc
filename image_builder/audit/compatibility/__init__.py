"""Will an image run on a machine? What is known of both, and rules with their sources. Pure."""

from image_builder.audit.compatibility.report import Report, check
from image_builder.audit.compatibility.rules import Finding

__all__ = ["Finding", "Report", "check"]
