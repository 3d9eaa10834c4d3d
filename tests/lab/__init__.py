"""A cloud in network namespaces: an instance, its gateways and neighbours, hosts beyond, a metadata server.

    from tests.lab import Lab, Spec

    with Lab(Spec.aws(interfaces=4, addresses=15)) as lab:
        lab.start("netagent")
        ...
        assert all(lab.reachability().values())

For interactive use: `python -m tests.lab --help`.
"""

from .filter import LostPackets
from .lab import Lab
from .metadata import Metadata, Record
from .namespaces import LabError, Namespace
from .nic import Interface, Nic
from .reach import HeldConnection
from .spec import Spec

__all__ = [
    "HeldConnection",
    "Interface",
    "Lab",
    "LabError",
    "LostPackets",
    "Metadata",
    "Namespace",
    "Nic",
    "Record",
    "Spec",
]
