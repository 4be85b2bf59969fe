"""The ledger: transactions, their tasks, and the workers that lease them."""
