"""Pure functions of experiments: who is in which arm, whether that went wrong, and what the gate decides."""
