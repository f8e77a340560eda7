"""What keeps a service from running here."""

from __future__ import annotations


class LocalError(Exception):
    """Says in one line what the user must mend."""
