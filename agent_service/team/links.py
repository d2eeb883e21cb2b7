"""Where an answer may lead: the hosts that the roster names."""

import re
from collections.abc import Callable, Sequence

WEB_ADDRESS = re.compile(
    r"https?://(?P<host>[a-z0-9-]+(?:\.[a-z0-9-]+)*)\.?(?::\d{1,5})?(?:[/?#][^\s\\<>\"'`\x00-\x20\x7f]*)?",
    re.IGNORECASE | re.ASCII,
)
"""An address that a browser and this service read alike: without user, backslash, blank or anything that is no ASCII in
the host. What browsers would mend is refused here, and not mended."""


def link_rule(hosts: Sequence[str]) -> Callable[[str], bool]:
    """Whether a URL leads to one of these hosts, or to a subdomain of one."""
    allowed = frozenset(hosts)

    def may_lead_to(url: str) -> bool:
        found = WEB_ADDRESS.fullmatch(url)
        if found is None:
            return False
        labels = found["host"].lower().split(".")
        return any(".".join(labels[place:]) in allowed for place in range(len(labels)))

    return may_lead_to
