"""The ledger under simulated faults; see `python -m tests.simulation --help`."""
