"""Sphinx builds README, CHANGELOG and the pages of this folder as a site: `make docs`. Plain Markdown needs no site."""

import re

from dbnrun import __version__

project = html_title = "dbnrun"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["README.md", "CHANGELOG.md", "docs/*.md", "results/normalizers.md"]
html_show_copyright = False
html_theme = "furo"
myst_heading_anchors = 3
default_role = "code"  # `name` in a docstring
autodoc_typehints = "none"  # the signature has them
maximum_signature_line_length = 88
CONTENTS = """
```{toctree}
:hidden:
:glob:

/README
*
/results/normalizers
/CHANGELOG
```
"""


def add_contents(app, page, source):
    """Give the index its table of contents, which plain Markdown does not have."""
    if page == root_doc:
        source[0] += CONTENTS


def keep_equations(app, what, name, obj, options, lines):
    """Show what is indented behind a colon, such as the equations of a layer, as it is written."""
    lines[:] = re.sub(r"(?<=[^:]):\n\n(?=    )", "::\n\n", "\n".join(lines)).split("\n")


def setup(app):
    """Connect the two functions above; Sphinx calls this."""
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", keep_equations, priority=100)
