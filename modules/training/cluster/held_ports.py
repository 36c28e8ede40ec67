"""Addresses on this machine that nobody else can take."""

from __future__ import annotations

import socket


class HeldPorts:
    """Free ports that stay ours: each is bound (not listened on) until it is released, so that
    nobody takes a server's port before it starts or while it is dead."""

    def __init__(self) -> None:
        self._sockets: dict[str, socket.socket] = {}

    def __len__(self) -> int:
        return len(self._sockets)

    def addresses(self, count: int) -> tuple[str, ...]:
        """`count` new addresses on this machine."""
        return tuple(self._hold() for _ in range(count))

    def _hold(self) -> str:
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("", 0))
        address = f"localhost:{held.getsockname()[1]}"
        self._sockets[address] = held
        return address

    def release(self, address: str) -> None:
        """Lets anyone have the address."""
        self._sockets.pop(address).close()

    def close(self) -> None:
        """Releases all."""
        for address in list(self._sockets):
            self.release(address)
