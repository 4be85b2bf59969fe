"""What the states of a transaction mean to a program that waits for one. Imports no gRPC."""

from __future__ import annotations

# The numbers are part of the contract (`nearline.type.v1.Transaction.State`) and never change.
COMPLETE = 7
COMPLETE_WITH_WARNINGS = 8
COMPLETE_WITH_ERRORS = 9
FAILED = 10
CANCELLED = 11

_EXIT_CODES = {COMPLETE_WITH_ERRORS: 10, FAILED: 11, CANCELLED: 12}


def is_final(state: int) -> bool:
    """Whether a transaction in this state never changes again."""
    return COMPLETE <= state <= CANCELLED


def exit_code(state: int) -> int:
    """What `nlds` ends with when a transaction ended so: 0, 10, 11 or 12."""
    return _EXIT_CODES.get(state, 0)
