"""The configuration: the original's file, every key, every error, and agreement with TOML."""

import re
import tomllib
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from cloud_network.fetcher import config
from cloud_network.fetcher.__main__ import main
from cloud_network.fetcher.config import KEYS, Config, ConfigError, effective, load
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
Manage = "primary"
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
AllowGateways = "10.0.0.254"
MaxObjects = 100
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


def test_originals_keys_without_effect_are_a_notice(tmp_path: Path) -> None:
    more = 'PrimaryAddress=true\nAddress="127.0.0.1"\nPort="5209"\n'
    found = read(tmp_path, ORIGINAL + more)
    assert found == Config(supplementary=("eth0",))
    assert [notice.split(": ")[1] for notice in found.notices] == [
        "[Network] PrimaryAddress = True", "[Network] Address = 127.0.0.1", "[Network] Port = 5209",
    ]  # fmt: skip
    assert "Listen" in found.notices[1]
    assert "accepted: PrimaryAddress" in mistakes(tmp_path, "[Network]\nprimaryaddress=true")[0]


@pytest.mark.parametrize("content", ["", EVERY_KEY, '[System]\nRefreshTimer = "1.25s"\nReadyTimeout = "2400000h"'])
def test_effective_values_are_a_file_of_the_same_meaning(tmp_path: Path, content: str) -> None:
    config_read = read(tmp_path, content)
    lines = list(effective(config_read))
    again = read(tmp_path, "\n".join(lines))
    assert replace(again, prefixes=config_read.prefixes) == config_read
    keys = {section: set(keys) for section, keys in tomllib.loads("\n".join(lines)).items()}
    assert keys == {section: set(keys) for section, keys in KEYS.items()}
    marked = [line for line in lines if "# default" in line]
    assert len(marked) == (23 if not content else 21 if 'ReadyTimeout = "24' in content else 0)


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
        rules=config.RulesMode.ORIGINAL,
        manage=config.Manage.PRIMARY,
        exclude=("docker0",),
        exclude_addresses=tuple(ip_network(n) for n in ("10.0.0.7/32", "10.1.0.0/16", "2001:db8::/32")),
        prefixes=config.Prefixes.ROUTE,
        forwarded_replies=config.ForwardedRepliesMode.MARK,
        mark_mask=0xFF00,
        purge=config.Purge.ON_STOP,
        confirm_timeout=90.0,
        allow_kinds=("veth", "vlan"),
        allow_addresses=(*config.PRIVATE, ip_network("203.0.113.0/24")),
        allow_gateways=(ip_network("10.0.0.254/32"),),
        max_objects=100,
        audit_failure=config.AuditFailure.CONTINUE,
    )
    keys = {key for keys in config.KEYS.values() for key in keys}
    assert all(f"\n{key} = " in EVERY_KEY for key in keys)
    assert {key.field for keys in config.KEYS.values() for key in keys.values()} == set(Config.__slots__) - {"notices"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("300s", 300.0), ("5m", 300.0), ("1h30m", 5400.0), ("1.5h", 5400.0), ("1500ms", 1.5),
        ("2000000us", 2.0), ("1s1ns", 1.000000001), (".5m", 30.0), ("1.s", 1.0), ("1000000µs", 1.0),
    ],
)  # fmt: skip
def test_durations_have_the_format_of_go(tmp_path: Path, text: str, seconds: float) -> None:
    assert read(tmp_path, f'[System]\nRefreshTimer = "{text}"').refresh_timer == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("section", "entry", "expected"),
    [
        ("System", 'LogLevel = "loud"', "unknown value; accepted: trace, debug, info, warning, error, fatal, panic"),
        ("System", "LogFormat = 1", "unknown value; accepted: text, json"),
        ("System", 'RefreshTimer = "999ms"', 'too short; accepted: at least 1s, such as "300s"'),
        ("System", "RefreshTimer = 300", 'a duration needs a unit: "300s"?; accepted:'),
        ("System", 'RefreshTimer = "5 minutes"', "not a duration; accepted:"),
        ("System", 'RefreshTimer = "-5m"', "not a duration; accepted:"),
        ("System", 'RefreshTimer = ""', "not a duration; accepted:"),
        ("System", 'ReadyTimeout = "0s"', "too short; accepted: at least 1s"),
        ("Network", 'Listen = "localhost:5209"', 'not an address and a port; accepted: "ip:port"'),
        ("Network", 'Listen = "127.0.0.1"', "not an address and a port"),
        ("Network", 'Listen = "::1:5209"', "not an address and a port"),
        ("Network", 'Listen = "127.0.0.1:0"', "port 0 is outside 1..65535"),
        ("Network", 'Listen = "127.0.0.1:65536"', "port 65536 is outside"),
        ("Network", 'Listen = "1.2.3:80"', "1.2.3"),
        ("Network", 'Supplementary = "eth0 a/b"', "'a/b' is not the name of a link; accepted: names of links"),
        ("Network", 'Exclude = "sixteen-letters-"', "is not the name or MAC of a link"),
        ("Network", 'Provider = "awz"', "unknown value (did you mean aws?); accepted: auto, aws"),
        ("Network", 'Provider = "AWS"', "did you mean aws?"),
        ("Network", 'RouteTableBase = "x"', "not a whole number; accepted: 256 to 1000000000"),
        ("Network", "RouteTableBase = 255", "too small"),
        ("Network", "RulePriority = 32737", "too large; accepted: 1 to 32736"),
        ("Network", "RulePriority = 0", "too small"),
        ("Network", 'Rules = "all"', "accepted: aggregate, address, original"),
        ("Network", 'ExcludeAddresses = "10.0.0.1/8"', "has bits beyond its length; '10.0.0.0/8'?"),
        ("Network", 'ExcludeAddresses = "here"', "'here' is not an address or prefix; accepted: addresses or prefixes"),
        ("Network", 'Prefixes = "no"', "accepted: local, route, ignore"),
        ("Network", 'ForwardedReplies = "on"', "accepted: off, mark"),
        ("Network", "MarkMask = 0", "not a 32-bit mask with at least one bit set; accepted:"),
        ("Network", 'MarkMask = "0x101"', "its bits are not adjacent"),
        ("Network", 'MarkMask = "0x100000000"', "not a mask"),
        ("Network", 'Purge = "always"', "accepted: never, on-stop"),
        ("Network", 'ConfirmTimeout = "11m"', "too long; accepted: 1s to 10m"),
        ("Netagent", 'AllowKinds = "Veth!"', "'Veth!' is not an rtnetlink kind"),
        ("Netagent", 'AllowAddresses = "1.2.3.4/33"', "is not an address or prefix"),
        ("Netagent", 'AuditFailure = "ignore"', "accepted: refuse, continue"),
        ("Network", 'LogLevel = "info"', "key of another section; accepted: [System] LogLevel"),
        ("System", 'Loglevel = "info"', "keys are case-sensitive; accepted: LogLevel"),
    ],
)  # fmt: skip
def test_bad_value_names_place_reason_and_accepted_values(
    tmp_path: Path, section: str, entry: str, expected: str
) -> None:
    (found,) = mistakes(tmp_path, f"\n[{section}]\n{entry}\n")
    key, _, value = entry.partition(" = ")
    text = value.strip('"')
    assert found.startswith(f"3: [{section}] {key} = {text}: ")
    assert "; accepted: " in found
    assert expected in found


@pytest.mark.parametrize(
    "line",
    [
        'Exclude = "eth1"', "Exclude='eth1'", '"Exclude" = "eth1"', 'Exclude = """\neth1"""', "Exclude = '''eth1'''",
        'Exclude = "\\u0065th1"', 'Exclude = "eth1" # a comment',
    ],
)  # fmt: skip
@pytest.mark.parametrize("section", ["[Network]\n", "[ Network ]\n", '["Network"]\n', "Network."])
def test_every_spelling_of_toml_is_read(tmp_path: Path, section: str, line: str) -> None:
    assert read(tmp_path, section + line).exclude == ("eth1",)


@pytest.mark.parametrize(
    ("value", "number"), [("0x7f", 127), ("1_27", 127), ('"127"', 127), ("0b1111111", 127), ("0o177", 127)]
)
def test_every_spelling_of_an_integer_is_read(tmp_path: Path, value: str, number: int) -> None:
    assert read(tmp_path, f"[Network]\nMarkMask = {value}\n").mark_mask == number


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('Exclude = ["a", "b"]', "not a string or whole number; accepted: names of links with *, ?"),
        ("Exclude = { a = 1 }", "not a string or whole number"),
        ("Exclude = true", "not a string or whole number"),
        ("RouteTableBase = 10000.5", "not a string or whole number; accepted: 256 to"),
        ("RouteTableBase = 0x" + "f" * 5000, "not a string or whole number"),
        ("RouteTableBase = " + "9" * 5000, "not TOML"),
        ("RouteTableBase = 010000", "not TOML"),
        ('Exclude = "a" "b"', "not TOML"),
        ("Exclude", "not TOML"),
        ("[[Network]]", "not TOML"),
        ('Exclude = "\x1b[2J"', "not TOML"),
        ("Exclude = " + "[" * 50_000, "not TOML"),
        ('Exclude = "eth0,eth1"', '"eth0 eth1"'),
        ('Exclude = "!eth0"', "negates; name the links to exclude"),
        ('Exclude = "eth1+"', 'write "eth1*"'),
        ('Exclude = "02:00:00:00:00"', "is not the name or MAC of a link"),
        ('Supplementary = "eth*"', "only whole names are supported"),
        ('exclude = "eth0"', "keys are case-sensitive; accepted: Exclude"),
        ('loglevel = "info"', "key of another section; accepted: [System] LogLevel"),
    ],
)
def test_bad_line_is_an_error(tmp_path: Path, line: str, expected: str) -> None:
    (found,) = mistakes(tmp_path, f"[Network]\n{line}\n")
    assert expected in found
    assert found.isprintable()


def test_all_mistakes_come_at_once_in_order(tmp_path: Path) -> None:
    content = 'LogLevel = 1\n[Sytem]\nx = 1\n[Network]\nListen = "x"\n\nExclude = 1.5\n'
    found = mistakes(tmp_path, content, {"CLOUD_NETWORK_LOG_LEVEL": "x\x1b"})
    assert [problem.split(":")[0] for problem in found] == ["1", "2", "5", "7", "environment"]
    assert "LogLevel = 1: key outside of a section; accepted sections: [System]" in found[0]
    assert "[Sytem]: unknown section (did you mean System?); accepted: System, Network, Netagent" in found[1]
    assert found[4].startswith("environment: CLOUD_NETWORK_LOG_LEVEL = x\\x1b: unknown value; accepted: trace,")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("# \u2028 \u0085\n[Network]\nManage = 7\n", "3:"),
        ('[Network]\nExclude = """\nManage = 7\n"""\nManage = 7\n', ""),
    ],
    ids=["line separators in a comment", "a string of several lines"],
)
def test_line_of_a_mistake_is_right_or_left_out(tmp_path: Path, content: str, line: str) -> None:
    assert any(each.startswith(f"{line} [Network] Manage = 7: ") for each in mistakes(tmp_path, content))


def test_key_given_twice_is_an_error_with_its_line(tmp_path: Path) -> None:
    (found,) = mistakes(tmp_path, '[Network]\nExclude = "a"\nExclude = "b"\n')
    assert found.startswith("3: not TOML: ")


def test_original_level_names_are_read_in_any_case(tmp_path: Path) -> None:
    for text, level in (("Warn", "warning"), ("warning", "warning"), ("Panic", "panic"), ("TRACE", "trace")):
        assert read(tmp_path, f'[System]\nLogLevel = "{text}"').log_level == level


def test_environment_overrides_the_file(tmp_path: Path) -> None:
    environ = {"CLOUD_NETWORK_LOG_LEVEL": "Error", "CLOUD_NETWORK_LOG_FORMAT": "json"}
    found = read(tmp_path, ORIGINAL, environ)
    assert (found.log_level, found.log_format) == ("error", "json")
    assert read(tmp_path, ORIGINAL, {"CLOUD_NETWORK_LOG_LEVEL": ""}).log_level == "info"


def test_unreadable_file_is_an_error_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "cloud-network.toml").mkdir()
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory; make it a file"):
        load(tmp_path / "cloud-network.toml", {})
    (tmp_path / "latin").write_bytes(b'[Network]\nExclude = "\xe9"')
    with pytest.raises(ConfigError, match="byte 21 is not UTF-8"):
        load(tmp_path / "latin", {})


@given(st.text(st.characters(codec="utf-8"), max_size=40))
@example('[Network]\nExclude = "\\ud800"')
def test_any_file_is_read_or_is_a_config_error(tmp_path_factory: pytest.TempPathFactory, content: str) -> None:
    path = tmp_path_factory.mktemp("config") / "cloud-network.toml"
    path.write_text(content, newline="")
    with suppress(ConfigError):
        load(path, {})


def test_check_config_prints_the_effective_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cloud-network.toml"
    path.write_text('[System]\nLogLevel = "warn"\n[Network]\nPrimaryAddress = true\n')
    monkeypatch.setattr("sys.argv", ["cloud-network-fetcher", "--check-config", "--config", str(path)])
    main()
    output = capsys.readouterr()
    first, *values = output.out.splitlines()
    assert first == f"{path}: OK. The values in force:"
    path.unlink()
    main()
    assert capsys.readouterr().out.startswith(
        f"{path}: there is no such file; the defaults apply. The values in force:"
    )
    shown = tomllib.loads("\n".join(values))
    assert {section: set(keys) for section, keys in shown.items()} == {key: set(keys) for key, keys in KEYS.items()}
    assert shown["System"]["LogLevel"] == "warning"
    assert "PrimaryAddress = True" in output.err


def test_check_config_of_a_bad_file_ends_with_its_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cloud-network.toml"
    path.write_text('[System]\nRefreshTimer = "5 minutes"\n')
    monkeypatch.setattr("sys.argv", ["cloud-network-fetcher", "--check-config", "--config", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 78


def test_installed_file_lists_every_key_with_its_default(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "systemd/cloud-network.toml").read_text()
    whole = re.sub(r"(?m)^# (?=[A-Z]\w+ = )", "", text)
    listed = {section: set(keys) for section, keys in tomllib.loads(whole).items()}
    assert listed == {section: set(keys) for section, keys in KEYS.items()}
    path = tmp_path / "cloud-network.toml"
    path.write_text(whole)
    assert replace(load(path, {}), prefixes=None) == Config()
