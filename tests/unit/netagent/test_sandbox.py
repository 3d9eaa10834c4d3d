"""Whether the process has only the rights of netagent, by /proc/PID/status."""

from __future__ import annotations

import pytest
from cloud_network.netagent import sandbox

ACCOUNT = sandbox.Account(5, 6)
ONLY_NET_ADMIN = f"{1 << 12:016x}"
STATUS = {
    "Uid": "5\t5\t5\t5",
    "Gid": "6\t6\t6\t6",
    "CapInh": "0" * 16,
    "CapPrm": ONLY_NET_ADMIN,
    "CapEff": ONLY_NET_ADMIN,
    "CapBnd": ONLY_NET_ADMIN,
    "CapAmb": "0" * 16,
    "NoNewPrivs": "1",
}


def text_of(status: dict[str, str]) -> str:
    return "".join(f"{key}:\t{value}\n" for key, value in status.items())


def test_no_supplementary_group_is_needed() -> None:
    sandbox.verify(ACCOUNT, text_of(STATUS))
    sandbox.verify(ACCOUNT, text_of({**STATUS, "Groups": "6"}))


@pytest.mark.parametrize("missing", STATUS)
def test_a_field_that_proc_lacks_is_not_accepted(missing: str) -> None:
    with pytest.raises(sandbox.SandboxError, match=f"{missing} is "):
        sandbox.verify(ACCOUNT, text_of({key: value for key, value in STATUS.items() if key != missing}))
