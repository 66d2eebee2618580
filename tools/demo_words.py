"""Words, names and values drawn at random, so that a member must copy and cannot recall."""

from __future__ import annotations

import random
import string

_VERBS = """
create find get set send open close book order cancel count list add remove update check start
stop move rename print save load mix paint build clean wash cook measure convert compare sort
sell buy rent lend return lock unlock register schedule plan search track rate review archive
copy merge split draw play record share invite assign approve reject deliver collect repair
plant water feed weigh translate describe generate look_up fetch show calculate estimate
"""
_NOUNS = """
account album apple boat book bottle box bridge bus cake car card cat chair city client clock
coin company contact customer desk dog door drawing driver event farm field file fish flight
flower game garden gift group guest hat horse hotel house invoice item job key kite lake lamp
letter list machine map meal medal meeting member message mine mountain movie note number office
order owner package painting paper park part party password path pen person phone photo picture
piece pirate plan plane plant player poem price project queue recipe record report river road
robot room route rule school score seat shelf ship shirt shoe shop signal song star station
stock store street student table tag task team tent ticket tool tower town toy train tree trip
truck user village voucher wagon wall watch wheel window worker
"""
_PARAMETERS = """
name title owner color size weight height width count number amount price city place country
date day hour minutes language topic code label note text message status kind level score limit
speed target source address street email phone first second third x y left right start end value
total quantity age floor room seat key word query team author description reason style unit
currency temperature distance priority group customer client item material shape mode
"""
_ADJECTIVES = """
red blue green small big old new quick quiet warm cold round soft strong bright dark fresh sweet
empty full happy lucky heavy light plain gentle clever silver golden wooden
"""
_FIRST = "b c d f g h j k l m n p r s t v w z br ch dr fl gr kl pr sh st tr th"
_MIDDLE = "a e i o u ai ea oo ou ia"
VERBS, NOUNS = _VERBS.split(), _NOUNS.split()
PARAMETERS, ADJECTIVES = _PARAMETERS.split(), _ADJECTIVES.split()
FIRST, MIDDLE = _FIRST.split(), _MIDDLE.split()
LAST = ["", "", "n", "r", "l", "s", "t", "k", "m", "x", "nd", "rt", "lo", "na", "ra", "vi"]
SCRIPTS = (  # code point ranges whose characters are all assigned
    (0x4E00, 0x9FA5), (0x4E00, 0x9FA5), (0x4E00, 0x5E00), (0x3042, 0x3093), (0x30A2, 0x30F3),
    (0xAC00, 0xD7A3), (0x0410, 0x044F), (0x03B1, 0x03C9), (0x00E0, 0x00F6), (0x0561, 0x0586),
    (0x1F600, 0x1F64F),
)  # fmt: skip
ASIDES = (
    "",
    "",
    "",
    "",
    " Please.",
    " Thank you.",
    " It is for my friend.",
    " I need it today.",
    " Be quick.",
    " My mother asked for it.",
)


def word(rng: random.Random, syllables: int = 0) -> str:
    """A word that no language has, in lower case."""
    parts = syllables or rng.choice((1, 2, 2, 2, 3))
    made = "".join(rng.choice(FIRST) + rng.choice(MIDDLE) for _ in range(parts))
    return made + rng.choice(LAST)


def name(rng: random.Random) -> str:
    """A name that nobody has."""
    return word(rng, rng.choice((1, 2, 2, 3))).capitalize()


def foreign(rng: random.Random) -> str:
    """A few characters of one script, at random; sometimes two runs of them."""
    low, high = rng.choice(SCRIPTS)
    made = "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 8)))
    if rng.random() < 0.2:
        low, high = rng.choice(SCRIPTS)
        made += "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 5)))
    return made


def label(rng: random.Random) -> str:
    """Letters and digits as in a code, an address or a file name."""
    letters = "".join(rng.choice(string.ascii_letters) for _ in range(rng.randint(1, 4)))
    return rng.choice(
        (
            f"{letters}-{rng.randint(1, 9999)}",
            f"{word(rng)}@{word(rng)}.com",
            f"{word(rng)}_{word(rng)}",
            f"{word(rng)}.{rng.choice(('txt', 'csv', 'png'))}",
            f"{letters}{rng.randint(0, 99)}{rng.choice(string.ascii_lowercase)}",
        )
    )


def phrase(rng: random.Random) -> str:
    """Two to five words, real and made up."""
    words = [
        rng.choice((rng.choice(NOUNS), rng.choice(ADJECTIVES), word(rng)))
        for _ in range(rng.randint(2, 5))
    ]
    text = " ".join(words)
    return text if rng.random() < 0.6 else text.title()


def described(rng: random.Random) -> str:
    """A noun with an adjective, for small talk."""
    return f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"


def text_value(rng: random.Random) -> str:
    """A string to copy."""
    draw = rng.random()
    if draw < 0.3:
        return name(rng)
    if draw < 0.45:
        return f"{name(rng)} {name(rng)}"
    if draw < 0.6:
        return phrase(rng)
    if draw < 0.68:
        return rng.choice(NOUNS)
    if draw < 0.76:
        return word(rng)
    return label(rng) if draw < 0.84 else foreign(rng)


def whole(rng: random.Random) -> int:
    """A whole number of one to six digits, small ones more often, sometimes negative."""
    value = rng.randint(0, 10 ** rng.choice((1, 1, 2, 2, 3, 4, 6)))
    return -value if rng.random() < 0.05 else value


def decimal(rng: random.Random) -> float:
    """A number with one or two decimals."""
    return round(rng.uniform(0, 10 ** rng.choice((1, 2, 3))), rng.choice((1, 2)))
