"""Moves bytes between the cache and tape; knows no user files and no policy."""
