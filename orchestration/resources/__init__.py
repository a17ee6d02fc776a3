"""Instances of the abstract resources: for each system an embedded twin and a production twin."""
