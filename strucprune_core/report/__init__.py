"""The report of a job: the document, and its HTML page. No torch."""
