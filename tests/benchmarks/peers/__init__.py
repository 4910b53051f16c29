"""Other packages that put Gaussian noise on weights, each in an environment of its own."""
