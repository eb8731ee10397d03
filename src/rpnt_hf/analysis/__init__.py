"""Plots and connectivity maps of recordings and trained models."""
