"""Which pages may make a browser use its refresh cookie."""

from collections.abc import Sequence

from fastapi import Request

from edge_api.errors import ForeignOriginError


def require_own_origin(request: Request, allowed: Sequence[str]) -> None:
    """Refuse a request that a page of another origin has made.

    Browsers send `Origin` with every POST; programs do not, and have no cookie that they did not get themselves.

    Args:
        request: its scheme and host are those that the browser used, as far as trusted proxies tell.
        allowed: origins of our own pages on other hosts.

    Raises:
        ForeignOriginError: it is neither ours nor allowed, or hides where it comes from ("null").
    """
    for origin in request.headers.getlist("origin"):
        host = request.headers.get("host", "").lower()
        # A proxy that ends TLS may not say so; an https page of the same host is at least as much ours.
        if origin.lower() not in {f"{request.url.scheme}://{host}", f"https://{host}"} and origin not in allowed:
            raise ForeignOriginError("this origin may not use the refresh cookie")
    site = request.headers.get("sec-fetch-site")
    if site == "cross-site" and not request.headers.getlist("origin"):
        raise ForeignOriginError("this origin may not use the refresh cookie")
