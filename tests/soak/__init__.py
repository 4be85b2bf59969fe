"""Traffic and faults from one seed against a whole stack, and a check of what became of it.

schedule  what goes wrong when, from the seed (pure)
rig       the stack with a breakable link before each part, and bounded disks
faults    makes the schedule happen, and heals
sources   trees of files with known content
traffic   users who put, get, stage, evict, cancel, retry and repeat
history   everything that was asked, answered and done, as JSON lines
observe   what is there, asked behind the product's back
checker   the invariants over all of it (pure)
report    the result as people read it
run       all of these in their order
"""
