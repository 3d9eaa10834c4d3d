"""The configuration: the original's file, every key, every mistake, and agreement with TOML."""

import tomllib
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from cloud_network.fetcher import config, keyfile
from cloud_network.fetcher.config import Config, ConfigError, load
from hypothesis import example, given
from hypothesis import strategies as st

ORIGINAL = """\
[System]
RefreshTimer="300s"
LogLevel="info"
LogFormat="text"

[Network]
Listen="127.0.0.1:5209"
Supplementary="eth0"
"""

EVERY_KEY = r"""
# a comment
[System]
LogLevel = "DEBUG"   # another
LogFormat = 'json'
RefreshTimer = "1h30m"
ReadyTimeout = "7s"
[Network]
Listen = "[::1]:80"
Supplementary = "eth0	eth1  ens5"
Provider = "gcp"
RouteTableBase = 20000
RulePriority = "32736"
Rules = "original"
Exclude = "docker0"
ExcludeAddresses = "10.0.0.7 10.1.0.0/16 2001:db8::/32"
Prefixes = "route"
ForwardedReplies = "mark"
MarkMask = "0xff00"
Purge = "on-stop"
ConfirmTimeout = "1.5m"
[Netagent]
AllowKinds = "veth vlan"
AllowAddresses = "203.0.113.0/24"
AuditFailure = "continue"
"""


def read(tmp_path: Path, content: str, environ: dict[str, str] | None = None) -> Config:
    path = tmp_path / "cloud-network.toml"
    path.write_text(content)
    return load(path, environ or {})


def mistakes(tmp_path: Path, content: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        read(tmp_path, content, environ)
    assert str(raised.value) == "\n".join(raised.value.problems)
    return [problem.removeprefix(f"{tmp_path}/cloud-network.toml:") for problem in raised.value.problems]


def test_no_file_means_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path / "none", {}) == Config()


def test_the_originals_file_is_read_unchanged(tmp_path: Path) -> None:
    assert read(tmp_path, ORIGINAL) == Config(supplementary=("eth0",))
    assert read(tmp_path, ORIGINAL.replace("\n", "\r\n")) == Config(supplementary=("eth0",))


def test_every_key_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, EVERY_KEY) == Config(
        log_level=config.LogLevel.DEBUG,
        log_format=config.LogFormat.JSON,
        refresh_timer=5400.0,
        ready_timeout=7.0,
        listen=config.Endpoint(ip_address("::1"), 80),
        supplementary=("eth0", "eth1", "ens5"),
        provider=config.Provider.GCP,
        route_table_base=20000,
        rule_priority=32736,
        rules=config.Rules.ORIGINAL,
        exclude=("docker0",),
        exclude_addresses=tuple(ip_network(n) for n in ("10.0.0.7/32", "10.1.0.0/16", "2001:db8::/32")),
        prefixes=config.Prefixes.ROUTE,
        forwarded_replies=config.ForwardedReplies.MARK,
        mark_mask=0xFF00,
        purge=config.Purge.ON_STOP,
        confirm_timeout=90.0,
        allow_kinds=("veth", "vlan"),
        allow_addresses=(*config.PRIVATE, ip_network("203.0.113.0/24")),
        audit_failure=config.AuditFailure.CONTINUE,
    )
    keys = {key for keys in config.KEYS.values() for key in keys}
    assert all(f"\n{key} = " in EVERY_KEY for key in keys)
    assert {key.field for keys in config.KEYS.values() for key in keys.values()} == set(Config.__slots__)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("300s", 300.0), ("5m", 300.0), ("1h30m", 5400.0), ("1.5h", 5400.0), ("1500ms", 1.5),
        ("2000000us", 2.0), ("1s1ns", 1.000000001), (".5m", 30.0), ("1.s", 1.0), ("1000000µs", 1.0),
    ],
)  # fmt: skip
def test_durations_are_gos(tmp_path: Path, text: str, seconds: float) -> None:
    assert read(tmp_path, f'[System]\nRefreshTimer = "{text}"').refresh_timer == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("section", "entry", "expected"),
    [
        ("System", 'LogLevel = "loud"', "unknown value; accepted: trace, debug, info, warning, error, fatal, panic"),
        ("System", "LogFormat = 1", "unknown value; accepted: text, json"),
        ("System", 'RefreshTimer = "999ms"', 'too short; accepted: at least 1s, such as "300s"'),
        ("System", "RefreshTimer = 300", 'a time needs a unit: "300s"?; accepted:'),
        ("System", 'RefreshTimer = "5 minutes"', "not a time; accepted:"),
        ("System", 'RefreshTimer = "-5m"', "not a time; accepted:"),
        ("System", 'RefreshTimer = ""', "not a time; accepted:"),
        ("System", 'ReadyTimeout = "0s"', "too short; accepted: at least 1s"),
        ("Network", 'Listen = "localhost:5209"', 'not an address and a port; accepted: "ip:port"'),
        ("Network", 'Listen = "127.0.0.1"', "not an address and a port"),
        ("Network", 'Listen = "::1:5209"', "not an address and a port"),
        ("Network", 'Listen = "127.0.0.1:0"', "port 0 is outside 1..65535"),
        ("Network", 'Listen = "127.0.0.1:65536"', "port 65536 is outside"),
        ("Network", 'Listen = "1.2.3:80"', "1.2.3"),
        ("Network", 'Supplementary = "eth0 a/b"', "'a/b' cannot be the name of a link; accepted: names of links"),
        ("Network", 'Exclude = "sixteen-letters-"', "cannot be the name of a link"),
        ("Network", 'Provider = "awz"', "unknown value (did you mean aws?); accepted: auto, aws"),
        ("Network", 'Provider = "AWS"', "did you mean aws?"),
        ("Network", 'RouteTableBase = "x"', "not a whole number; accepted: 256 to 1000000000"),
        ("Network", "RouteTableBase = 255", "too small"),
        ("Network", "RulePriority = 32737", "too large; accepted: 1 to 32736"),
        ("Network", "RulePriority = 0", "too small"),
        ("Network", 'Rules = "all"', "accepted: aggregate, address, original"),
        ("Network", 'ExcludeAddresses = "10.0.0.1/8"', "has bits beyond its length; '10.0.0.0/8'?"),
        ("Network", 'ExcludeAddresses = "here"', "'here' is not an address or prefix; accepted: prefixes"),
        ("Network", 'Prefixes = "no"', "accepted: local, route, ignore"),
        ("Network", 'ForwardedReplies = "on"', "accepted: off, mark"),
        ("Network", "MarkMask = 0", "not a 32-bit mask with a bit set; accepted:"),
        ("Network", 'MarkMask = "0x101"', "its bits are not in one run"),
        ("Network", 'MarkMask = "0x100000000"', "not a mask"),
        ("Network", 'Purge = "always"', "accepted: never, on-stop"),
        ("Network", 'ConfirmTimeout = "11m"', "too long; accepted: 1s to 10m"),
        ("Netagent", 'AllowKinds = "Veth!"', "'Veth!' cannot be an rtnetlink kind"),
        ("Netagent", 'AllowAddresses = "1.2.3.4/33"', "is not an address or prefix"),
        ("Netagent", 'AuditFailure = "ignore"', "accepted: refuse, continue"),
        ("Network", 'LogLevel = "info"', "of another section; accepted: in [System]"),
        ("System", 'Loglevel = "info"', "unknown key (did you mean LogLevel?); accepted: LogLevel, LogFormat"),
    ],
)  # fmt: skip
def test_a_bad_value_names_place_reason_and_what_is_accepted(
    tmp_path: Path, section: str, entry: str, expected: str
) -> None:
    (found,) = mistakes(tmp_path, f"\n[{section}]\n{entry}\n")
    key, _, value = entry.partition(" = ")
    text = value.strip('"')
    assert found.startswith(f"3: [{section}] {key} = {text}: ")
    assert "; accepted: " in found
    assert expected in found


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('Exclude = ["a", "b"]', "the value is an array; write several values as one text"),
        ("Exclude = { a = 1 }", "an inline table"),
        ('Exclude = """a"""', "a text over several lines"),
        ("Exclude = '''a'''", "a text over several lines"),
        ('Exclude = "a\\tb"', "not understood"),
        ("Exclude = true", "not understood"),
        ("Exclude = 1.5", "not understood"),
        ("RouteTableBase = 0x2710", "not understood"),
        ("RouteTableBase = 10_000", "not understood"),
        ("RouteTableBase = 010000", "not understood"),
        ('"Exclude" = "a"', "not understood"),
        ('Network.Exclude = "a"', "not understood"),
        ('Exclude = "a" "b"', "not understood"),
        ("Exclude", "not understood"),
        ("[[Network]]", "not understood"),
        ('Exclude = "\x1b[2J"', "control character '\\x1b'"),
    ],
)
def test_what_is_more_than_the_subset_of_toml_is_named(tmp_path: Path, line: str, expected: str) -> None:
    (found,) = mistakes(tmp_path, f"[Network]\n{line}\n")
    assert found.startswith("2: ")
    assert expected in found
    assert f"accepted: {keyfile.FORM}" in found
    assert found.isprintable()


def test_all_mistakes_come_at_once_in_order(tmp_path: Path) -> None:
    content = 'Early = 1\n[Sytem]\nx = 1\n[Network]\nListen = "x"\nListen = "y"\nbare\n[Network]\n'
    found = mistakes(tmp_path, content, {"CLOUD_NETWORK_LOG_LEVEL": "x\x1b"})
    assert [problem.split(":")[0] for problem in found] == ["1", "2", "5", "6", "6", "7", "8", "environment"]
    assert "before the first section" in found[0]
    assert "[Sytem]: unknown section (did you mean [System]?); accepted: [System], [Network], [Netagent]" in found[1]
    assert "[Network] Listen is already in line 5" in "".join(found[3:5])
    assert "[Network] is already in line 4" in found[6]
    assert found[7].startswith("environment: CLOUD_NETWORK_LOG_LEVEL = x\\x1b: unknown value; accepted: trace,")


def test_the_environment_wins(tmp_path: Path) -> None:
    environ = {"CLOUD_NETWORK_LOG_LEVEL": "Error", "CLOUD_NETWORK_LOG_FORMAT": "json"}
    found = read(tmp_path, ORIGINAL, environ)
    assert (found.log_level, found.log_format) == ("error", "json")
    assert read(tmp_path, ORIGINAL, {"CLOUD_NETWORK_LOG_LEVEL": ""}).log_level == "info"


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "cloud-network.toml").mkdir()
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory; make it a file"):
        load(tmp_path / "cloud-network.toml", {})
    (tmp_path / "latin").write_bytes(b'[Network]\nExclude = "\xe9"')
    with pytest.raises(ConfigError, match="byte 21 is not UTF-8"):
        load(tmp_path / "latin", {})


LINES = st.lists(
    st.one_of(
        st.sampled_from(["[System]", "[Network]", "[ab-c_1] # x", "", "# comment", "  \t", "[", "[[a]]", "a.b = 1"]),
        st.builds(
            lambda key, space, value, tail: f"{key}{space}={space}{value}{tail}",
            st.sampled_from(["A", "b", "C-d", "1", "é", '"q"', ""]),
            st.sampled_from(["", " ", "\t", "\v"]),
            st.one_of(
                st.text(st.characters(codec="utf-8"), max_size=8).map(lambda text: f'"{text}"'),
                st.text("ab \"\\'#\t\x7fu00n", max_size=12).map(lambda text: f'"{text}"'),
                st.text(st.characters(codec="utf-8"), max_size=8).map(lambda text: f"'{text}'"),
                st.from_regex(r"[-+]?[0-9_]{1,22}", fullmatch=True),
                st.sampled_from(["true", "1.5", "0x1", '"""', "'''a'''", "[1]", "{}", "٣"]),
            ),
            st.sampled_from(["", " ", "# tail", " # \x00", "x"]),
        ),
    ),
    max_size=6,
)


@given(LINES.map("\n".join))
@example('A = "\\\\\\""')
@example("A = -0")
def test_what_is_accepted_means_the_same_in_toml(content: str) -> None:
    entries, wrong = keyfile.read(content)
    if wrong:
        return
    known: dict[str, object] = {}
    for _, section, key, text in entries:
        if not key:
            known[section] = {}
        elif section:
            known[section][key] = text  # type: ignore[index]
        else:
            known[key] = text
    document = tomllib.loads(content)
    assert known == {
        name: {k: str(v) for k, v in value.items()} if isinstance(value, dict) else str(value)
        for name, value in document.items()
    } or "-0" in content  # fmt: skip
