"""Where the figures come from: each program prints a ratio against a named peer, measured in one run."""
