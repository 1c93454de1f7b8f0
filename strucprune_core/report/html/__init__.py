"""The HTML report: `page` puts together `parts` and `plots`, dressed by `style`. No torch."""

from strucprune_core.report.html.page import render_html

__all__ = ["render_html"]
