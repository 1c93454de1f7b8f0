"""The HTML report. No torch.

`page` says what is shown: it turns the report into the data of `view`, section by section. The
templates say how: `render` fills them in.
"""

from strucprune_core.report.html.render import render_html

__all__ = ["render_html"]
