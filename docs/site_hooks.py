"""What the site does to its pages: the version, files and notebooks of the repository, formulas as MathML."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

ROOT = Path(__file__).parent.parent
ADDRESS = "https://github.com/weightnoise/weightnoise"
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', flags=re.DOTALL)
OPTION = re.compile(r"<code>(--[\w-]+(?: [^<\s]{1,20})?)</code>")
# What the converter writes with the space of operators, or without it.
BARS = {r"\lvert": r"\left|", r"\rvert": r"\right|", r"\lVert": r"\left\Vert", r"\rVert": r"\right\Vert"}
FUNCTION = re.compile(r"<mi>(?:exp|cosh|ln)</mi>")
SIMILAR = "<mi>&#x0007E;</mi>"
INCLUDED = re.compile(r"^<!-- include: (\S+) -->$", flags=re.MULTILINE)


def version() -> str:
    """The version of the package, without importing it."""
    found = re.search(
        r'^__version__ = "(.+)"$', (ROOT / "weightnoise/__init__.py").read_text(), flags=re.MULTILINE
    )
    assert found is not None
    return found[1]


def on_config(config: Any) -> Any:
    """Name the version and the licence, and link the source, at the foot of each page."""
    source, changes = f'<a href="{ADDRESS}">source</a>', f'<a href="{ADDRESS}/releases">releases</a>'
    config["copyright"] = f"weightnoise {version()} · MIT licence · {source} · {changes}"
    return config


def _link(found: re.Match[str]) -> str:
    target = found[1]
    if re.match(r"[a-z]+:|#", target):
        return found[0]
    page = target.removeprefix("docs/")
    on_site = page != target and page.partition("#")[0].endswith(".md")
    return f"]({page})" if on_site else f"]({ADDRESS}/blob/main/{target})"


def included(text: str) -> str:
    """A file of the repository as a page: its links lead to the site, or to the repository."""
    return re.sub(r"\]\(([^)\s]+)\)", _link, text)


def _output(output: dict[str, Any], alt: str) -> str:
    if output["output_type"] == "stream":
        return f"```text\n{''.join(output['text']).rstrip()}\n```"
    return f"![{alt}](data:image/png;base64,{output['data']['image/png']})"


def notebook(text: str) -> str:
    """A notebook as a page: its cells, what they printed and the figures that they drew."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += [_output(output, cell["metadata"].get("alt", "")) for output in cell.get("outputs", [])]
    return "\n\n".join(parts)


def _included(found: re.Match[str]) -> str:
    path = ROOT / found[1]
    text = path.read_text(encoding="utf-8")
    return notebook(text) if path.suffix == ".ipynb" else included(text)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put files of the repository where a page asks for them."""
    return INCLUDED.sub(_included, markdown)


def _formula(found: re.Match[str]) -> str:
    display = "block" if found[1] == "div" else "inline"
    text = re.sub(r"\\[lr][vV]ert", lambda bar: BARS[bar[0]], html.unescape(found[2]))
    made = convert(text, display=display).replace(SIMILAR, "<mo>&#x0223C;</mo>")
    made = FUNCTION.sub(r'<mspace width="0.167em" />\g<0>', made)
    return f'<div class="formula">{made}</div>' if display == "block" else made


def on_page_content(content: str, **_: Any) -> str:
    """Write formulas as MathML, which browsers show without a script or a font of the site's; mark options."""
    return OPTION.sub(r'<code class="option">\1</code>', FORMULA.sub(_formula, content))
