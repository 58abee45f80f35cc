"""Loads the operator's settings: a Python file, overridden from the environment."""

from config.loading import ConfigError, load_library_settings, load_settings
from config.settings import ServiceSettings, Settings

__all__ = ["ConfigError", "ServiceSettings", "Settings", "load_library_settings", "load_settings"]
