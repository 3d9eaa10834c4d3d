"""Which clouds there are."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .aws import Aws
from .frame import Provider

PROVIDERS: Mapping[str, type[Provider]] = MappingProxyType({"aws": Aws})
