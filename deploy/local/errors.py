"""The one error the local stack shows to a person."""


class StackError(Exception):
    """A part could not be started, stopped or found; the text says why and what to do."""
