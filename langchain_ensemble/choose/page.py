"""The findings as one self-contained page: dark and light, phone and desktop, no network."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape

from langchain_ensemble.choose.drawing import available
from langchain_ensemble.choose.findings import Findings
from langchain_ensemble.choose.plots import pictures
from langchain_ensemble.choose.tables import Table, absent, differing, tables

SHOWN = 30
"""Questions of which the answers are shown at most."""

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 68rem; padding: 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.verdict { font-size: 1.15rem; border-left: .3rem solid #d1602f; padding: .6rem 1rem;
  background: var(--soft); overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
.wide:focus-visible, summary:focus-visible, pre:focus-visible { outline: 2px solid #3b82c4; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; }
th:first-child { text-align: left; }
thead th, td { white-space: nowrap; }
tbody th { font-weight: normal; min-width: 9rem; }
table.text :is(th, td) { text-align: left; min-width: 8rem; overflow-wrap: anywhere;
  white-space: pre-wrap; }
p.note { font-size: .9rem; opacity: .8; }
figure { margin: 1rem 0; } figure svg { max-width: 100%; min-width: 24rem; height: auto; }
pre { background: var(--soft); padding: .6rem; overflow-x: auto; }
"""


def page(found: Findings) -> str:
    """Write the page.

    Args:
        found: What was measured.

    Returns:
        HTML.
    """
    parts = [
        "<h1>Which members belong together?</h1>",
        f'<p class="verdict">{escape(found.verdict.sentence)}</p>',
        *(f'<p class="note">{escape(text)}</p>' for text in absent(found)),
        *map(_table, tables(found)),
        *_figures(found),
        *_examples(found),
        "<h2>The suggestion, as a configuration</h2>",
        f"<p>{escape(found.suggested_class)}.from_config reads it:</p>",
        '<pre tabindex="0" role="region" aria-label="The suggestion">'
        f"{escape(json.dumps(found.suggestion, indent=1, ensure_ascii=False))}</pre>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(found.verdict.kind)}: which members belong together</title>"
        f"<style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def _table(table: Table) -> str:
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return f"<h2>{escape(table.title)}</h2>{_grid(table.title, table.columns, table.rows)}{note}"


def _grid(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]], kind: str = "") -> str:
    """A table that scrolls by itself, by keyboard too."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        f"{''.join(f'<td>{escape(cell)}</td>' for cell in rest)}</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(title)}">'
        f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _figures(found: Findings) -> list[str]:
    if not available():
        return [
            '<p class="note">No pictures: matplotlib is not installed '
            "(pip install &quot;langchain-ensemble[plots]&quot;).</p>"
        ]
    return [
        f'<figure><figcaption>{escape(title)}</figcaption><div class="wide" role="img" '
        f'tabindex="0" aria-label="{escape(title)}">{svg}</div></figure>'
        for title, svg in pictures(found)
    ]


def _examples(found: Findings) -> list[str]:
    """What the ensemble and the best candidate answered where only one of them is right."""
    places = differing(found)
    if not places:
        return []
    ours, best = found.system(found.signals[0].of), found.system(found.best)
    rows = [
        (
            found.questions[place],
            " | ".join(found.answers[place]),
            _marked(ours.texts[place], ours.right[place]),
            _marked(best.texts[place], best.right[place]),
        )
        for place in places[:SHOWN]
    ]
    title = f"{len(places)} questions that only one of them answers right"
    title += f" (the first {SHOWN})" if len(places) > SHOWN else ""
    columns = ("question", "right", ours.name, best.name)
    return [
        f"<h2>{escape(title)}</h2><details><summary>show questions and answers</summary>"
        f"{_grid(title, columns, rows, 'text')}</details>"
    ]


def _marked(text: str, right: bool) -> str:
    return f"{'✓' if right else '✗'} {text}"
