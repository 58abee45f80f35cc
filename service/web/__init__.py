"""Serve the pages for people, which offer what the REST API does, through the same functions."""

from service.web.site import install

__all__ = ["install"]
