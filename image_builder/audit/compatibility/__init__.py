"""Tells whether an image runs on a machine, from what is known of both and rules with sources.

Pure.
"""

from image_builder.audit.compatibility.report import Report, check
from image_builder.audit.compatibility.rules import Finding

__all__ = ["Finding", "Report", "check"]
