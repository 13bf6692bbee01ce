"""What goes on beside the iterations of a run."""
