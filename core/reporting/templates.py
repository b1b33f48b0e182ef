"""The templates of the HTML pages, in which every value is escaped. Imports jinja2."""

from __future__ import annotations

from pathlib import Path

import jinja2


def template(name: str) -> jinja2.Template:
    """Return the template in the file ``name`` of this folder; a value that it lacks is an error."""
    # not resolved: the plugin's core is a symbolic link in the repository
    loader = jinja2.FileSystemLoader(Path(__file__).absolute().parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template(name)
