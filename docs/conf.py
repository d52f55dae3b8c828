"""The site: the pages of this folder, the docstrings and the notebook. scripts/docs builds it."""

import re
import sys
from pathlib import Path
from typing import Any

from raiopt import __version__

project = "raiopt"
author = "the raiopt authors"
copyright = "the raiopt authors, MIT licence"
version = release = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "raiopt"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False

myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

default_role = "code"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
python_maximum_signature_line_length = 88
nitpicky = True


def fill(app: Any, page: str, text: list[str]) -> None:
    """Puts the tables of settings and of the record into their pages; takes away the line that ends a doctest."""
    text[0] = re.sub(r"\n\n```(?=\n)", "\n```", text[0])
    if "<!-- settings -->" in text[0]:
        from settings import reference

        text[0] = text[0].replace("<!-- settings -->", reference())
    if "<!-- record -->" in text[0]:
        import record_fields

        text[0] = text[0].replace("<!-- record -->", record_fields.reference())


def setup(app: Any) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    app.connect("source-read", fill)
