"""``python -m bench``: how fast the local stack is, beside its peers on the same servers."""
