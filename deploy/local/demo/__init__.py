"""``python -m deploy.local.demo``: a realistic directory all the way to tape and back, verified."""
