"""Metadata servers. The frame (server.py) is common; a provider is one file here and one line below."""

from .client import Metadata, Record
from .providers import PROVIDERS

__all__ = ["PROVIDERS", "Metadata", "Record"]
