"""The HTML report. No torch.

`view` turns the report into the data of the page, section by section. `render` fills them into the
templates.
"""

from strucprune_core.report.html.render import render_html

__all__ = ["render_html"]
