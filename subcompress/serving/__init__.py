"""Serving: many small files as networks that answer requests, in one process, and for servers of others."""
