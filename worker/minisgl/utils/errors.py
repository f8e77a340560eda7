"""Errors that are for the person at the command line."""

from __future__ import annotations


class UserError(Exception):
    """Says in one line what was wrong and how to mend it. A process that meets one prints it and exits with 2."""
