"""Spikes in, movement out: RPNT on the Hugging Face stack."""
