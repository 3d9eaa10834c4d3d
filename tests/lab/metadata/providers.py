"""Which clouds there are."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .alibaba import Alibaba
from .aws import Aws
from .azure import Azure
from .frame import Provider
from .gcp import Gcp
from .oracle import Oracle

PROVIDERS: Mapping[str, type[Provider]] = MappingProxyType(
    {
        "alibaba": Alibaba,
        "aws": Aws,
        "azure": Azure,
        "gcp": Gcp,
        "oracle": Oracle,
    }
)
