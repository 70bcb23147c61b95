"""What a compile did and what it cost: report.json for programs, report.html for people, tables for the terminal.

All three show one document; `compiler.report.document` says what is in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compiler.compile_model import CompileResult

REPORT_JSON = "report.json"
REPORT_HTML = "report.html"


def report_files(result: CompileResult) -> dict[str, bytes]:
    """Both report files by name."""
    from compiler.report.document import document_text, report_document
    from compiler.report.html_page import html_page

    document = report_document(result)
    return {REPORT_JSON: document_text(document).encode(), REPORT_HTML: html_page(document).encode()}
