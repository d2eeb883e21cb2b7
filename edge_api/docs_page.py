"""`/docs`: Swagger UI, all of it from this process, under a Content-Security-Policy that allows nothing else."""

import gzip
import hashlib
from functools import cache
from importlib import resources
from typing import NamedTuple

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

# No less works in Chromium: the stylesheet holds its icons as data: images. Inline styles and scripts are not needed.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)

# Addresses are relative, so that they hold behind a proxy that adds a prefix, too.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Answerdesk</title>
<link rel="icon" type="image/png" href="{favicon-32x32.png}">
<link rel="stylesheet" href="{swagger-ui.css}">
</head>
<body>
<div id="swagger-ui"></div>
<script src="{swagger-ui-bundle.js}"></script>
<script src="{init.js}"></script>
</body>
</html>
"""

# validatorUrl: no badge of validator.swagger.io, which this layout happens not to show and others do.
INIT = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  persistAuthorization: false,
  tryItOutEnabled: true,
  validatorUrl: null,
});
"""

MEDIA_TYPES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
    "init.js": "text/javascript",
}


class Asset(NamedTuple):
    """One file of the page, as it is sent."""

    media_type: str
    digest: str
    content: bytes
    gzipped: bytes | None


def add_docs(app: FastAPI) -> None:
    """Serve `/docs` and what it loads; none of it is part of the described API."""
    app.add_route("/docs", _page, include_in_schema=False)
    for name in MEDIA_TYPES:
        app.add_route(f"/docs/assets/{name}", _send, include_in_schema=False)


# Not coroutines, so that Starlette runs them in a thread: whoever comes first waits for 1.7 MB to be compressed.
def _page(_request: Request) -> Response:
    page = PAGE
    for name in MEDIA_TYPES:
        page = page.replace(f"{{{name}}}", f"docs/assets/{name}?v={_asset(name).digest}")
    headers = {
        "Content-Security-Policy": POLICY,
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return HTMLResponse(page, headers=headers)


def _send(request: Request) -> Response:
    asset = _asset(request.url.path.rpartition("/")[2])
    # Another `v` comes from a page of another release: what is here now must not be kept under that address.
    is_current = request.query_params.get("v") == asset.digest
    headers = {
        "Cache-Control": "public, max-age=31536000, immutable" if is_current else "no-cache",
        # Weak: the same for both encodings.
        "ETag": f'W/"{asset.digest}"',
        "Vary": "Accept-Encoding",
        "X-Content-Type-Options": "nosniff",
    }
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if asset.gzipped is None or "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(asset.content, headers=headers, media_type=asset.media_type)
    return Response(asset.gzipped, headers=headers | {"Content-Encoding": "gzip"}, media_type=asset.media_type)


@cache
def _asset(name: str) -> Asset:
    if name == "init.js":
        content = INIT.encode()
    else:
        content = (resources.files("fastapi_swagger") / "resources" / name).read_bytes()
    media_type = MEDIA_TYPES[name]
    gzipped = gzip.compress(content, mtime=0) if media_type.startswith("text/") else None
    return Asset(media_type, hashlib.sha256(content).hexdigest()[:16], content, gzipped)
