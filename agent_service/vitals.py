"""How the parts are that the service can do without for a while: a model's provider, servers of tools."""

import logging
from collections.abc import Callable

log = logging.getLogger(__name__)

PARTS = ("model", "tools")
"""What health checks ask for, beside the services themselves."""


class PartVitals:
    """Keeps how each member of each part is, and tells when a part as a whole changes. Of nobody's report: well."""

    def __init__(self) -> None:
        self._ill: dict[str, set[str]] = {part: set() for part in PARTS}
        self._listeners: list[Callable[[str, bool], None]] = []

    def tell(self, part: str, member: str, *, ok: bool) -> None:
        """See `Vitals`."""
        ill = self._ill[part]
        if ok == (member not in ill):
            return
        was_ok = not ill
        (ill.discard if ok else ill.add)(member)
        log.log(logging.INFO if ok else logging.WARNING, "works again" if ok else "does not work", extra={part: member})
        if was_ok != (not ill):
            for listener in self._listeners:
                listener(part, not ill)

    def watch(self, listener: Callable[[str, bool], None]) -> None:
        """Have a listener told how each part is, now and whenever that changes."""
        self._listeners.append(listener)
        for part, ill in self._ill.items():
            listener(part, not ill)
