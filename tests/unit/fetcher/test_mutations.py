"""Every cloud's payloads, whole and mutilated: no error but MetadataError, and nothing removed on their account."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cloud_network.fetcher.apply import Netagent, NetagentError
from cloud_network.fetcher.config import Config
from cloud_network.fetcher.metadata.http import Client
from cloud_network.fetcher.metadata.model import Instance, MetadataError
from cloud_network.fetcher.metadata.reading import read_metadata
from cloud_network.fetcher.network import kernel
from cloud_network.fetcher.network.objects import Actual, Link
from cloud_network.fetcher.network.plan import is_removal, plan
from cloud_network.fetcher.reconciler import Reconciler
from cloud_network.netagent.operations import Operation
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.fetcher.payloads import BARE, FEW, NO_IPV6, READERS, load, payloads
from tests.unit.fetcher.values import NOTHING, carried_out, goal_of

EVERY = [(cloud, path) for cloud in READERS for path in payloads(cloud)]
WHOLE = [(cloud, path) for cloud, path in EVERY if not path.stem.startswith("broken")]
ODD: list[Any] = [
    *(
        None,
        True,
        0,
        -1,
        240,
        10**30,
        1.5,
        "",
        " ",
        "\x00",
        "\ud800",
        "é",
        "240",
        "-1",
        "1e9",
        "0x10",
        "-1e999",
        "a" * 70_000,
    ),
    *("0.0.0.0", "0.0.0.0/0", "255.255.255.255", "127.0.0.1", "169.254.169.254", "224.0.0.1", "8.8.8.8", "::1", "::/0"),
    *(
        "10.0.1.1",
        "10.0.1.1/24",
        "10.0.0.0/8",
        "fe80::1%eth0",
        "ff02::1",
        "::ffff:10.0.0.1",
        "02:00:00:00:00:01",
        "<html>",
    ),
    *([], {}, [[]], [None], {"": ""}, [1, "2"], [{}] * 3, ["x"] * 5000),
]


def refuse(_: Netagent) -> None:
    """There is no netagent here, and nothing to change."""
    raise NetagentError("no netagent")


class Replay:
    """A provider whose metadata server says what the test puts into `says`."""

    name, unread = "aws", False

    def __init__(self, cloud: str) -> None:
        self.client = Client("127.0.0.1:9")
        self.says, self._read = "", READERS[cloud]

    def fetch(self) -> Instance:
        return self._read(self.says)

    def answers(self) -> bool:
        return True

    def credentials(self) -> dict[str, Any]:
        return {}


def places(value: object, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a document."""
    yield at
    if isinstance(value, dict | list):
        for key, below in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(below, (*at, key))


@st.composite
def mutilated(draw: st.DrawFn, text: str) -> str:
    """The document with up to three values deleted, doubled or replaced; or cut, or with a character changed."""
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(text) - 1))
        return text[:at] + draw(st.sampled_from(["", "\x00" + text[at + 1 :], "}" + text[at + 1 :]]))
    root = {"": json.loads(text)}
    for _ in range(draw(st.integers(1, 3))):
        found = [path for path in places(root) if path]
        *path, key = draw(st.sampled_from(found))
        parent: Any = root
        for step in path:
            parent = parent[step]
        how = draw(st.sampled_from(["delete", "odd", "odd", "swap", "double"]))
        if how == "delete" and path:
            del parent[key]
        elif how == "double" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        elif how == "swap":
            other: Any = root
            for step in draw(st.sampled_from(found)):
                other = other[step]
            parent[key] = copy.deepcopy(other)
        else:
            parent[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
    return json.dumps(root[""]).replace('"-1e999"', "-1e999")  # a number that JSON has, and nobody's float


def host(instance: Instance) -> Actual:
    """A host that has the instance's links, and on them all that it should."""
    links = [
        Link(number + 2, f"eth{number}", interface.mac, True, interface.mtu or 1500, None)
        for number, interface in enumerate(instance.interfaces)
    ]
    bare = Actual(tuple(links), {}, frozenset(), frozenset(), NOTHING.gateways)
    return carried_out(plan(goal_of(instance, Config(), bare), bare, may_remove=True), bare)


@pytest.mark.parametrize(("cloud", "path"), WHOLE, ids=str)
def test_a_whole_payload_is_read_whole_and_without_secrets(cloud: str, path: Path) -> None:
    found = READERS[cloud](path.read_text())
    assert (found.provider, found.problems) == (cloud, ())
    assert cloud in BARE or all(interface.addresses for interface in found.interfaces)
    assert isinstance(found.system["public-keys"], list)
    shown = json.dumps([dict(found.system), [dict(interface.document) for interface in found.interfaces]])
    assert "SECRET" not in shown + repr(found.identity)
    if cloud != "aws":  # whose documents are made with the facts
        assert all(interface.document["mac"] == interface.mac for interface in found.interfaces)


@pytest.mark.parametrize("cloud", READERS)
def test_the_payloads_say_of_every_shape_what_there_is(cloud: str) -> None:
    assert len(load(cloud, "one").interfaces) == 1
    many = load(cloud, "many").interfaces
    assert len(many) >= 3
    assert cloud in FEW or all(len(each.addresses) + len(each.ranges) >= 15 for each in many)
    if cloud not in NO_IPV6:
        assert any(address.version == 6 for each in load(cloud, "ipv6").interfaces for address in each.addresses)
    assert load(cloud, "sparse").interfaces


@pytest.mark.parametrize(("cloud", "path"), [each for each in EVERY if each not in WHOLE], ids=str)
def test_what_is_broken_is_named_and_proves_nothing(cloud: str, path: Path) -> None:
    found = READERS[cloud](path.read_text())
    assert found.interfaces, "one bad interface does not stop the others"
    assert not found.complete
    assert all(len(problem.text) > 20 for problem in found.problems)


@pytest.mark.parametrize(("cloud", "path"), WHOLE, ids=str)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_mutilated_document_is_an_error_and_removes_nothing(cloud: str, path: Path, data: st.DataObject) -> None:
    """Read between two whole ones, as metadata that are wrong for a moment are."""
    text = path.read_text()
    provider = Replay(cloud)
    here, removed = host(provider._read(text)), list[Operation]()
    reconciler = Reconciler(Config(), provider)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "read", lambda: here)
        patch.setattr(Netagent, "__init__", refuse)
        for provider.says in (text, data.draw(mutilated(text)), text):
            report = reconciler.refresh(read_metadata(provider, 60.0), kernel_changed=True)
            if report.comparison is not None:
                removed += filter(is_removal, report.comparison.changes)
    assert not removed


@pytest.mark.parametrize(("cloud", "path"), WHOLE, ids=str)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_mutilated_document_is_read_or_refused(cloud: str, path: Path, data: st.DataObject) -> None:
    text = data.draw(mutilated(path.read_text()))
    try:
        found = READERS[cloud](text)
    except MetadataError:
        return
    json.dumps([dict(found.system), *(dict(interface.document) for interface in found.interfaces)], allow_nan=False)
    assert cloud in BARE or all(interface.addresses for interface in found.interfaces)
    host(found)
