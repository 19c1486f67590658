"""Tables for LaTeX documents that load the booktabs package."""

from __future__ import annotations

import re
from collections.abc import Sequence

SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "[": "{[}",  # after the end of a row, [ and * would belong to the command that ends it
    "*": "{*}",
    "—": r"\textemdash{}",
    "\n": " ",
}
TABLE = {ord(character): text for character, text in SPECIAL.items()}


def escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return re.sub("-(?=-)", "-{}", text.translate(TABLE))  # two hyphens would become a dash


def latex_table(columns: str, lines: Sequence[str], caption: str, label: str, comment: str = "") -> str:
    """A table environment. `caption` is LaTeX; of `label` the letters, digits and hyphens are used.

    Without a caption there is no label, either, as nothing could refer to it. It starts with comments: the package that
    it needs, and the line `comment`.
    """
    name = re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-")
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            *[f"% {comment}"] * bool(comment),
            r"\begin{table}",
            r"  \centering",
            *[rf"  \caption{{{caption}}}", rf"  \label{{tab:{name}}}"] * bool(caption),
            r"  \small",
            r"  \setlength{\tabcolsep}{4pt}",
            rf"  \begin{{tabular}}{{{columns}}}",
            r"    \toprule",
            *(f"    {line}" for line in lines),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    )
