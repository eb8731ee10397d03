"""Reading, binning, simulating and cutting recordings."""
