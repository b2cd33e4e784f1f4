"""The report of an evaluation: one HTML page with everything that is known about it.

`html` makes elements in which no text can become markup, `svg` plots, `pictures` draws boxes on
pictures; `numbers`, `curves`, `charts`, `worst` and `examples` are the sections, and `page` puts
them together.
"""

from detkit.evaluation.report.page import check_report, render, write_report
from detkit.evaluation.report.pictures import find_pictures

__all__ = ["check_report", "find_pictures", "render", "write_report"]
