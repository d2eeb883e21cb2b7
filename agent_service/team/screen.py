"""What of a model's text may be shown, decided while it streams.

A model may have been talked into anything by what it read. Whatever it writes, a reader sees no marker without a
source, and no link or image that leads elsewhere than the roster and the documents allow: docs/adr/0013-the-screen.md.
"""

import html
import re
import unicodedata
from collections.abc import Callable

from agent_service.team.screen_patterns import (
    AFTER_ADDRESS,
    ATTRIBUTED,
    AUTOLINK,
    BEFORE_DESTINATION,
    CODE_ENDS,
    DEFINITION,
    DESTINATION,
    ELEMENT,
    ESCAPED,
    HAS_PATH,
    HAS_SCHEME,
    HOST_GOES_ON,
    INDEX,
    MARKER,
    MARKERS,
    MAY_GO_ON,
    MAY_START,
    NOT_SEEN,
    RUNS,
    SCHEME_BEFORE,
    START,
    UNDECIDED,
    URL,
)

REMOVED = "[link removed]"

MOST_HELD = 1_024
"""Most characters that wait for their judgement. What is longer is judged in parts."""

LONGEST_PLAIN = 256
"""Plain characters of one word that are looked at together: writing without blanks has words as long as its text."""

LED_BY = 12
"""Characters before a part that are remembered: more than a scheme has, which a part may begin within."""


class AnswerScreen:
    """Takes a model's text in pieces and gives back what may be shown of it.

    The text is judged word by word, so how it was cut into pieces makes no difference to what comes out. Of a word
    that has nothing to be judged everything is given back at once.
    """

    def __init__(self, is_source: Callable[[int], bool], may_lead_to: Callable[[str], bool]) -> None:
        """`is_source`: whether a marker's number has a source. `may_lead_to`: whether a URL may be shown."""
        self._is_source = is_source
        self._may_lead_to = may_lead_to
        self._buffer = ""
        self._shown = 0
        self._before = ""
        self._last = ""
        self._code = ""
        self.dropped_markers = 0
        self.removed_links = 0

    def feed(self, text: str) -> str:
        """Take a piece; what can be shown by now."""
        self._buffer += NOT_SEEN.sub("", text)
        return self._judged(is_whole=False)

    def end(self) -> str:
        """No more comes; what is left to show."""
        return self._judged(is_whole=True)

    def _judged(self, *, is_whole: bool) -> str:
        out = [self._plain_words()]
        while self._buffer:
            start = len(self._buffer) - len(self._buffer.lstrip())
            if start > MOST_HELD:
                out.append(self._judge(self._buffer[:MOST_HELD], "", ""))
                self._take(MOST_HELD)
                continue
            end = self._word_end(start)
            if end is None and not is_whole:
                # Blanks wait for what follows them: a marker may be taken out with those before it.
                show = start + self._plain(self._led(start), self._buffer[start:])
                if show > max(start, self._shown):
                    out.append(self._buffer[self._shown : show])
                    self._shown = show
                break
            end = len(self._buffer) if end is None else end
            judged = self._judge(self._buffer[:start], self._buffer[start:end], self._buffer[end : end + 1])
            out.append(judged[self._shown :])
            self._remember(judged)
            self._take(end)
            self._shown = 0
        return "".join(out)

    def _plain_words(self) -> str:
        """All but the last word, where none of them has anything to be judged: most text has not."""
        text = self._buffer
        if START.search(self._before + text, len(self._before)):
            return ""
        last = len(text) - len(text.rsplit(None, 1)[-1]) if text and not text[-1].isspace() else len(text)
        end = len(text[:last].rstrip())
        if not end:
            return ""
        words = text[:end]
        if "\n" in words and not _is_fence(self._code):
            self._code = ""
        shown, self._shown = self._shown, 0
        self._remember(words)
        self._take(end)
        return words[shown:]

    def _remember(self, shown: str) -> None:
        self._last = (self._last + shown).rpartition("\n")[2].rpartition(" ")[2][-LONGEST_PLAIN:]

    def _take(self, end: int) -> None:
        self._before = (self._before + self._buffer[:end])[-LED_BY:]
        self._buffer = self._buffer[end:]

    def _word_end(self, start: int) -> int | None:
        """Where the word that begins at `start` ends; None where that is not known yet."""
        text = self._buffer
        end = _next_blank(text, start)
        while end is not None and text[start:end].endswith(BEFORE_DESTINATION):
            end = _next_blank(text, len(text) - len(text[end:].lstrip()))
        word = text[start:end]
        before = self._led(start)
        begin = self._plain(before, word, is_whole=end is not None)
        if begin > LONGEST_PLAIN:
            return start + LONGEST_PLAIN
        markers = MARKERS.match(word, begin, begin + MOST_HELD)
        if markers is not None and markers.end() < len(word) and _ends_markers(before, word, markers):
            return start + markers.end()
        if len(word) - begin > MOST_HELD:
            return start + begin + _part(word[begin : begin + MOST_HELD])
        return end

    def _led(self, start: int) -> str:
        """What is right before the word that begins at `start`: it decides whether an address can begin there."""
        return self._buffer[start - 1] if start else self._before

    @staticmethod
    def _plain(before: str, word: str, *, is_whole: bool = False) -> int:
        """How much of a word, from its beginning, is never changed."""
        led = before + word
        found = START.search(led, len(before)) or (None if is_whole else MAY_START.search(led, len(before)))
        return found.start() - len(before) if found else len(word)

    def _judge(self, blanks: str, word: str, following: str) -> str:
        """A whole word with the blanks before it, as it may be shown."""
        if "\n" in blanks and not _is_fence(self._code):
            self._code = ""
        before = blanks[-1:] or self._before
        plain = self._plain(before, word, is_whole=True)
        begin, rest = word[:plain], word[plain:]
        if not rest:
            return blanks + word
        dropped = self.dropped_markers
        is_cut = len(rest) > MOST_HELD - 5 and _goes_on(rest, following)
        rest = self._cleaned(before + begin, rest)
        if is_cut and not rest.endswith(REMOVED) and (UNDECIDED.search(rest) or MAY_START.search(rest)):
            # The next part could make an address of it.
            self.removed_links += 1
            rest += REMOVED
        if self.dropped_markers > dropped and not begin and "\n" not in blanks:
            next_character = rest[:1] or following
            if not next_character or next_character.isspace() or (next_character in ".,;:!?)" and self._ends_plainly()):
                return rest
        return blanks + begin + rest

    def _ends_plainly(self) -> bool:
        """Whether what was shown last can be drawn to what follows: they make no address together."""
        return MAY_GO_ON.search(self._last) is None

    def _cleaned(self, led: str, text: str) -> str:
        """Without markers and links, until nothing is left: what stood around one of them may be another."""
        code = self._code
        while True:
            self._code = code
            # Markers first: what they stood between may be an address once they are gone.
            cleaned = self._without_links(led, self._without_markers(led[-1:], text))
            if cleaned == text:
                return text
            text = cleaned

    # --- links ---

    def _without_links(self, led: str, text: str) -> str:
        """`led`: what is right before the text."""
        if self._hides_an_address(led, text):
            self.removed_links += 1
            return REMOVED
        text = DEFINITION.sub(self._definition, DESTINATION.sub(self._destination, text))
        text = AUTOLINK.sub(self._autolink, text)
        text = ELEMENT.sub(self._element, text)
        text = ATTRIBUTED.sub(self._element, text)
        return URL.sub(lambda found: self._address(led, found), text)

    def _hides_an_address(self, led: str, text: str) -> bool:
        """Whether an address is written so that only a renderer finds it."""
        if "&" not in text and "\\" not in text and text.isascii():
            return False
        text = led + text
        once = html.unescape(text)
        seen = NOT_SEEN.sub("", unicodedata.normalize("NFKC", html.unescape(once)))
        # As it stands, as Markdown takes a backslash, and as browsers do.
        readings = {seen, ESCAPED.sub(r"\1", seen), seen.replace("\\", "/")} - {text}
        known = set(_addresses(text))
        return any(
            not self._allows(found) for reading in readings for found in _addresses(reading) if found not in known
        )

    def _allows(self, address: str) -> bool:
        address = address.rstrip(AFTER_ADDRESS)
        if ":" in address and not address.partition(":")[2].strip("\\/"):
            return True
        before = "https:" if address.startswith("//") else "https://" if address.lower().startswith("www.") else ""
        return self._may_lead_to(before + address)

    def _destination(self, found: re.Match[str]) -> str:
        given = found[1]
        leads_elsewhere = HAS_SCHEME.match(_meant(given)) or HAS_SCHEME.match(given)
        if not given or not leads_elsewhere or self._may_lead_to(f"https:{given}" if given[:2] == "//" else given):
            return found[0]
        self.removed_links += 1
        return "]"

    def _definition(self, found: re.Match[str]) -> str:
        given, meant = found[2], _meant(found[2])
        is_relative = meant.startswith(("//", "/\\", "\\"))
        runs = RUNS.match(meant) is not None and (len(meant) > meant.index(":") + 1 or found[1].endswith("<"))
        if not (is_relative or runs or URL.match(meant)):
            return found[0]
        if self._may_lead_to(f"https:{given}" if given[:2] == "//" else given):
            return found[0]
        if URL.match(given) and not is_relative:
            # Found there, too, and without what ends a sentence.
            return found[0]
        self.removed_links += 1
        return found[1] + REMOVED

    def _autolink(self, found: re.Match[str]) -> str:
        if self._may_lead_to(found[1]) or URL.match(found[1]):
            return found[0]
        # Only its brackets make it a link.
        self.removed_links += 1
        return found[1]

    def _element(self, _: re.Match[str]) -> str:
        self.removed_links += 1
        return "&lt;"

    def _address(self, led: str, found: re.Match[str]) -> str:
        kind, whole = str(found.lastgroup), found[0]
        address = whole.rstrip(AFTER_ADDRESS)
        scheme = SCHEME_BEFORE.search(led)
        if kind == "cut" and scheme is None:
            # Of a scheme that no renderer makes a link of.
            return whole
        goes_on = not HAS_PATH.search(whole) and HOST_GOES_ON.match(found.string, found.end())
        if kind in {"web", "cut"} and not goes_on and not address.partition(":")[2].strip("\\/"):
            # It says how addresses begin, and has none.
            return whole
        before = {"cut": scheme[0] if scheme else "", "bare": "https:", "www": "https://"}.get(kind, "")
        if kind not in {"script", "data"} and not goes_on and self._may_lead_to(before + address):
            return whole
        self.removed_links += 1
        return REMOVED + whole[len(address) :]

    # --- markers ---

    def _without_markers(self, before: str, text: str) -> str:
        """Without those that have no source; in code nothing is a marker."""
        parts = CODE_ENDS.split(text)
        for place, part in enumerate(parts):
            if part == "\n":
                self._code = self._code if _is_fence(self._code) else ""
            elif part.startswith("`"):
                self._code = "" if self._code == part else self._code or part
            elif not self._code:
                # Nothing is taken out of what ends code, so this is what stands before the part.
                led = (parts[place - 1] if place else before)[-1:]
                parts[place] = self._marked(led + part)[len(led) :]
        return "".join(parts)

    def _marked(self, text: str) -> str:
        while (marked := self._marked_once(text)) != text:
            text = marked
        return text

    def _marked_once(self, text: str) -> str:
        indices = {found.start() for found in INDEX.finditer(text)}

        def keep(found: re.Match[str]) -> str:
            if found.start() in indices or self._is_source(int(found[1])):
                return found[0]
            self.dropped_markers += 1
            return ""

        return MARKER.sub(keep, text)


def _ends_markers(before: str, word: str, markers: re.Match[str]) -> bool:
    """Whether what follows these markers makes no link and no index of them."""
    following = word[markers.end()]
    led = word[markers.start() - 1] if markers.start() else before[-1:]
    is_index = led.isascii() and (led.isalnum() or led == "_")
    return following not in "([:" and not (is_index and (following == "." or following.isalnum()))


def _is_fence(code: str) -> bool:
    return len(code) >= 3


def _is_letter(character: str) -> bool:
    """Of a script that needs no blanks, and of no scheme, host or entity."""
    return not character.isascii() and character.isalnum()


def _part(word: str) -> int:
    """Where an overlong word is cut: behind a letter that belongs to no address, or else anywhere but in a marker."""
    letter = next((end for end in range(len(word), 0, -1) if _is_letter(word[end - 1])), 0)
    marker = re.search(r"\[\d{0,3}\Z", word)
    return letter or (marker.start() if marker else 0) or len(word)


def _goes_on(part: str, following: str) -> bool:
    """Whether an overlong part was cut where it may go on."""
    is_between = bool(following) and (part[-1].isspace() or part.endswith(BEFORE_DESTINATION))
    return is_between or (bool(following.strip()) and not _is_letter(part[-1]))


def _meant(destination: str) -> str:
    """A destination as a renderer reads it."""
    plain = NOT_SEEN.sub("", ESCAPED.sub(r"\1", html.unescape(destination)))
    return re.sub(r"[\x00-\x20]", "", plain)


def _next_blank(text: str, start: int) -> int | None:
    found = re.compile(r"\s").search(text, start)
    return found.start() if found else None


def _addresses(text: str) -> list[str]:
    return [found[0] for found in URL.finditer(text)] + [
        found[1] for found in DESTINATION.finditer(text) if HAS_SCHEME.match(found[1])
    ]
