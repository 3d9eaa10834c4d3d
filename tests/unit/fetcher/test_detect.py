"""Which cloud: by what the firmware says, or by Provider=."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from cloud_network.fetcher.config import Provider
from cloud_network.fetcher.metadata.detect import CLOUDS, DetectionError, detect, read_dmi
from cloud_network.fetcher.metadata.firmware import MATCHES
from cloud_network.fetcher.metadata.providers import gcp

from tests.unit.fetcher.metadata import Answer, Server

AZURE_TAG = "7783-7084-3265-9085-8269-3286-77"


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by a test, on whatever cloud it runs: a port of loopback where nobody listens."""
    for cloud in CLOUDS:
        module = import_module(f"cloud_network.fetcher.metadata.providers.{cloud}")
        if hasattr(module, "probe"):
            monkeypatch.setattr(module, "ENDPOINT", "127.0.0.1:9")


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
    assert dmi or "by the firmware (/sys/class/dmi/id has none of its fields) and by the signs" in text


def test_the_configuration_overrides_the_firmware() -> None:
    assert detect(Provider.AWS, {"sys_vendor": "QEMU"}).name == "aws"


@pytest.mark.parametrize("cloud", CLOUDS)
def test_every_cloud_keeps_the_shape(cloud: str) -> None:
    found = detect(Provider(cloud), {})
    assert found.name == cloud
    module = import_module(f"cloud_network.fetcher.metadata.providers.{cloud}")
    assert found.client.endpoint == module.ENDPOINT
    assert not MATCHES[cloud]({})
    assert not MATCHES[cloud]({"sys_vendor": "QEMU", "product_name": "Standard PC (Q35 + ICH9, 2009)"})
    assert re.search(r"\w\.(com|org|net|io|cloud)/\w", module.__doc__ or ""), "it names its cloud's documentation"


def test_the_unit_lets_the_fetcher_reach_every_metadata_server_and_nobody_else() -> None:
    unit = Path(__file__).parents[3] / "systemd/system/cloud-network-fetcher.service"
    [allowed] = [line for line in unit.read_text().splitlines() if line.startswith("IPAddressAllow=")]
    modules = [import_module(f"cloud_network.fetcher.metadata.providers.{cloud}") for cloud in CLOUDS]
    servers = {getattr(module, name).strip("[]") for module in modules for name in vars(module) if "ENDPOINT" in name}
    assert set(allowed.partition("=")[2].split()) == servers - {"127.0.0.1:9"} | {"169.254.169.254"}


def test_every_choice_of_the_configuration_is_a_cloud_and_the_other_way_round() -> None:
    assert set(CLOUDS) == set(MATCHES) == {choice.value for choice in Provider} - {"auto"}


@pytest.mark.parametrize(
    ("dmi", "cloud"),
    [
        ({"sys_vendor": "Microsoft Corporation", "chassis_asset_tag": AZURE_TAG}, "azure"),
        ({"sys_vendor": "Google", "product_name": "Google Compute Engine"}, "gcp"),
        ({"sys_vendor": "Xen", "hypervisor_uuid": "ec2e1916-9099-7caf-fd21-012345abcdef"}, "aws"),
    ],
)
def test_clouds_are_told_by_their_firmware(dmi: dict[str, str], cloud: str) -> None:
    assert detect(Provider.AUTO, dmi).name == cloud


def test_two_clouds_are_one_too_many() -> None:
    both = {"sys_vendor": "Amazon EC2", "product_name": "Google Compute Engine"}
    with pytest.raises(DetectionError, match="more than one cloud: aws, gcp by sys_vendor="):
        detect(Provider.AUTO, both)


@pytest.mark.parametrize(("header", "known"), [("Google", True), ("Other", False)])
def test_where_the_firmware_is_silent_the_servers_sign_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, header: str, known: bool
) -> None:
    server = Server(lambda _: Answer(200, "", {"Metadata-Flavor": header}))
    monkeypatch.setattr(gcp, "ENDPOINT", server.client.endpoint)
    if known:
        assert detect(Provider.AUTO, {}).name == "gcp"
    else:
        with pytest.raises(DetectionError, match=r"and by the signs of the metadata servers of .*gcp"):
            detect(Provider.AUTO, {})
    assert detect(Provider.AUTO, {"sys_vendor": "Amazon EC2"}).name == "aws"
    assert len(server.asked) == 1  # where the firmware speaks nobody is asked
    server.close()


@pytest.mark.parametrize("arguments", ["P.AZURE, {}", "P.AUTO, {'chassis_asset_tag': '" + AZURE_TAG + "'}"])
def test_only_the_cloud_that_it_is_is_loaded(arguments: str) -> None:
    code = "from cloud_network.fetcher.metadata.detect import detect; "
    code += "from cloud_network.fetcher.config import Provider as P; "
    code += f"import sys; detect({arguments}); print([m for m in sys.modules if m.startswith(%r)])"
    prefix = "cloud_network.fetcher.metadata.providers."
    shown = subprocess.run([sys.executable, "-c", code % prefix], capture_output=True, text=True, check=True).stdout
    assert "azure" in shown
    assert "gcp" not in shown
    assert "aws" not in shown


def test_fields_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "sys_vendor").write_text("Amazon EC2\n")
    (tmp_path / "product_name").write_bytes(b"\xff\n")
    (tmp_path / "bios_version").mkdir()
    nowhere = tmp_path / "none"
    assert read_dmi(tmp_path, nowhere) == {"sys_vendor": "Amazon EC2", "product_name": "\ufffd"}
    (tmp_path / "uuid").write_text("ec2e1916\n")
    assert read_dmi(nowhere, tmp_path / "uuid") == {"hypervisor_uuid": "ec2e1916"}


def test_what_a_cloud_looks_at_is_read(tmp_path: Path) -> None:
    """IBM's second sign, and whatever `firmware` of any cloud asks for."""
    asked = set[str]()

    class Asking(dict[str, str]):
        def get(self, key: str, default: str = "") -> str:  # type: ignore[override]
            asked.add(key)
            return default

    for cloud in CLOUDS:
        MATCHES[cloud](Asking())
    for name in asked:
        (tmp_path / name).write_text(f"{name}\n")
    assert "chassis_vendor" in asked
    assert read_dmi(tmp_path, tmp_path / "hypervisor_uuid").keys() == asked
    assert detect(Provider.AUTO, {"chassis_vendor": "IBM:Cloud Compute Server 1.0:bx2-2x8"}).name == "ibm"
