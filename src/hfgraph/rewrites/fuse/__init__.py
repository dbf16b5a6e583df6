"""Neighbouring ops become one op."""
