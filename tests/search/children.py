"""What the isolated processes of the tests do. Imported by them, so it is light."""

import os
import signal
import sys
import time
from pathlib import Path

from recfit.types import Unsupported


def add(left, right):
    return left + right


def own_pid():
    return os.getpid()


def refuse():
    raise Unsupported("this would change nothing; leave it out")


def crash():
    return {}["missing"]


def leave():
    os._exit(7)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def bring_what_cannot_travel():
    return lambda: None


def sleep(seconds, mark=None):
    if mark is not None:
        Path(mark).write_text(str(os.getpid()))
    time.sleep(seconds)


def grow(megabytes):
    kept = bytearray(os.urandom(1) * megabytes * 2**20)
    time.sleep(30)
    return len(kept)


def show_a_bar(seconds=0.0):
    from tqdm import tqdm

    for _ in tqdm(range(2), file=sys.stderr):
        time.sleep(seconds)
