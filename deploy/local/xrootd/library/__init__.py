"""The simulated tape library: the disk buffer of xrootd, a tape and a drive between."""
