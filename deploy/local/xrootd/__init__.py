"""A real XRootD server with a simulated tape library behind it."""
