"""Formats of strings, as regular expressions: each says a part of what its standard allows.

A value that is written is accepted by the usual validators (Pydantic, ``jsonschema``); not every
value that these accept can be written: years have four digits and no leading zero, an address of
the web starts with ``http``, IPv6 is written out in full.
"""

from __future__ import annotations

_YEAR = r"[1-9]\d{3}"
_LEAP_YEAR = r"([1-9]\d(0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)"
_DATE = (
    rf"({_YEAR}-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)"
    rf"|02-(0[1-9]|1\d|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-](0\d|1[0-3]):[0-5]\d)"
_OF_A_DAY = r"(\d{1,2}H(\d{1,2}M)?(\d{1,2}S)?|\d{1,2}M(\d{1,2}S)?|\d{1,2}S)"
_LABEL = r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?"
_HOST = rf"[a-z]([a-z0-9-]{{0,30}}[a-z0-9])?(\.{_LABEL}){{0,3}}\.[a-z]{{2,6}}"
_BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = rf"({_BYTE}\.){{3}}{_BYTE}"
_IPV6 = r"([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}"
_URL = rf"https?://{_HOST}(:[1-9]\d{{0,3}})?(/[A-Za-z0-9._~-]{{1,64}}){{0,16}}/?"
_HEX = "[0-9a-f]"

PATTERNS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": rf"{_DATE}T{_TIME}",
    "duration": rf"P(\d{{1,3}}D(T{_OF_A_DAY})?|\d{{1,3}}W|T{_OF_A_DAY})",
    "email": rf"[A-Za-z0-9_+-]{{1,32}}(\.[A-Za-z0-9_+-]{{1,16}}){{0,2}}@{_HOST}",
    "hostname": _HOST,
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "ipvanyaddress": rf"({_IPV4}|{_IPV6})",
    "uri": _URL,
    "url": _URL,
    "uuid": f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}",
    "byte": r"([A-Za-z0-9+/]{4})*([A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?",
    **{
        f"uuid{version}": (
            f"{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-[89ab]{_HEX}{{3}}-{_HEX}{{12}}"
        )
        for version in range(1, 9)
    },
}
PATTERNS["base64"] = PATTERNS["byte"]

RANGES = {  # formats of whole numbers
    "int32": (-(2**31), 2**31 - 1),
    "uint32": (0, 2**32 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "uint64": (0, 2**64 - 1),
}

SAY_NOTHING = frozenset(  # hints for a form, not conditions on the value
    ("password", "path", "float", "double", "decimal", "multi-line", "textarea")
)
