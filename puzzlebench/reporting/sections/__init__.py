"""Sections of the page, one a file: `ReportData` in, markup out. A part that the run lacks is a plain note."""
