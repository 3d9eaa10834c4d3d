"""`python -m tests.lab.metadata PROVIDER CONTROL-SOCKET`, in the cloud's namespaces."""

import sys

from .providers import PROVIDERS
from .server import main

if __name__ == "__main__":
    main(PROVIDERS[sys.argv[1]](), sys.argv[2])
