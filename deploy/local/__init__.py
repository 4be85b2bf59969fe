"""The one-machine stack: every part of Nearline as a real process on loopback."""
