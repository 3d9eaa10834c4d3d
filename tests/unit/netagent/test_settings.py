"""netagent reads the operator's file with a few lines of its own: held against the fetcher's reader and tomllib."""

from __future__ import annotations

import tomllib
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from cloud_network.fetcher import config, keyfile
from cloud_network.netagent import settings
from cloud_network.netagent.policy import ALLOWED, parse_network
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

plain = st.text(st.sampled_from("abcz09 ./:-_#=[]'\"é\t"), max_size=12)
quoted = st.one_of(plain.map(lambda text: f'"{text}"'), plain.map(lambda text: f"'{text}'"))
number = st.one_of(
    st.integers(0, 10**10).map(str), st.sampled_from(["0x1f", "1_000", "007", "-3", "+1", "1.0", "true"])
)
words = st.sampled_from(
    ['"veth"', "'veth bridge'", '"10.9.0.0/16 fd01::/48"', '"refuse"', "'continue'", "12000", '"12000"', '""']
)
comment = st.sampled_from(["", " # yes", "#", '\t# "', " x"])
keys = st.sampled_from(
    [*("AllowKinds", "AllowAddresses", "AuditFailure", "RouteTableBase", "RulePriority", "Exclude", "Listen"), "Other"]
)
assignment = st.builds(
    lambda key, gap, value, rest: f"{key}{gap}{value}{rest}",
    keys,
    st.sampled_from([" = ", "=", "\t=\t", " ", " == "]),
    st.one_of(words, words, quoted, number),
    comment,
)
line = st.one_of(
    assignment, st.sampled_from(["[Network]", "[Netagent]", "[System] # x", "[Other", "[[Network]]", "", "# x"])
)
content = st.lists(line, max_size=8).map("\n".join)
FIELDS = {
    "AllowKinds": ("allow_kinds", lambda text: frozenset(text.split())),
    "AllowAddresses": ("allow_addresses", lambda text: tuple(map(parse_network, text.split()))),
    "AuditFailure": ("audit_failure", str),
    "RouteTableBase": ("table_base", int),
    "RulePriority": ("priority", int),
    "Exclude": ("exclude", lambda text: frozenset(text.split())),
}


@given(content=content)
@profile(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_it_accepts_means_to_it_what_it_means_to_the_fetcher(tmp_path: Path, content: str) -> None:
    path = tmp_path / "cloud-network.toml"
    path.write_text(content)
    try:
        found = settings.load(str(path))
    except SystemExit:
        return
    entries, mistakes = keyfile.read(content)
    if mistakes:
        return  # the fetcher says so and does not start; what is refused by both is not compared
    expected: dict[str, Any] = {}
    for _, section, key, text in entries:
        if (section, key) in settings._KEYS:
            field, read = FIELDS[key]
            expected[field] = read(text)  # type: ignore[operator]
    changed = {field: getattr(found, field) for field, _ in FIELDS.values() if field in vars(found)}
    assert changed == expected
    tomllib.loads(content)


@given(content=content)
@profile(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_the_fetcher_accepts_netagent_accepts(tmp_path: Path, content: str) -> None:
    """So that nobody's netagent stays down over a file that --check-config called right."""
    path = tmp_path / "cloud-network.toml"
    path.write_text(content)
    try:
        known = config.load(path, {})
    except config.ConfigError:
        return
    found = settings.load(str(path))
    assert (found.table_base, found.priority) == (known.route_table_base, known.rule_priority)
    assert (found.exclude, found.allow_kinds) == (frozenset(known.exclude), frozenset(known.allow_kinds))
    ours = {(net[0], net[1].to_bytes(net[0]), net[0] * 8 - net[2]) for net in ALLOWED + found.allow_addresses}
    assert ours == {
        (len(net.network_address.packed), net.network_address.packed, net.prefixlen) for net in known.allow_addresses
    }
    assert found.audit_failure == known.audit_failure.value


def test_the_defaults_are_the_fetcher_s() -> None:
    found, known = settings.load("/nonexistent"), config.Config()
    assert (found.table_base, found.priority) == (known.route_table_base, known.rule_priority)
    assert sorted(ALLOWED + found.allow_addresses) == sorted(parse_network(str(net)) for net in known.allow_addresses)


@pytest.mark.parametrize(
    "line",
    [
        'AllowAddresses = "10.0.0.0/-1"',
        'AllowAddresses = "10.0.0.0/33"',
        'AllowAddresses = "ten"',
        'AllowKinds = "a\\"b"',
    ],
)
def test_what_cannot_be_meant_keeps_netagent_from_starting(tmp_path: Path, line: str) -> None:
    path = tmp_path / "cloud-network.toml"
    path.write_text(f"[Netagent]\n{line}\n")
    with pytest.raises(SystemExit, match=r"cloud-network\.toml:2: "):
        settings.load(str(path))


def test_the_resolvers_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    servers = ["10.0.0.2", "none", "", "fe80::1%eth0", "fd00::53 # x"]
    path.write_text("search example\n" + "".join(f"nameserver {server}\n" for server in servers))
    known = {ip_network(text).network_address.packed for text in ("10.0.0.2", "fe80::1", "fd00::53")}
    assert settings.resolvers(str(path)) == known
    assert settings.resolvers(str(tmp_path / "none")) == frozenset()
