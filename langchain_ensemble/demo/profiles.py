"""A handful of country profiles, for retrieval and for a look-up tool. Written for this demo.

The facts are in the public domain; the numbers are rounded.
"""

from __future__ import annotations

FACTS = {
    "Iceland": {
        "capital": "Reykjavik",
        "region": "Europe",
        "peak": "Hvannadalshnukur",
        "language": "Icelandic",
        "currency": "the krona",
    },
    "Kenya": {
        "capital": "Nairobi",
        "region": "Africa",
        "peak": "Mount Kenya",
        "language": "English",
        "currency": "the shilling",
    },
    "Nepal": {
        "capital": "Kathmandu",
        "region": "Asia",
        "peak": "Mount Everest",
        "language": "Nepali",
        "currency": "the rupee",
    },
    "Peru": {
        "capital": "Lima",
        "region": "South America",
        "peak": "Nevado Huascaran",
        "language": "Spanish",
        "currency": "the sol",
    },
    "Vietnam": {
        "capital": "Hanoi",
        "region": "Southeast Asia",
        "peak": "Fan Si Pan",
        "language": "Vietnamese",
        "currency": "the dong",
    },
}
"""Country → field → value."""

MORE = {
    "Iceland": "Gunnar works as a driver.",
    "Kenya": "Zawadi was founded by Amara.",
    "Nepal": "The best friend of Pemba is Dorje.",
    "Peru": "Tamba Bridge was built in 1934.",
    "Vietnam": "Linh is 27 years old.",
}
"""What no member can know: made up, so that an answer shows that the profile was read."""

SENTENCES = {
    "capital": "The capital of {c} is {v}.",
    "region": "{c} is in {v}.",
    "peak": "The highest point of {c} is {v}.",
    "language": "People in {c} speak {v}.",
    "currency": "People in {c} pay with {v}.",
}


def profiles() -> dict[str, str]:
    """Give each country's profile, a short paragraph.

    Returns:
        Country → text.
    """
    return {
        country: " ".join(
            [*(SENTENCES[k].format(c=country, v=v) for k, v in facts.items()), MORE[country]]
        )
        for country, facts in FACTS.items()
    }
