"""Protocols, comparators, statistics and reports."""
