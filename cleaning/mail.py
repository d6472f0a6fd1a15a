"""E-mail addresses: an @ may also be code, a path on another machine, or a password in a URL.

So the pattern matches everything spelled like an address, and is_email drops what is not one:

    >>> text = "kim@naver.com git@github.com:kim/whale.git y = x@w.mT"
    >>> [(match[0], is_email(match)) for match in EMAIL_PATTERN.finditer(text)]
    [('kim@naver.com', True), ('git@github.com', False), ('x@w.mT', False)]

There are three patterns: plain addresses, addresses with spaces around the @, and addresses spelled
out to hide them from crawlers, such as kim (at) naver (dot) com.
"""
import regex

from cleaning.personal import Kind, words_before

# ---- Addresses ----------------------------------------------------------------------------------

# Before the @. Possessive (the + at the end): @ is not one of these characters, so if the longest
# name fails, there is no shorter one to try.
NAME = r"(?<! [\w.+%-] ) (?P<name> [a-z0-9] [\w.+%-]{0,63}+ )"
HOST = r"(?P<host> (?: [a-z0-9-]{1,63} \. ){1,8} )"
# The end of an address. It may not be followed by more of a name, nor by a method call's bracket,
# as in x.to(device). In kim@naver.com(김철수) the bracket holds a person's name.
TOP = r"(?P<top> [a-z]{2,20} ) (?! [\w-] | \.\w | \( (?![가-힣]) )"
FLAGS = regex.VERBOSE | regex.ASCII | regex.IGNORECASE

EMAIL_PATTERN = regex.compile(rf"{NAME} @ {HOST} {TOP}", FLAGS)

# Spelled out to hide it from crawlers: kim (at) naver (dot) com, kim골뱅이naver.com. The Korean
# name for @ is 골뱅이, a snail.
SPELLED_AT = regex.compile(r"[(\[{](?:at|골뱅이)[)\]}]|골뱅이", regex.IGNORECASE)
SPELLED_DOT = r"(?: \. | [ ]?[(\[{]dot[)\]}][ ]? )"
SPELLED_PATTERN = regex.compile(
    rf"""
    {NAME}
    [ ]? (?: {SPELLED_AT.pattern} ) [ ]?
    (?P<host> (?: [a-z0-9-]{{1,63}} {SPELLED_DOT} ){{1,8}} )
    {TOP}
    """,
    FLAGS,
)

# With spaces around the @ it may also be "see you @ example.com", or a matmul. It counts as an
# address if it is at a mail service, or directly after 메일 (mail).
SERVICE = "naver|daum|hanmail|kakao|nate|gmail|hotmail|outlook|yahoo|icloud|empal|paran|lycos"
SPACED_PATTERN = regex.compile(
    rf"""
    {NAME} [ ]? @ [ ]?
    (?: (?P<service> {SERVICE} ) [ ]?\.[ ]? (?: co [ ]?\.[ ]? )? | {HOST} )
    {TOP}
    """,
    FLAGS,
)
MAIL_DIRECTLY = regex.compile(
    r"(?: 메일 (?:[ ]?주소)? [은는]? [ ]? :? | mail [ ]? : ) [ ]? $",  # 주소: address
    regex.VERBOSE | regex.IGNORECASE,
)
# https://user:secret@host.com, where "secret" looks like the name of an address.
INSIDE_URL = regex.compile(r"://[^\s@)]*$")
# user@host.com:path or user@host.com:~/path: a path on another machine.
REMOTE_PATH = regex.compile(r":[\w.~-]*/", regex.ASCII)


def is_email(match: regex.Match) -> bool:
    """Whether a match has a real top-level domain and is neither a user in a URL or on another
    machine, nor code."""
    top = match["top"]
    if top.lower() not in TOP_LEVEL:
        return False
    text = match.string
    # Ours, chosen by hand: in most URLs, 60 characters cover everything before the password.
    before = text[max(0, match.start() - 60):match.start()]
    if INSIDE_URL.search(before) or REMOTE_PATH.match(text, match.end()):
        return False
    if match["name"] == "git" or match["name"].startswith("self."):
        return False

    host = match["host"] or ""  # None if a service matched
    is_attribute = host.startswith("self.")  # x@self.to
    is_transpose = top[0].islower() and not top.islower()  # x@w.mT
    is_subscript = len(top) == 2 and text.startswith("[", match.end())  # x@w.at[0]
    return not is_attribute and not is_transpose and not is_subscript


def is_spaced_email(match: regex.Match) -> bool:
    """The same, and it is at a mail service or directly after 메일."""
    is_mail = match["service"] or MAIL_DIRECTLY.search(words_before(match))
    return bool(is_mail) and is_email(match)


EMAIL = Kind("email", EMAIL_PATTERN, is_email)
SPACED_EMAIL = Kind("email", SPACED_PATTERN, is_spaced_email)
SPELLED_EMAIL = Kind("email", SPELLED_PATTERN, is_email)

# ---- Top-level domains --------------------------------------------------------------------------

# Two-letter domains are countries: the codes of ISO 3166-1 that are in DNS, and eu, uk, su.
COUNTRIES = (
    "ac ad ae af ag ai al am ao aq ar as at au aw ax az ba bb bd be bf bg bh bi bj bm bn bo br bs "
    "bt bw by bz ca cc cd cf cg ch ci ck cl cm cn co cr cu cv cw cx cy cz de dj dk dm do dz ec ee "
    "eg er es et eu fi fj fk fm fo fr ga gd ge gf gg gh gi gl gm gn gp gq gr gs gt gu gw gy hk hm "
    "hn hr ht hu id ie il im in io iq ir is it je jm jo jp ke kg kh ki km kn kp kr kw ky kz la lb "
    "lc li lk lr ls lt lu lv ly ma mc md me mg mh mk ml mm mn mo mp mq mr ms mt mu mv mw mx my mz "
    "na nc ne nf ng ni nl no np nr nu nz om pa pe pf pg ph pk pl pm pn pr ps pt pw py qa re ro rs "
    "ru rw sa sb sc sd se sg sh si sk sl sm sn so sr ss st su sv sx sy sz tc td tf tg th tj tk tl "
    "tm tn to tr tt tv tw tz ua ug uk us uy uz va vc ve vg vi vn vu wf ws ye yt za zm zw"
)
# Longer domains in which people have mail (IANA, root zone). The root zone has a thousand more,
# among them map, zip, date and run: names of methods, which may follow a matmul.
GENERIC = (
    "com net org edu gov mil info biz name dev app pro mobi asia coop aero jobs museum travel "
    "academy accountants agency art associates bank blog builders business capital care careers "
    "center chat church city cloud club community company consulting cool design digital direct "
    "doctor education email energy engineer engineering enterprises events expert finance fund "
    "gallery games global group guide guru health help holdings hospital host house industries "
    "institute international investments kim kiwi land law lawyer legal life limited live london "
    "ltd management market marketing media moe money network news ninja one online partners photo "
    "photography photos pictures press productions properties realty restaurant school science "
    "services shop site social software solutions space store studio support systems team tech "
    "technology today tokyo tools top tours training university vip website wiki work works world "
    "xyz zone"
)
TOP_LEVEL = frozenset(f"{COUNTRIES} {GENERIC}".split())
