"""Serving: models rebuilt where they are asked for."""
