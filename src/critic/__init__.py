"""V(features of x_t, t), by what the features are."""
