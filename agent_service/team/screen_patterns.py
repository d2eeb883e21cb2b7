"""What in an answer has to be judged: markers, links in all their forms, and what could become one of them."""

import re

WEB_SCHEMES = r"(?:https?|ftps?|wss?)"
NO_ADDRESS = r"\s<>\"'`"

START = re.compile(
    rf"[\[\]<`&:/\\]|(?<![a-z0-9])(?:(?:{WEB_SCHEMES}|javascript|vbscript|data|file)(?=:)|www\.)",
    re.IGNORECASE | re.ASCII,
)
"""Where in a word something may begin that has to be judged. What comes before it in the word is never changed."""

MAY_START = re.compile(
    r"(?<![a-z0-9])(?:h|ht|htt|https?|ft?|ftps?|wss?|w|ww|www|fi|fil|file"
    r"|j|ja|jav|java|javas|javasc|javascr|javascri|javascrip|javascript"
    r"|v|vb|vbs|vbsc|vbscr|vbscri|vbscrip|vbscript|d|da|dat|data)\Z",
    re.IGNORECASE | re.ASCII,
)
"""The end of a piece that may turn out to be such a beginning."""

MARKER = re.compile(r"\[(\d{1,3})\]", re.ASCII)
MARKERS = re.compile(r"(?:\[\d{1,3}\])+", re.ASCII)
INDEX = re.compile(r"(?<=[A-Za-z0-9_])\[\d{1,3}\](?=\.?[A-Za-z0-9_]|\()", re.ASCII)
"""As in items[0].price: no marker, but a place in something."""

CODE_ENDS = re.compile(r"(`+|\n)")
"""What begins and ends code. Without a fence it does not go on in the next line."""

DESTINATION = re.compile(r"\]\(\s*<?((?:\\.|[^\s()<>\\]|\([^\s()]*\))*)>?\)?")
"""Of a Markdown link or image: after its text, up to its end or to its title."""

DEFINITION = re.compile(r"(\]:\s*<?)([^\s<>]+)")
"""Where a reference leads, as in [1]: //host/path."""

RUNS = re.compile(
    r"(?:javascript|vbscript|data|file|blob|mailto):|[a-z][a-z0-9+.-]*:[/\\]{2}",
    re.IGNORECASE | re.ASCII,
)
"""Where a definition leads that is no web address. Others have a word and a colon behind them in ordinary text, too."""

BEFORE_DESTINATION = ("](", "](<", "]:", "]:<")
"""After these a destination may follow behind blanks."""

HAS_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:|[/\\]{2}|\\", re.IGNORECASE | re.ASCII)
"""How an address begins that leads elsewhere, or that a browser may take for one."""

AUTOLINK = re.compile(r"<([a-z][a-z0-9+.-]{1,31}:[^\s<>]*)>", re.IGNORECASE | re.ASCII)

ELEMENT = re.compile(
    r"<(?=/?(?:a|applet|area|audio|base|body|button|embed|form|frame|frameset|html|iframe|image|img|input|link|math|meta"
    r"|object|picture|portal|script|source|style|svg|template|track|video)(?![\w-]))",
    re.IGNORECASE | re.ASCII,
)
"""The beginning of an HTML element that links, loads, runs or changes a page."""

ATTRIBUTED = re.compile(r"<(?=[a-z][a-z0-9-]*(?:\Z|/(?!>)))", re.IGNORECASE | re.ASCII)
"""The beginning of any element that may have attributes: of a word, where blanks follow. They could run something."""

REST = rf"[^{NO_ADDRESS}/?#]*(?:[/?#][!-~]*?(?=[{NO_ADDRESS}]|[^!-~]|\Z))?"
URL = re.compile(
    rf"(?P<web>(?:(?<![a-z])|(?={WEB_SCHEMES}:[\\/]{{2}})){WEB_SCHEMES}:[\\/]*{REST})"
    rf"|(?P<script>(?<![a-z0-9_])(?:javascript|vbscript|file):(?=[^\s])[^{NO_ADDRESS}]*)"
    rf"|(?P<data>(?<![a-z0-9_])data:[a-z]+/[^{NO_ADDRESS}]*)"
    rf"|(?P<cut>\A:[\\/]{{2}}{REST})"
    rf"|(?P<bare>(?<![:\w\\/])//(?=[\w-]+(?:\.[\w-]+)+|localhost|\[){REST})"
    rf"|(?P<www>(?<![a-z0-9])www\.(?=[\w-]|[^\x00-\x7f]){REST})",
    re.IGNORECASE | re.ASCII,
)
MAY_GO_ON = re.compile(
    rf"[/\\]{{2}}|&|[:\\]\Z|(?<![a-z0-9])(?:(?:{WEB_SCHEMES}|javascript|vbscript|data|file)\Z|www(?:\.|\Z))",
    re.IGNORECASE | re.ASCII,
)
"""A word that is an address, or becomes one where punctuation is drawn to it and more follows."""

SCHEME_BEFORE = re.compile(rf"{WEB_SCHEMES}\Z", re.IGNORECASE | re.ASCII)

HAS_PATH = re.compile(r"(?://|www\.)[^/?#]*[/?#]", re.IGNORECASE)
HOST_GOES_ON = re.compile(r"[\"'`][^\s/?#<>^|\[\]]*\.[a-z0-9-]+\.?(?::\d*)?(?=[/?#\s<>]|\Z)", re.IGNORECASE | re.ASCII)
"""What a renderer that ends addresses at blanks only would take for more of the host before it."""

ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])")
"""A character that Markdown shows without the backslash before it."""

AFTER_ADDRESS = ".,;:!?*_)]}|~"
"""What ends a sentence or closes a bracket belongs to the text and not to the address before it."""

UNDECIDED = re.compile(r"\][(:]|\]\Z|[<&:\\]|(?:/|//[\w-]*)\Z|www\.", re.IGNORECASE | re.ASCII)
"""In a part of a word that was cut anywhere: what may go on in the next part."""

NOT_SEEN = re.compile(r"[\u00ad\u200b\u202a-\u202e\u2060-\u2064\ufeff\U000e0000-\U000e007f]")
"""Characters that take no place, or turn others around: they hide from a person what a machine reads, so they are left
out. Those that join and part letters (U+200C, U+200D) and plain direction marks are writing."""
