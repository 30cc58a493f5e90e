"""Make sure a program that the tests drive is there: `python tests/need.py chromium`, or `promtool prometheus` where Debian's
package has another name. It is installed where we may."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys


def main(program: str, package: str = "") -> int:
    """0 where `program` is on the path, after installing it if need be."""
    if shutil.which(program):
        return 0
    if shutil.which("apt-get") and os.geteuid() == 0:
        quiet = {"stdout": subprocess.DEVNULL, "check": True}
        subprocess.run(["apt-get", "update"], **quiet)
        subprocess.run(["apt-get", "install", "-y", "--no-install-recommends", package or program], **quiet)
        return 0
    print(f"the tests drive {program}, which is not installed; install it with your system's packages", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
