"""Which of our two media types a client would rather have."""

EVENT_STREAM = "text/event-stream"


def prefers_event_stream(accept: str) -> bool:
    """Whether `Accept` names the event stream, and wants nothing that JSON would satisfy more than it.

    Wildcards speak for JSON only: every tool sends them, and few of those tools read streams.
    """
    ranges = dict(_ranges(accept))
    stream = ranges.get(EVENT_STREAM, 0.0)
    json = next((ranges[kind] for kind in ("application/json", "application/*", "*/*") if kind in ranges), 0.0)
    return stream > 0 and stream >= json


def _ranges(accept: str) -> list[tuple[str, float]]:
    found = []
    for part in accept.lower().split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        found.append((kind, _quality(parameters)))
    return found


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0
