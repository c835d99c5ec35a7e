"""Formulas as MathML, which browsers render without scripts and without a network."""

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

#: What the converter leaves to the browser, and browsers do otherwise than TeX.
CORRECTIONS = (
    (r"<mi>(&#x000[4-7][0-9A-F];)</mi>", r'<mi mathvariant="normal">\1</mi>'),  # \mathrm{E}
    (r"<mo>(&#x02016;)</mo>", r'<mo stretchy="false" lspace="0" rspace="0">\1</mo>'),  # norms
    (r"(<mi>(?:log|exp|tr)</mi>)(?!<mo[ >])", r'\1<mspace width="0.17em"/>'),  # log p
)


def mathml(latex: str, display: str) -> str:
    text = convert(latex, display=display)
    for pattern, replacement in CORRECTIONS:
        text = re.sub(pattern, replacement, text)
    return text


def visit_math(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def visit_math_block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="formula"))
    self.body.append(mathml(node.astext(), "block"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
