"""Plots and connectivity maps of recordings and trained models."""

PICTURES = (".png", ".pdf", ".svg")  # formats of pictures that are written
