"""How the parts are that the service can do without for a while: models' providers, servers of tools."""

import logging
from collections.abc import Callable
from typing import Final, TypeAlias

log = logging.getLogger(__name__)

PARTS: Final = ("model", "tools")
"""What health checks ask for, beside the services themselves."""

Listener: TypeAlias = Callable[[str, bool], None]
"""Takes a part and whether all of it works."""


class PartVitals:
    """Keeps which members of each part do not work, as they were last told of. A member never told of works.

    Not for threads: a listener is called within the `tell` that changed its part.
    """

    def __init__(self) -> None:
        self._failing: dict[str, set[str]] = {part: set() for part in PARTS}
        self._listeners: list[Listener] = []

    def tell(self, part: str, member: str, *, ok: bool) -> None:
        """See `Vitals`.

        Raises:
            KeyError: there is no such part.
        """
        failing = self._failing[part]
        if ok == (member not in failing):
            return
        worked = not failing
        if ok:
            failing.remove(member)
            log.info("works again", extra={"part": part, "member": member})
        else:
            failing.add(member)
            log.warning("does not work", extra={"part": part, "member": member})
        if worked != (not failing):
            for listener in self._listeners:
                listener(part, not failing)

    def watch(self, listener: Listener) -> None:
        """Have a listener told how each part is: now, and whenever that changes."""
        self._listeners.append(listener)
        for part, failing in self._failing.items():
            listener(part, not failing)
