"""What holds for every call: who calls, the request id, the error boundary, one log line."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from functools import partial
from typing import Any, NoReturn, TypeAlias

import grpc
from google.rpc import status_pb2
from grpc_status import rpc_status

from agent_service.errors import AgentServiceError, UnauthenticatedError
from agent_service.rpc import status
from agent_service.rpc.tokens import TokenVerifier
from agent_service.telemetry import request_id_var
from agent_service.types import Caller

log = logging.getLogger(__name__)

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = Callable[[Any, Context], Any]

REQUEST_ID_KEY = "x-request-id"
AUTHORIZATION_KEY = "authorization"
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

LOCAL = Caller(subject="local", tenant="default")
"""Who calls from this machine without a token: its operator. A token that says the same names somebody else."""

LOOPBACK = re.compile(r"(ipv4:127\.|ipv6:(\[|%5B)(::1(\]|%5D)|::ffff:127\.)|unix:)")


caller_var: ContextVar[Caller] = ContextVar("caller", default=LOCAL)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler. The boundary is around the iteration: errors of a generator appear there."""

    def __init__(self, verifier: TokenVerifier | None = None) -> None:
        """`verifier` None: no token can be verified, so every one is refused."""
        self._verifier = verifier

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], "Awaitable[grpc.RpcMethodHandler[Any, Any] | None]"],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """See `grpc.aio.ServerInterceptor`."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith("/grpc."):
            return handler
        new_call = partial(_Call, handler_call_details.method, self._verifier)
        # The stubs of grpc describe the handlers of synchronous servers; these are asynchronous.
        inner: Any = handler
        wrap: Any
        if inner.response_streaming:
            wrap = (
                grpc.stream_stream_rpc_method_handler
                if inner.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            behaviour = _guard_stream(inner.stream_stream or inner.unary_stream, new_call)
        else:
            wrap = grpc.unary_unary_rpc_method_handler
            behaviour = _guard_unary(inner.unary_unary, new_call)
        wrapped: grpc.RpcMethodHandler[Any, Any] = wrap(
            behaviour, inner.request_deserializer, inner.response_serializer
        )
        return wrapped


def _guard_unary(inner: Handler, new_call: "Callable[[Context], _Call]") -> Handler:
    async def unary(request: Any, context: Context) -> Any:
        call = new_call(context)
        try:
            call.begin()
            return await inner(request, context)
        except (Exception, asyncio.CancelledError) as err:  # noqa: BLE001 - the boundary
            await call.fail(err)
        finally:
            call.end()

    return unary


def _guard_stream(inner: Handler, new_call: "Callable[[Context], _Call]") -> Handler:
    async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
        call = new_call(context)
        try:
            call.begin()
            # Closed here and now when the caller leaves, and not when the collector comes by.
            async with aclosing(inner(request, context)) as items:
                async for item in items:
                    yield item
        except GeneratorExit:
            call.left()
            raise
        except (Exception, asyncio.CancelledError) as err:  # noqa: BLE001 - the boundary
            await call.fail(err)
        finally:
            call.end()

    return stream


class _Call:
    """One call's bookkeeping."""

    def __init__(self, method: str, verifier: TokenVerifier | None, context: Context) -> None:
        self._method = method
        self._verifier = verifier
        self._context = context
        self._started = time.perf_counter()
        self._code = "OK"
        self._reason: dict[str, str] = {}

    def begin(self) -> None:
        """Set who calls and the request id for everything that this call does.

        Raises:
            UnauthenticatedError: a token that is not valid, or none from another machine.
        """
        metadata = [(key.lower(), str(value)) for key, value in self._context.invocation_metadata() or ()]
        given = dict(metadata).get(REQUEST_ID_KEY, "")
        request_id_var.set(given if REQUEST_ID.fullmatch(given) else str(uuid.uuid4()))
        caller_var.set(self._caller([value for key, value in metadata if key == AUTHORIZATION_KEY]))

    def _caller(self, authorizations: Sequence[str]) -> Caller:
        """Who calls. A token that is there is verified, also where none is needed."""
        if not authorizations:
            if not LOOPBACK.match(self._context.peer() or ""):
                raise UnauthenticatedError("callers from other machines need a token")
            return LOCAL
        scheme, _, token = authorizations[0].partition(" ")
        if len(authorizations) > 1 or scheme.lower() != "bearer" or not token:
            raise UnauthenticatedError("authorization must be given once, as: Bearer TOKEN")
        if self._verifier is None:
            # The caller is not told of our settings; whoever looks why every call fails finds it here.
            log.warning("a call with a token was refused: AGENT_VERIFY_KEY is not set")
            raise UnauthenticatedError("this service is not set up to verify tokens")
        return self._verifier.verify(token)

    async def fail(self, err: BaseException) -> NoReturn:
        """Answer with the error's status; what is unforeseen goes to the log and says nothing outside."""
        if isinstance(err, grpc.aio.AbortError):
            self._code = "ABORTED_BY_HANDLER"
            raise err
        if isinstance(err, asyncio.CancelledError):
            self.left()
            raise err
        if isinstance(err, AgentServiceError):
            reply = status.to_status(err)
            self._code = status.code_name(reply)
            self._reason = {"reason": err.reason}
            if err.__cause__ is not None:
                self._reason["cause"] = type(err.__cause__).__name__
        else:
            log.error("unhandled error in %s", self._method, exc_info=err)
            reply = status.internal()
            self._code = "INTERNAL"
        await abort(self._context, reply)

    def left(self) -> None:
        """The caller left, or its deadline is over; nobody reads a status any more."""
        self._code = "CANCELLED"

    def end(self) -> None:
        """Log the call."""
        duration_ms = round((time.perf_counter() - self._started) * 1000, 1)
        log.info("call", extra={"method": self._method, "code": self._code, "duration_ms": duration_ms} | self._reason)


async def abort(context: Context, reply: status_pb2.Status) -> NoReturn:
    """End a call with a status."""
    await context.abort_with_status(rpc_status.to_status(reply))
    raise AssertionError("abort_with_status raises")
