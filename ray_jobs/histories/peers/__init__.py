"""Programs of other people that models are compared with, each in an environment of its own."""
