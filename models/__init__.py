"""Networks and pure functions: torch and arrays in, torch and arrays out. Knows no orchestrator and no storage."""
