"""/openapi.json: it describes all routes, and schemathesis checks that their responses match."""

import json
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from cloud_network.api.app import create_app
from cloud_network.api.openapi import PATHS
from cloud_network.fetcher.config import Config
from cloud_network.fetcher.state import StateDirectory
from hypothesis import HealthCheck, given, settings
from jsonschema import Draft202012Validator
from schemathesis.checks import CHECKS
from schemathesis.checks import load_all_checks as load

from .conftest import Server, audit_line, two_links

PUBLISHED = json.loads((Path(__file__).parents[3] / "docs/status.schema.json").read_text())
ADDED = {"stale", "fetcher"}
load()


@pytest.fixture
def described(server: Server, home: Path) -> dict[str, Any]:
    (home / "audit.log").write_text(audit_line(1) + audit_line(2))
    found: dict[str, Any] = server.ask("/openapi.json").json
    return found


def test_every_route_is_described(described: dict[str, Any]) -> None:
    served = create_app(StateDirectory("/nowhere"), [Config().listen]).url_map.iter_rules()
    paths = {rule.rule.replace("<", "{").replace(">", "}") for rule in served}
    assert described["paths"].keys() == paths


def test_every_schema_is_json_schema(described: dict[str, Any]) -> None:
    for schema in described["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_openapi_agrees_with_the_status_schema(described: dict[str, Any]) -> None:
    """docs/status.schema.json and the types have the same keys; ADDED are added by REST."""
    schemas = described["components"]["schemas"]
    pairs = {
        "LinkStatus": "link",
        "AddressStatus": "address",
        "NetagentStatus": "netagent",
        "ConflictStatus": "conflict",
    }
    for name, where in {**pairs, "LastError": "error", "Counters": "counters", "DatedStatus": ""}.items():
        published = PUBLISHED["$defs"][where] if where else PUBLISHED
        assert schemas[name]["properties"].keys() - ADDED == published["properties"].keys()
        assert set(schemas[name]["required"]) - ADDED == set(published["required"])
        for key, described_value in schemas[name]["properties"].items():
            if "enum" in described_value and key not in ADDED:
                known = published["properties"][key]
                assert set(described_value["enum"]) == set(known.get("enum", [known.get("const")]))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("filled_in", [True, False], ids=["state", "no state"])
def test_schemathesis_finds_nothing(
    described: dict[str, Any], session_server: Server, path: str, filled_in: bool
) -> None:
    """Every generated request, valid or not, gets a response that the description allows."""
    state = StateDirectory(session_server.config.parent / "run")
    if not filled_in:
        Path(state.status_path).unlink()
        Path(state.system_path).unlink()
    schema = schemathesis.openapi.from_dict(described)
    schema.config.update(base_url=f"http://127.0.0.1:{session_server.port}")
    operation = schema[path]["GET"]
    # A described 503 is correct without state; a 500 is never correct, because none is described.
    checks = [check for check in CHECKS.get_all() if filled_in or check.__name__ != "not_a_server_error"]
    asked = 0

    def ask(case: Any) -> None:
        nonlocal asked
        asked += 1
        case.call_and_validate(checks=checks)

    settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)(
        given(case=operation.as_strategy())(ask)
    )()
    assert asked


def test_a_described_answer_is_the_answer(described: dict[str, Any], filled: StateDirectory) -> None:
    """Proof that the check can fail: a status with an extra key does not match the description."""
    components = {"components": described["components"]}
    validator = Draft202012Validator({"$ref": "#/components/schemas/DatedStatus", **components})
    assert validator.is_valid({**two_links(), "stale": False, "fetcher": "running"})
    assert not validator.is_valid({**two_links(), "stale": False, "fetcher": "running", "more": 1})
    assert not validator.is_valid(two_links())
