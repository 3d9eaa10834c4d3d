"""Which cloud this is, by what the firmware says; Provider= overrides.

Source: /sys/class/dmi/id of the kernel's dmi-id driver (drivers/firmware/dmi-id.c); each provider's module names the
page of its cloud that says what stands there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cloud_network.fetcher.config import Provider as Choice
from cloud_network.fetcher.providers import Provider, aws

DMI = Path("/sys/class/dmi/id")
_FIELDS = ("sys_vendor", "product_name", "product_version", "bios_vendor", "bios_version", "chassis_asset_tag")

_PROVIDERS: dict[str, tuple[Callable[[dict[str, str]], bool], Callable[[], Provider]]] = {
    aws.NAME: (aws.matches, aws.Aws),
}


class DetectionError(Exception):
    """No cloud, or more than one, fits what was seen; the text says what that was and what to set."""


def read_dmi(directory: Path = DMI) -> dict[str, str]:
    """The fields that every user may read; absent ones are left out."""
    found = {}
    for name in _FIELDS:
        try:
            found[name] = (directory / name).read_text(errors="replace").strip()
        except OSError:
            continue
    return found


def detect(choice: Choice, dmi: dict[str, str]) -> Provider:
    """The provider that Provider= names, or the one that the firmware does."""
    supported = ", ".join(_PROVIDERS)
    if choice is not Choice.AUTO:
        if choice.value not in _PROVIDERS:
            raise DetectionError(f'Provider="{choice.value}" is not supported yet; supported: {supported}')
        return _PROVIDERS[choice.value][1]()
    fitting = [name for name, (matches, _) in _PROVIDERS.items() if matches(dmi)]
    if len(fitting) == 1:
        return _PROVIDERS[fitting[0]][1]()
    seen = ", ".join(f"{name}={value!r}" for name, value in dmi.items()) or f"nothing in {DMI}"
    which = "no known cloud" if not fitting else "more than one cloud: " + ", ".join(fitting)
    raise DetectionError(f"{which} by {seen}. Set [Network] Provider= in the configuration; supported: {supported}")
