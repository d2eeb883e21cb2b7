"""What of a model's text may be shown: decided while it streams."""

from collections.abc import Callable


class AnswerScreen:
    """Takes a model's text in pieces and gives back what may be shown of it."""

    def __init__(self, is_source: Callable[[int], bool], may_lead_to: Callable[[str], bool]) -> None:
        """`is_source`: whether a marker's number has a source. `may_lead_to`: whether a URL may be shown."""
        self._is_source = is_source
        self._may_lead_to = may_lead_to
        self.dropped_markers = 0
        self.removed_links = 0

    def feed(self, text: str) -> str:
        """Take a piece; what can be shown by now."""
        return text

    def end(self) -> str:
        """No more comes; what is left to show."""
        return ""
