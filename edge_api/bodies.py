"""What bodies this edge reads."""

from email.message import Message

from fastapi import Request

from edge_api.errors import UnsupportedMediaTypeError


async def require_json(request: Request) -> None:
    """Refuse a body that does not say it is JSON: a form could be posted by a page of any origin.

    Raises:
        UnsupportedMediaTypeError: it says something else.
    """
    header = Message()
    header["content-type"] = request.headers.get("content-type", "")
    subtype = header.get_content_subtype()
    is_json = header.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json"))
    if not is_json and await request.body():
        raise UnsupportedMediaTypeError("send the body as application/json")
