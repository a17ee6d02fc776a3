"""Language engines behind one interface."""
