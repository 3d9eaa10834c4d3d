"""How a command ends: the exit codes, and the exception that carries one with what to tell the user."""

OK = 0
WRONG = 1
"""Drift, or an error that is not one of the other two."""
USAGE = 2
UNREACHABLE = 3
"""A daemon does not answer, or has not yet written what is asked for."""


class Failure(Exception):
    """The command cannot do it; str() says why and what to do next."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code
