"""Which neurons start afresh, and when."""
