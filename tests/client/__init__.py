"""The Python client and the command `cic`, against the service."""
