"""State the version of this package: its metadata, `cic --version` and what servers are told take it from here."""

VERSION = "1.0.0"
