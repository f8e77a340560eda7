"""Several answers to one prompt: the others wait until the first has put the prompt into the prefix cache."""

from __future__ import annotations

from minisgl.core.request import Request, State


class CopyManager:
    """Requests that are not in the queue yet, each with the one that reads its prompt."""

    def __init__(self) -> None:
        self._readers: dict[Request, Request] = {}

    def __len__(self) -> int:
        return len(self._readers)

    def __contains__(self, request: Request) -> bool:
        return request in self._readers

    def hold(self, reader: Request, copies: list[Request]) -> None:
        """`copies` wait for `reader`."""
        self._readers.update(dict.fromkeys(copies, reader))

    def remove(self, request: Request) -> None:
        """Forget one that waits."""
        del self._readers[request]

    def release(self, reader: Request) -> list[Request]:
        """Those that waited for `reader`, in their order."""
        copies = [request for request, its in self._readers.items() if its is reader]
        for request in copies:
            del self._readers[request]
        return copies

    def check(self) -> None:
        """Assert what must hold between steps."""
        for request, reader in self._readers.items():
            assert request.state is State.WAITING and not request.pages
            assert reader.state in (State.WAITING, State.PREFILL) and reader not in self._readers
