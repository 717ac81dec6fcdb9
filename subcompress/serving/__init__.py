"""Serving: models behind the Open Inference Protocol, and a page for the person who looks after them."""
