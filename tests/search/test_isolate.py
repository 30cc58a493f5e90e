"""Whatever a candidate does to its process, the study gets an answer or a sentence, and nothing stays behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import children
import psutil
import pytest

from recfit.search.isolate import Failed, isolated

HERE = Path(__file__).parent


def run(function, *arguments, memory_gb=4.0, seconds=60.0):
    return isolated(function, *arguments, memory_gb=memory_gb, seconds=seconds)


def test_the_answer_of_another_process():
    assert run(children.add, 2, 3) == 5
    pid = run(children.own_pid)
    assert pid != os.getpid()
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (children.refuse, r"^this would change nothing; leave it out$"),
        (children.crash, r"^KeyError: 'missing' \(children.py:\d+\)$"),
        (children.leave, r"^the process died with exit code 7$"),
        (children.die, r"^the process died with exit code -9$"),
        (children.bring_what_cannot_travel, r"(PicklingError|AttributeError): Can't pickle"),
    ],
)
def test_what_goes_wrong_is_a_sentence(function, message):
    with pytest.raises(Failed, match=message):
        run(function)


def test_the_time_limit_holds():
    begin = time.monotonic()
    with pytest.raises(Failed, match=r"it took over 1 s, what was left of \[search\] max_minutes; raise it") as found:
        run(children.sleep, 60, seconds=1.0)
    assert found.value.limit == "max_minutes"
    assert 1 <= time.monotonic() - begin < 10


def test_the_memory_limit_holds():
    begin = time.monotonic()
    with pytest.raises(Failed, match=r"it used more than 0.7 GB of memory, the limit of \[search\] memory_gb") as found:
        run(children.grow, 800, memory_gb=0.7)
    assert found.value.limit == "memory_gb"
    assert time.monotonic() - begin < 20


def test_no_semaphore_is_left_by_children_that_show_progress():
    """`resource_tracker` warns at exit of what was leaked; tqdm's lock between processes would be."""
    script = (
        "import children\nfrom recfit.search import isolate\nisolate.PRELOAD = []\n"
        "if __name__ == '__main__':\n"
        "    for seconds, left in ((0, 60), (30, 1)):\n"
        "        try: isolate.isolated(children.show_a_bar, seconds, memory_gb=4, seconds=left)\n"
        "        except isolate.Failed as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(HERE)},
    )
    assert "it took over 1 s" in done.stdout
    assert "2/2" in done.stderr  # it did show progress
    assert "leaked" not in done.stderr


def test_a_child_ends_with_a_killed_parent(tmp_path):
    mark = tmp_path / "pid"
    script = (
        "import children\nfrom recfit.search import isolate\nisolate.PRELOAD = []\n"
        f"if __name__ == '__main__': isolate.isolated(children.sleep, 60, {str(mark)!r}, memory_gb=4, seconds=60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(HERE)})
    child = psutil.Process(int(wait_for(lambda: mark.is_file() and mark.read_text())))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def wait_for(found, seconds=30):
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value
