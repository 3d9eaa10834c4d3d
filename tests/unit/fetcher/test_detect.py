"""Detection of the cloud by firmware, or by Provider=."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from cloud_network.fetcher.config import Provider
from cloud_network.fetcher.metadata.detect import CLOUDS, DetectionError, detect, load, read_firmware
from cloud_network.fetcher.metadata.providers.aws import Aws
from cloud_network.fetcher.metadata.providers.gcp import Gcp

from tests.lab import Interface
from tests.lab.metadata.in_process import InProcess
from tests.unit.fetcher.metadata import Answer, Server

AZURE_TAG = "7783-7084-3265-9085-8269-3286-77"
NO_ENDPOINT = ("127.0.0.1:9",)
EC2_UUID = "ec2e1916-9099-7caf-fd21-012345abcdef"


@pytest.fixture(autouse=True)
def no_metadata_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the metadata clients to a closed port of loopback: a test must not depend on the cloud that it runs on."""
    for provider in (Aws, Gcp):
        monkeypatch.setattr(provider, "endpoints", NO_ENDPOINT)


def is_here(cloud: str, **firmware: str) -> bool:
    return CLOUDS[cloud].is_here(firmware)


@pytest.mark.parametrize(
    "dmi",
    [{"sys_vendor": "Amazon EC2", "product_name": "m7i.large"}, {"sys_vendor": "Xen", "bios_version": "4.11.amazon"}],
)
def test_ec2_is_known_by_its_vendor_or_bios(dmi: dict[str, str]) -> None:
    assert detect(Provider.AUTO, dmi).name == "aws"


@pytest.mark.parametrize("dmi", [{}, {"sys_vendor": "QEMU", "bios_version": "1.16"}, {"sys_vendor": "Amazon"}])
def test_unknown_machine_is_an_error_with_the_key(dmi: dict[str, str]) -> None:
    with pytest.raises(DetectionError) as caught:
        detect(Provider.AUTO, dmi)
    text = str(caught.value)
    assert "no supported cloud detected" in text
    assert "Provider=" in text
    assert "supported: alibaba, aws" in text
    assert all(f"{key}={value!r}" in text for key, value in dmi.items())
    assert dmi or "by the firmware (/sys/class/dmi/id has none of its fields) and by asking" in text


def test_configuration_overrides_the_firmware() -> None:
    assert detect(Provider.AWS, {"sys_vendor": "QEMU"}).name == "aws"


@pytest.mark.parametrize("cloud", CLOUDS)
def test_every_cloud_has_its_provider_and_documentation(cloud: str) -> None:
    found = detect(Provider(cloud), {})
    assert found.name == cloud
    assert found.client.endpoint == found.endpoints[0]
    assert not is_here(cloud)
    assert not is_here(cloud, sys_vendor="QEMU", product_name="Standard PC (Q35 + ICH9, 2009)")
    text = sys.modules[type(found).__module__].__doc__ or ""
    assert re.search(r"\w\.(com|org|net|io|cloud)/\w", text), "the docstring has the URL of the documentation"


def test_unit_lets_the_fetcher_reach_every_metadata_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    unit = Path(__file__).parents[3] / "systemd/system/cloud-network-fetcher.service"
    [allowed] = [line for line in unit.read_text().splitlines() if line.startswith("IPAddressAllow=")]
    servers = {endpoint.strip("[]") for cloud in CLOUDS for endpoint in type(load(cloud)).endpoints}
    assert set(allowed.partition("=")[2].split()) == servers


def test_every_choice_of_the_configuration_is_a_cloud() -> None:
    assert set(CLOUDS) == {choice.value for choice in Provider} - {"auto"}


@pytest.mark.parametrize(
    ("dmi", "cloud"),
    [
        ({"sys_vendor": "Microsoft Corporation", "chassis_asset_tag": AZURE_TAG}, "azure"),
        ({"sys_vendor": "Google", "product_name": "Google Compute Engine"}, "gcp"),
        ({"product_uuid": EC2_UUID.upper(), "product_serial": EC2_UUID}, "aws"),
        ({"product_serial": "GoogleCloud-0123456789ABCDEF"}, "gcp"),
        ({"sys_vendor": "Microsoft Corporation", "kernel_command_line": "quiet vultr"}, "vultr"),
        ({"/etc/vultr": ""}, "vultr"),
        ({"kernel_command_line": "initrd=initrd scaleway nousb"}, "scaleway"),
        ({"/run/scaleway": ""}, "scaleway"),
        ({"sys_vendor": "Scaleway"}, "scaleway"),
        ({"sys_vendor": "Vultr"}, "vultr"),
        ({"sys_vendor": "Hetzner", "product_name": "vServer"}, "hetzner"),
        ({"sys_vendor": "DigitalOcean"}, "digitalocean"),
        ({"sys_vendor": "Tencent Cloud", "product_name": "CVM"}, "tencent"),
        ({"product_name": "Alibaba Cloud ECS"}, "alibaba"),
        ({"chassis_asset_tag": "OracleCloud.com", "sys_vendor": "QEMU"}, "oracle"),
        ({"chassis_asset_tag": "ibmcloud"}, "ibm"),
        ({"sys_vendor": "IBM:Cloud Compute Server 1.0:cx2-2x4"}, "ibm"),
        ({"chassis_vendor": "IBM:Cloud Compute Server 1.0:bx2-2x8"}, "ibm"),
        ({"product_name": "OpenStack Nova"}, "openstack"),
        ({"product_name": "OpenStack Compute"}, "openstack"),
        ({"chassis_asset_tag": "HUAWEICLOUD"}, "openstack"),
    ],
)
def test_clouds_are_known_by_their_firmware(dmi: dict[str, str], cloud: str) -> None:
    assert detect(Provider.AUTO, dmi).name == cloud


@pytest.mark.parametrize(
    "firmware",
    [
        {"sys_vendor": "Microsoft Corporation", "product_name": "Virtual Machine"},
        {"sys_vendor": "Oracle Corporation", "product_name": "VirtualBox"},
        {"sys_vendor": "Xen", "hypervisor_uuid": EC2_UUID},
        {"product_uuid": EC2_UUID, "product_serial": "other"},
        {"kernel_command_line": "root=/dev/vda1 scaleway.example vultr0"},
        {"product_name": "DigitalOcean"},
        {"sys_vendor": "IBM"},
        {"sys_vendor": "Alibaba Cloud"},
    ],
)
def test_similar_firmware_is_no_cloud(firmware: dict[str, str]) -> None:
    with pytest.raises(DetectionError, match="no supported cloud detected"):
        detect(Provider.AUTO, firmware)


def test_xen_uuid_needs_an_answer_of_ec2s_server(monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = InProcess("aws")
    cloud.load(Interface("10.0.1.0/24"))
    monkeypatch.setattr(Aws, "endpoints", (cloud.endpoint,))
    assert detect(Provider.AUTO, {"sys_vendor": "Xen", "hypervisor_uuid": EC2_UUID}).name == "aws"
    cloud.close()


def test_two_fitting_clouds_are_an_error() -> None:
    both = {"sys_vendor": "Amazon EC2", "product_name": "Google Compute Engine"}
    with pytest.raises(DetectionError, match=r"more than one cloud detected \(aws, gcp\) by sys_vendor="):
        detect(Provider.AUTO, both)


@pytest.mark.parametrize(("header", "known"), [("Google", True), ("Other", False)])
def test_server_header_identifies_a_cloud_without_firmware(
    monkeypatch: pytest.MonkeyPatch, header: str, known: bool
) -> None:
    server = Server(lambda _: Answer(200, "", {"Metadata-Flavor": header}))
    monkeypatch.setattr(Gcp, "endpoints", (server.client.endpoint,))
    if known:
        assert detect(Provider.AUTO, {}).name == "gcp"
    else:
        with pytest.raises(DetectionError, match=r"and by asking the metadata servers of .*gcp"):
            detect(Provider.AUTO, {})
    assert detect(Provider.AUTO, {"sys_vendor": "Amazon EC2"}).name == "aws"
    assert len(server.asked) == 1  # none if the firmware is sufficient
    server.close()


@pytest.mark.parametrize("arguments", ["P.AZURE, {}", "P.AUTO, {'chassis_asset_tag': '" + AZURE_TAG + "'}"])
def test_only_the_detected_cloud_is_imported(arguments: str) -> None:
    code = "from cloud_network.fetcher.metadata.detect import detect; "
    code += "from cloud_network.fetcher.config import Provider as P; "
    code += f"import sys; detect({arguments}); print([m for m in sys.modules if m.startswith(%r)])"
    prefix = "cloud_network.fetcher.metadata.providers."
    shown = subprocess.run([sys.executable, "-c", code % prefix], capture_output=True, text=True, check=True).stdout
    assert "azure" in shown
    assert "gcp" not in shown
    assert "aws" not in shown


def test_unreadable_fields_are_left_out(tmp_path: Path) -> None:
    dmi = tmp_path / "sys/class/dmi/id"
    dmi.mkdir(parents=True)
    (dmi / "sys_vendor").write_text("Amazon EC2\n")
    (dmi / "product_name").write_bytes(b"\xff\n")
    (dmi / "bios_version").mkdir()
    assert read_firmware(tmp_path) == {"sys_vendor": "Amazon EC2", "product_name": "\ufffd"}


def test_directories_and_files_of_the_host_are_read(tmp_path: Path) -> None:
    for directory in ("sys/hypervisor", "proc", "etc/vultr", "run"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "sys/hypervisor/uuid").write_text("ec2e1916\n")
    (tmp_path / "proc/cmdline").write_text("quiet scaleway\n")
    (tmp_path / "run/scaleway").write_text("not a directory")
    assert read_firmware(tmp_path) == {
        "hypervisor_uuid": "ec2e1916",
        "kernel_command_line": "quiet scaleway",
        "/etc/vultr": "",
    }


def test_credentials_take_the_place_of_unreadable_files(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    (tmp_path / "proc").mkdir()
    credentials.mkdir()
    (tmp_path / "proc/cmdline").write_text("quiet")
    (credentials / "kernel_command_line").write_text("quiet scaleway\n")
    (credentials / "product_uuid").write_text(f"{EC2_UUID}\n")
    (credentials / "sys_vendor").write_text("Amazon EC2")
    assert read_firmware(tmp_path, credentials) == {
        "kernel_command_line": "quiet scaleway",
        "product_uuid": EC2_UUID,
    }


def test_every_field_that_a_cloud_looks_at_is_read(tmp_path: Path) -> None:
    asked = set[str]()

    class Asking(dict[str, str]):
        def get(self, key: str, default: str = "") -> str:  # type: ignore[override]
            asked.add(key)
            return default

        def __contains__(self, key: object) -> bool:
            asked.add(str(key))
            return False

    for cloud in CLOUDS.values():
        cloud.is_here(Asking())
        cloud.may_be_here(Asking())
    for name in ("sys/class/dmi/id", "sys/hypervisor", "proc", "etc/vultr", "run/scaleway"):
        (tmp_path / name).mkdir(parents=True)
    for name in asked:
        (tmp_path / "sys/class/dmi/id" / name.strip("/").replace("/", "_")).write_text("x")
    (tmp_path / "sys/hypervisor/uuid").write_text("x")
    (tmp_path / "proc/cmdline").write_text("x")
    assert asked <= read_firmware(tmp_path).keys()
