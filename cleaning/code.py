"""Code in Markdown. What holds for prose does not hold for code, so several steps need to find it:
an entity in code may be what the text is about (normalise), a tag in code does not make a document
a web page (pages), nor does wiki source make it a wiki page (markup), and code has no Korean words
(rules).
"""
import re

FENCES = ("```", "~~~")
FENCE = FENCES[0]  # what html_to_text writes around a <pre>

# CommonMark 4.5 and 6.1, simplified: one or two backticks, closed by as many on the same line;
# three or more, closed by as many anywhere; or lines between two that begin with ~~~. Without a
# closing mark it is not code. (Each alternative begins with the character it looks for and only
# then looks behind. Beginning with the lookbehind takes seven times as long.)
CODE = (
    r"(?P<code>"
    r"`(?<!``)(?P<few>`?)(?!`)(?:[^`\n]++|(?!`(?P=few)(?!`))`++)*+`(?P=few)"
    r"|`(?<!``)(?P<many>``++)(?:[^`]++|(?!`(?P=many)(?!`))`++)*+`(?P=many)"
    r"|~(?<![^\n]~)~~[^\n]*(?:\n(?!~~~)[^\n]*)*+\n~~~+"
    r")"
)
IN_CODE = re.compile(CODE)


def without_code(text: str, replacement: str = " ") -> str:
    """Replace each piece of code in the text.

    >>> without_code("`x`는 이렇게 쓴다.\\n~~~\\nx = 1\\n~~~\\n")  # 'x is written like this.'
    ' 는 이렇게 쓴다.\\n \\n'
    >>> without_code("``a ` b``, ```c``, `d")  # with a backtick inside; closed by too few, by none
    ' , ```c``, `d'
    """
    if "`" not in text and "~~~" not in text:
        return text
    return IN_CODE.sub(replacement, text)
