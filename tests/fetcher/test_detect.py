"""Which cloud: by what the firmware says, or by Provider=."""

from __future__ import annotations

from pathlib import Path

import pytest
from cloud_network.fetcher.config import Provider
from cloud_network.fetcher.detect import DetectionError, detect, read_dmi


@pytest.mark.parametrize(
    "dmi",
    [{"sys_vendor": "Amazon EC2", "product_name": "m7i.large"}, {"sys_vendor": "Xen", "bios_version": "4.11.amazon"}],
)
def test_ec2_is_known_by_its_vendor_or_its_xen_bios(dmi: dict[str, str]) -> None:
    assert detect(Provider.AUTO, dmi).name == "aws"


@pytest.mark.parametrize("dmi", [{}, {"sys_vendor": "QEMU", "bios_version": "1.16"}, {"sys_vendor": "Amazon"}])
def test_an_unknown_machine_is_named_with_what_was_seen_and_what_to_set(dmi: dict[str, str]) -> None:
    with pytest.raises(DetectionError) as caught:
        detect(Provider.AUTO, dmi)
    text = str(caught.value)
    assert "no known cloud" in text
    assert "Provider=" in text
    assert "supported: aws" in text
    assert all(f"{key}={value!r}" in text for key, value in dmi.items())


def test_the_configuration_overrides_the_firmware() -> None:
    assert detect(Provider.AWS, {"sys_vendor": "QEMU"}).name == "aws"


def test_a_cloud_that_is_not_supported_yet_is_named() -> None:
    with pytest.raises(DetectionError, match=r'Provider="vultr" is not supported yet; supported: aws'):
        detect(Provider.VULTR, {})


def test_fields_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "sys_vendor").write_text("Amazon EC2\n")
    (tmp_path / "product_name").write_bytes(b"\xff\n")
    (tmp_path / "bios_version").mkdir()
    assert read_dmi(tmp_path) == {"sys_vendor": "Amazon EC2", "product_name": "\ufffd"}
    assert read_dmi(tmp_path / "none") == {}
