"""Long histories: their store, their models' training, and what these are compared by."""
