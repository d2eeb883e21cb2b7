"""A session's title, made from its first message."""

TITLE_CHARACTERS = 60


def title_of(message: str) -> str:
    """The first line that says something, cut between words.

    Args:
        message: what a person sent; not only white space.

    Returns:
        1 to 61 characters, the last of a cut title being an ellipsis.
    """
    line = next((" ".join(line.split()) for line in message.splitlines() if line.strip()), "")
    if len(line) <= TITLE_CHARACTERS:
        return line
    cut = line[: TITLE_CHARACTERS + 1]
    # A word as long as a title is cut anywhere; a language without spaces, too.
    words = cut.rpartition(" ")[0]
    return f"{words if len(words) > TITLE_CHARACTERS // 2 else cut[:TITLE_CHARACTERS].rstrip()}…"
