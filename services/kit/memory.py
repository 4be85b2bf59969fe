"""How glibc keeps memory: enough that moving a large file is cheap, no more once it is moved.

A buffer that comes from the kernel anew has to be cleared and mapped page by page, which costs more
time than filling it. What is freed to the heap is there for the next one, until `give_back`.
"""

import ctypes

WRITE_BYTES = 256 << 10
"""Most bytes to write to a file with one system call.

Linux caches a write in pieces of memory as large as the write. A virtual machine may have to fetch
those of 2 MiB and more from its host, which takes ten times as long as the copying.
"""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
# Above the 8 MiB that large files are moved in; larger buffers come from the kernel and go back.
_LARGE_BYTES = 9 << 20
# What the few buffers that are in use at a time leave free for a moment.
_KEPT_BYTES = 32 << 20


def tune() -> None:
    """Set this process's ways; by its own glibc would keep more, for each thread."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # glibc's alone
        library.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        # Only this one can be given back whole.
        library.mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Return the heap's free memory to the kernel; takes about a millisecond."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
