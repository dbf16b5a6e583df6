"""Recurrences: layers that keep a state instead of keys and values. What they are is found by playing them on numbers."""
