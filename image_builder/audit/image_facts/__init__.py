"""Reads from an image's files how its programs start, communicate and use GPUs.

None of the image's programs runs: files are read as bytes, within bounds of size and time.
"""

from image_builder.audit.image_facts.collect import Collector
from image_builder.audit.image_facts.facts import ImageFacts

__all__ = ["Collector", "ImageFacts"]
