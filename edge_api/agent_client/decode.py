"""From a failed gRPC call to an `UpstreamError`. Nothing of grpc or google leaves this package."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from edge_api.errors import UpstreamError

log = logging.getLogger(__name__)

DOMAIN = "answerdesk"
DETAILS_KEY = "grpc-status-details-bin"
# Ours to mend, and nobody else will notice: the caller is told only that the agent failed.
REFUSED = {"UNAUTHENTICATED", "PERMISSION_DENIED"}


@contextmanager
def decoding() -> Iterator[None]:
    """Turn a failed call into an `UpstreamError`; its text goes no further than `UpstreamError.message`.

    Raises:
        UpstreamError: the call failed.
    """
    try:
        yield
    except grpc.aio.AioRpcError as err:
        # Not chained: a traceback would carry the upstream's text into the log.
        raise upstream_error(err) from None


def upstream_error(err: grpc.aio.AioRpcError) -> UpstreamError:
    """Read the status and its google.rpc details, and log which kind it was."""
    reason, retry_after_s, violations = "", None, []
    for packed in _details(err):
        info, retry, bad = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
        if packed.Is(info.DESCRIPTOR) and packed.Unpack(info) and info.domain == DOMAIN:
            reason = info.reason
        elif packed.Is(retry.DESCRIPTOR) and packed.Unpack(retry):
            retry_after_s = max(0.0, retry.retry_delay.ToTimedelta().total_seconds())
        elif packed.Is(bad.DESCRIPTOR) and packed.Unpack(bad):
            violations = [(each.field, each.description) for each in bad.field_violations]
    code = err.code().name
    level = logging.ERROR if code in REFUSED else logging.WARNING
    log.log(level, "the agent service failed a call", extra={"grpc_code": code, "reason": reason})
    return UpstreamError(code, reason, err.details() or "", retry_after_s=retry_after_s, field_violations=violations)


def _details(err: grpc.aio.AioRpcError) -> list[any_pb2.Any]:
    for key, value in err.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return list(status_pb2.Status.FromString(value).details)
            except DecodeError:
                return []
    return []
