"""Which cloud this is, by what the firmware says; Provider= overrides.

Source: /sys/class/dmi/id of the kernel's dmi-id driver (drivers/firmware/dmi-id.c) and /sys/hypervisor/uuid of Xen's;
`firmware` knows what stands there on each cloud. Where it says nothing, some clouds document a sign of their metadata
server that no other has: `probe` looks for it.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

from cloud_network.fetcher.config import Provider as Choice
from cloud_network.fetcher.metadata.firmware import MATCHES
from cloud_network.fetcher.metadata.providers import Provider

DMI, HYPERVISOR = Path("/sys/class/dmi/id"), Path("/sys/hypervisor/uuid")
_FIELDS = (
    *("sys_vendor", "product_name", "product_version", "bios_vendor", "bios_version"),
    *("chassis_vendor", "chassis_asset_tag"),
)
_PACKAGE = "cloud_network.fetcher.metadata.providers."

CLOUDS = tuple(choice.value for choice in Choice if choice is not Choice.AUTO)
"""Modules of `providers`: the class in each is named like it, with a capital."""


class DetectionError(Exception):
    """No cloud, or more than one, fits what was seen; the text says what that was and what to set."""


def read_dmi(directory: Path = DMI, hypervisor: Path = HYPERVISOR) -> dict[str, str]:
    """The fields that every user may read; absent ones are left out."""
    found = {}
    for name, path in [*((name, directory / name) for name in _FIELDS), ("hypervisor_uuid", hypervisor)]:
        try:
            found[name] = path.read_text(errors="replace").strip()
        except OSError:
            continue
    return found


def detect(choice: Choice, dmi: dict[str, str]) -> Provider:
    """The provider that Provider= names, or the one that the firmware does, or the one whose server shows its sign."""
    if choice is not Choice.AUTO:
        return _provider(_module(choice.value))
    fitting = [_module(name) for name in CLOUDS if MATCHES[name](dmi)]
    probed = [module for module in map(_module, CLOUDS) if hasattr(module, "probe")] if not fitting else []
    fitting = fitting or [module for module in probed if module.probe()]
    if len(fitting) == 1:
        return _provider(fitting[0])
    seen = (
        ", ".join(f"{name}={value!r}" for name, value in dmi.items()) or f"the firmware ({DMI} has none of its fields)"
    )
    if probed:
        names = ", ".join(module.NAME for module in probed)
        seen += f" and by the signs of the metadata servers of {names}"
    which = "no known cloud" if not fitting else "more than one cloud: " + ", ".join(each.NAME for each in fitting)
    known = ", ".join(CLOUDS)
    raise DetectionError(f"{which} by {seen}. Set [Network] Provider= in the configuration; supported: {known}")


def _module(name: str) -> ModuleType:
    return import_module(_PACKAGE + name)


def _provider(module: ModuleType) -> Provider:
    made: Provider = getattr(module, module.NAME.capitalize())()
    return made
