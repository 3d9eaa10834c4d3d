"""netagent and the fetcher read the same file, with one table of keys, and must get the same values."""

from __future__ import annotations

import os
import re
from ipaddress import ip_address
from pathlib import Path

import pytest
from cloud_network.fetcher import config
from cloud_network.netagent import claims, settings
from cloud_network.netagent.keys import MAX_BYTES
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

plain = st.text(st.sampled_from("abcz09 ./:-_#=[]'\"é\t"), max_size=12)
quoted = st.one_of(plain.map(lambda text: f'"{text}"'), plain.map(lambda text: f"'{text}'"))
number = st.one_of(
    st.integers(0, 10**10).map(str), st.sampled_from(["0x1f", "1_000", "007", "-3", "+1", "1.0", "true"])
)
VALUES = [
    *('"veth"', "'veth bridge'", '"10.9.0.0/16 fd01::/48"', '"refuse"', "'continue'", "12000", '"12000"', '""'),
    *('"mark"', '"off"', "0x7f", '"0xff00"', '"0x101"', '"1"', '"0x4"'),
    *('"203.0.113.0/255.255.255.0"', '"10.0.0.1/8"', '"eth1,eth2"', '"a\\\\b"', '"""eth1"""', '"eth1\\u0020eth2"'),
    *(
        '"1h30m"',
        '"0.5s"',
        '"10m"',
        '"601s"',
        '"µs"',
        '"[::1]:5209"',
        '"10.0.0.1:70000"',
        '"1.2.3:80"',
        '"aws"',
        '"all"',
    ),
    *('"never"', '"on-stop"', '"local"', '"original"', '"TEXT"', '"Warn"', '"eth0/1"', '"interface-too-long"'),
    *('"eni* ens[6-9]"', '"02:0A:00:00:00:01"', '"!eth0"', '"eth1+"', '"02:00:00"', '"[!e]*"'),
]
words = st.sampled_from(VALUES)
comment = st.sampled_from(["", " # yes", "#", '\t# "', " x"])
ALL_KEYS = [(section, key) for section, keys in config.KEYS.items() for key in keys]
keys = st.sampled_from([*(key for _, key in ALL_KEYS), '"Exclude"', "Network.Exclude", "Other", "exclude"])
assignment = st.builds(
    lambda key, gap, value, rest: f"{key}{gap}{value}{rest}",
    keys,
    st.sampled_from([" = ", "=", "\t=\t", " ", " == "]),
    st.one_of(words, words, quoted, number),
    comment,
)
headers = ["[Network]", "[ Network ]", '["Network"]', "[Netagent]", "[System] # x", "[Other", "[[Network]]", "", "# x"]
line = st.one_of(assignment, st.sampled_from(headers))
content = st.builds(lambda end, lines: end.join(lines), st.sampled_from(["\n", "\r\n"]), st.lists(line, max_size=8))


def both(path: Path) -> tuple[settings.Settings | None, config.Config | None]:
    """Return the values for netagent and for the fetcher; None for a refused file."""
    try:
        own_settings = settings.load(path)
    except settings.SettingsError:
        own_settings = None
    try:
        fetcher_config = config.load(path, {})
    except config.ConfigError:
        fetcher_config = None
    return own_settings, fetcher_config


def assert_same(own_settings: settings.Settings, fetcher_config: config.Config) -> None:
    assert (own_settings.route_table_base, own_settings.rule_priority) == (
        fetcher_config.route_table_base,
        fetcher_config.rule_priority,
    )
    assert (own_settings.exclude, own_settings.allow_kinds) == (fetcher_config.exclude, fetcher_config.allow_kinds)
    assert claims.PRIVATE + own_settings.allow_addresses == fetcher_config.allow_addresses
    assert (own_settings.allow_gateways, own_settings.max_objects) == (
        fetcher_config.allow_gateways,
        fetcher_config.max_objects,
    )
    assert (own_settings.mark_mask, own_settings.forwarded_replies) == (
        fetcher_config.mark_mask,
        fetcher_config.forwarded_replies,
    )
    assert own_settings.audit_failure == fetcher_config.audit_failure


@given(content=content)
@profile(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_file_means_the_same_to_both(tmp_path: Path, content: str) -> None:
    path = tmp_path / "cloud-network.toml"
    path.write_bytes(content.encode())
    own_settings, fetcher_config = both(path)
    assert (own_settings is None) == (fetcher_config is None), "one of them refuses a file that the other accepts"
    if own_settings is not None and fetcher_config is not None:
        assert_same(own_settings, fetcher_config)


CHOICES = {
    f'"{word}"'
    for keys in config.KEYS.values()
    for key in keys.values()
    for word in re.findall("[a-z-]+", key.accepted)
}
LIMITS = ["0", "1", "255", "256", "1000000000", "1000000001", "32736", "32737", "65536", "65537"]
LIMITS += ['"999ms"', '"1s"', '"10m"', '"10m1ns"', '"2500000h"', '"2500001h"', '"[::1]:65535"', '"[::1]:65536"']


@pytest.mark.parametrize(("section", "key"), ALL_KEYS)
def test_both_accept_the_same_values_of_every_key(tmp_path: Path, section: str, key: str) -> None:
    path = tmp_path / "cloud-network.toml"
    for value in {*VALUES, *CHOICES, *LIMITS}:
        path.write_text(f"[{section}]\n{key} = {value}\n")
        own_settings, fetcher_config = both(path)
        assert (own_settings is None) == (fetcher_config is None), value


@pytest.mark.parametrize(
    "text",
    [
        '[ Network ]\nExclude = "eth1"',
        '["Network"]\nExclude = "eth1"',
        '[Network]\n"Exclude" = "eth1"',
        'Network.Exclude = "eth1"',
        'Network = {Exclude = "eth1"}',
        '[Network]\nExclude = """eth1"""',
        '[Network]\nExclude = "eth\\u0031"',
    ],
)
def test_every_spelling_of_exclude_is_obeyed(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cloud-network.toml"
    path.write_text(text)
    assert settings.load(path).exclude == ("eth1",)


@pytest.mark.parametrize(
    "text",
    ['[Network]\rExclude = "eth1"', '[Netwrok]\nExclude = "eth1"', '[Network]\nexclude = "eth1"', 'Exclude = "eth1"'],
)
def test_a_misspelled_exclude_is_not_ignored(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cloud-network.toml"
    path.write_bytes(text.encode())
    with pytest.raises(settings.SettingsError, match=r"cloud-network\.toml: "):
        settings.load(path)


@pytest.mark.parametrize(
    ("section", "key"), [("Network", "Exclude"), ("System", "LogLevel"), ("Netagent", "MaxObjects")]
)
def test_wrong_case_is_an_error_with_the_right_spelling(tmp_path: Path, section: str, key: str) -> None:
    path = tmp_path / "cloud-network.toml"
    path.write_text(f'[{section}]\n{key.lower()} = "1"\n')
    for load, error in ((settings.load, settings.SettingsError), (config.load, config.ConfigError)):
        with pytest.raises(error, match=f"keys are case-sensitive; accepted: {key}"):
            load(path)


def test_originals_keys_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "cloud-network.toml"
    path.write_text("[Network]\n" + "".join(f"{key} = true\n" for key in config.OBSOLETE["Network"]))
    assert settings.load(path) == settings.Settings()


def test_a_netmask_and_an_escaped_backslash_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "cloud-network.toml"
    path.write_text('[Netagent]\nAllowAddresses = "203.0.113.0/255.255.255.0"\n[Network]\nExclude = "a\\\\b"')
    found = settings.load(path)
    assert [str(each) for each in found.allow_addresses] == ["203.0.113.0/24"]
    assert found.exclude == ("a\\b",)


def test_the_defaults_are_the_fetchers(tmp_path: Path) -> None:
    own_settings, fetcher_config = both(tmp_path / "none")
    assert own_settings is not None
    assert fetcher_config is not None
    assert_same(own_settings, fetcher_config)


def test_name_servers_are_read_as_the_resolver_reads_them(tmp_path: Path) -> None:
    """inet_aton(3) accepts fewer numbers, and other bases; the resolver queries a mapped address over IPv4."""
    file = tmp_path / "resolv.conf"
    forms = ("10.1026", "0x0a000403", "::ffff:10.0.4.4", "fe80::1%eth0", "10.0.4.5#x", "[fd00::1]")
    file.write_text("".join(f"nameserver {form}\n" for form in forms))
    found, _ = settings.resolvers((file,))
    assert sorted(map(str, found)) == ["10.0.4.2", "10.0.4.3", "10.0.4.4", "fe80::1"]


def test_resolvers_are_read_from_every_file(tmp_path: Path) -> None:
    stub, real = tmp_path / "resolv.conf", tmp_path / "real"
    servers = ["127.0.0.53", "none", "", "fe80::1%eth0", "fd00::53 # x"]
    stub.write_text("search example\n" + "".join(f"nameserver {server}\n" for server in servers))
    real.write_text("nameserver 10.0.0.2\n")
    expected = {ip_address(text) for text in ("127.0.0.53", "fe80::1", "fd00::53", "10.0.0.2")}
    assert settings.resolvers((stub, real, tmp_path / "none")) == (expected, ())


def test_a_resolver_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    fifo, directory, large = tmp_path / "fifo", tmp_path / "directory", tmp_path / "large"
    readable = tmp_path / "resolv.conf"
    os.mkfifo(fifo)
    directory.mkdir()
    large.write_text("#\n" * MAX_BYTES)
    readable.write_text("nameserver 10.0.4.2\0 x\n")
    found, warnings = settings.resolvers((fifo, directory, large, tmp_path / "none", readable))
    assert found == {ip_address("10.0.4.2")}
    assert [each.partition(":")[0] for each in warnings] == [str(fifo), str(directory), str(large)]
