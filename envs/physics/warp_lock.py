"""One thread at a time builds, captures and draws with Warp.

Warp records launches into the graph that is being captured, and there is one such graph in a process: what another
thread launches or allocates meanwhile would end up in it.  Replaying a graph needs no lock on the CPU or on CUDA.
"""

import os
import threading

WARP = threading.RLock()
# a child process has only the thread that forked: nobody else may be in the middle of something then
if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(before=WARP.acquire, after_in_parent=WARP.release, after_in_child=WARP.release)
