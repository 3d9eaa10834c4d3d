"""Metadata servers. The server (server.py) is common; a provider is one module here and one line in providers.py."""

from .client import Metadata, Record
from .providers import PROVIDERS

__all__ = ["PROVIDERS", "Metadata", "Record"]
