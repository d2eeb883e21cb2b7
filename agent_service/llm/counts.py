"""What both APIs say of the tokens that they have counted."""

from typing import Annotated

import msgspec

Tokens = Annotated[int, msgspec.Meta(ge=0, le=10**9)]


class InputDetails(msgspec.Struct):
    """What the input tokens were."""

    cached_tokens: Tokens | None = None


class OutputDetails(msgspec.Struct):
    """What the output tokens were."""

    reasoning_tokens: Tokens | None = None
