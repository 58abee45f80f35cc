"""The pages for people. They offer what the REST API offers, through the same functions."""

from service.web.site import install

__all__ = ["install"]
