"""The public edge of Answerdesk: REST, server-sent events and CORS outside, gRPC inside."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("answerdesk")
except PackageNotFoundError:  # pragma: no cover - run from a tree that was never installed
    __version__ = "0+unknown"
