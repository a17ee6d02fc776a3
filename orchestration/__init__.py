"""Composition root: definitions, resource instances, jobs, schedules, sensors and the ledger."""
