"""Serving many packed files as networks in one process, and exporting them for other servers."""
