"""Texts of others made fit to show: on a page, in a picture, in a table."""

import re

# Control characters, line ends, what turns or hides text, and what is no character.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff0-\uffff"
    "\U000e0000-\U000e0fff]"
)


def shown(text: object, longest: int = 200, ending: str = "…") -> str:
    """One line of a text: what cannot be printed, or turns or hides text, is the replacement character.

    Args:
        text: anything.
        longest: characters that are left at most, more than `ending` has.
        ending: of a text that is cut.
    """
    line = str(text)
    cut = line if len(line) <= longest else f"{line[: longest - len(ending)]}{ending}"
    return _UNSAFE.sub("\ufffd", cut)
