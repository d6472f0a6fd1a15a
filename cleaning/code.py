"""Code in Markdown. What holds for prose does not hold for code, and several steps ask where it is:
an entity in it may be what is shown (normalise), a tag in it makes no page (pages), wiki source in
it makes no wiki page (markup), and its words are not Korean (rules).
"""
import re

FENCES = ("```", "~~~")
FENCE = FENCES[0]  # what html_to_text writes around a <pre>

# CommonMark 4.5 and 6.1, simplified: one or two backticks, and as many behind the code on the same
# line; three or more, and as many behind it anywhere; lines between two that begin with ~~~. What
# nothing closes is not code. (Each alternative begins with the character that it looks for, and
# looks behind it then. Beginning with what must stand in front takes seven times as long.)
CODE = (
    r"(?P<code>"
    r"`(?<!``)(?P<few>`?)(?!`)(?:[^`\n]++|(?!`(?P=few)(?!`))`++)*+`(?P=few)"
    r"|`(?<!``)(?P<many>``++)(?:[^`]++|(?!`(?P=many)(?!`))`++)*+`(?P=many)"
    r"|~(?<![^\n]~)~~[^\n]*(?:\n(?!~~~)[^\n]*)*+\n~~~+"
    r")"
)
IN_CODE = re.compile(CODE)


def without_code(text: str, replacement: str = " ") -> str:
    """The text with something else for each piece of code.

    >>> without_code("`x`는 이렇게 쓴다.\\n~~~\\nx = 1\\n~~~\\n")  # 'x is written like this.'
    ' 는 이렇게 쓴다.\\n \\n'
    >>> without_code("``a ` b``, ```c``, `d")  # with a backtick inside; closed by too few, by none
    ' , ```c``, `d'
    """
    if "`" not in text and "~~~" not in text:
        return text
    return IN_CODE.sub(replacement, text)
