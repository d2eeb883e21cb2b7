"""Server-sent events out of bytes that arrive in pieces of any size."""

from collections.abc import Iterator

MAX_EVENT_BYTES = 2**20
"""Longest line and longest event, in bytes. A provider's events stay far below; beyond, something is wrong."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class OversizedEventError(Exception):
    """A line or an event is longer than MAX_EVENT_BYTES."""


class EventParser:
    """Gives the data of each event. Names, ids, comments and waiting times are passed over: both APIs repeat the type.

    Lines end with LF, CR LF or CR, as the standard has it, and pieces may end anywhere: bytes become text only after
    an event is whole.
    """

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._began = False
        self._after_cr = False

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The data of every event that this piece ends.

        Raises:
            OversizedEventError: a line or an event is too long.
        """
        if self._after_cr and piece:
            # The LF of a CR LF that was cut in two ends no further line.
            self._after_cr = False
            piece = piece.removeprefix(b"\n")
        if b"\n" not in piece and b"\r" not in piece:
            self._keep(piece)
            return
        lines = piece.splitlines(keepends=True)
        self._keep(lines[0].rstrip(b"\r\n"))
        # bytes.splitlines() knows LF, CR and CR LF, and no other line ends.
        lines[0] = bytes(self._line) + b"\n"
        self._line.clear()
        self._after_cr = piece.endswith(b"\r")
        if not lines[-1].endswith((b"\n", b"\r")):
            self._keep(lines.pop())
        for line in lines:
            if (event := self._take(line.rstrip(b"\r\n"))) is not None:
                yield event

    def end(self) -> Iterator[bytes]:
        """The data of an event whose closing empty line never came, if there is one."""
        rest = bytes(self._line)
        self._line.clear()
        for line in (rest, b""):
            if (event := self._take(line)) is not None:
                yield event

    def _keep(self, part: bytes) -> None:
        self._line += part
        self._bound(len(self._line))

    def _bound(self, size: int) -> None:
        if self._size + size > MAX_EVENT_BYTES:
            raise OversizedEventError

    def _take(self, line: bytes) -> bytes | None:
        """The data of the event that this line ends, if it ends one."""
        if not self._began:
            self._began = True
            line = line.removeprefix(BYTE_ORDER_MARK)
        if not line:
            data, self._data, self._size = self._data, [], 0
            return b"\n".join(data) if data else None
        name, _, value = line.partition(b":")
        if name == b"data":
            self._bound(len(value))
            self._size += len(value)
            self._data.append(value.removeprefix(b" "))
        return None
