"""A folder that appears whole or not at all, against real kills, Ctrl-C and systems without an atomic exchange."""

from __future__ import annotations

import errno
import inspect
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from compiler import staged_folder as module
from compiler.staged_folder import clean_up, exchange, staged_folder

PROCESS_SECONDS = 60
FILE_COUNT = 8


def fill(folder: Path, text: str, count: int = 3) -> None:
    """Files that all say the same: a mixture of old and new would show."""
    (folder / "inner").mkdir(exist_ok=True)
    for index in range(count):
        (folder / "inner" / f"{index}.txt").write_text(text, encoding="utf-8")


def write_and_raise(target: Path, stop: type[BaseException]) -> None:
    """Fill a staging folder, then stop."""
    with staged_folder(target) as staging:
        fill(staging, "new")
        raise stop


def says(folder: Path) -> set[str]:
    """What the files of a folder say."""
    return {path.read_text(encoding="utf-8") for path in folder.rglob("*.txt")}


@pytest.fixture(params=["exchange", "two renames"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of putting the new folder in the place of the old one."""
    if request.param == "two renames":
        monkeypatch.setattr(module, "exchange", lambda one, other: False)


@pytest.mark.usefixtures("either_way")
class TestSwap:
    def test_a_new_folder_appears_at_the_end(self, tmp_path: Path) -> None:
        target = tmp_path / "a" / "b" / "out"
        with staged_folder(target) as staging:
            fill(staging, "new")
            assert not target.exists()
        assert says(target) == {"new"}
        assert list(target.parent.iterdir()) == [target]

    def test_an_old_folder_is_replaced(self, tmp_path: Path) -> None:
        target = tmp_path / "out"
        target.mkdir()
        fill(target, "old", count=5)
        with staged_folder(target) as staging:
            fill(staging, "new")
            assert says(target) == {"old"}
        assert says(target) == {"new"}
        assert list(tmp_path.iterdir()) == [target]

    def test_a_link_to_a_folder_stays_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        with staged_folder(tmp_path / "link") as staging:
            fill(staging, "new")
        assert (tmp_path / "link").is_symlink()
        assert says(tmp_path / "real") == {"new"}

    @pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, OSError, MemoryError])
    def test_whatever_is_raised_leaves_the_old_folder(self, tmp_path: Path, stop: type[BaseException]) -> None:
        target = tmp_path / "deep" / "out"
        with pytest.raises(stop):
            write_and_raise(target, stop)
        assert list(tmp_path.iterdir()) == [], "folders made on the way are taken away again"
        target.mkdir(parents=True)
        fill(target, "old")
        with pytest.raises(stop):
            write_and_raise(target, stop)
        assert says(target) == {"old"}
        assert list(target.parent.iterdir()) == [target]


def test_exchange_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with pytest.raises(OSError, match="No such file") as caught:
        exchange(tmp_path / "one", tmp_path / "none")
    assert caught.value.errno == errno.ENOENT


def test_a_folder_between_two_renames_is_put_back(tmp_path: Path) -> None:
    aside = tmp_path / ".out.regraft-old-0123"
    aside.mkdir()
    fill(aside, "old")
    clean_up(tmp_path / "out")
    assert says(tmp_path / "out") == {"old"}
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_names_that_look_like_patterns_touch_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".other.regraft-new-0123").mkdir()
    with staged_folder(tmp_path / "*") as staging:
        fill(staging, "new")
    assert {path.name for path in tmp_path.iterdir()} == {"*", ".other.regraft-new-0123"}


WRITER = """
    import sys
    from pathlib import Path
    from compiler import staged_folder as module
    from tests_fill import fill
    if sys.argv[2] == "two renames":
        module.exchange = lambda one, other: False
    if sys.argv[4] == "unflushed":  # many more exchanges a second, so that kills fall on them
        module._flush = module._flush_one = lambda path: None
    print("ready", flush=True)
    for number in range(1_000_000):
        with module.staged_folder(Path(sys.argv[1])) as staging:
            fill(staging, f"version {number}", count=int(sys.argv[3]))
        print("written", flush=True)
"""


@pytest.fixture
def writer(tmp_path: Path) -> list[str]:
    """The command of a process that replaces a folder again and again."""
    code = "import os\nfrom pathlib import Path\n\n" + inspect.getsource(fill)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "tests_fill.py").write_text(code, encoding="utf-8")
    (tmp_path / "code" / "writer.py").write_text(textwrap.dedent(WRITER), encoding="utf-8")
    return [sys.executable, str(tmp_path / "code" / "writer.py")]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_sigkill_at_any_moment_leaves_a_whole_folder(tmp_path: Path, writer: list[str], way: str) -> None:
    target = tmp_path / "place" / "out"
    with staged_folder(target) as staging:
        fill(staging, "first", count=FILE_COUNT)
    moments = random.Random(0)
    seen = set()
    for flushing in ("flushed", "unflushed") * 12:
        process = subprocess.Popen([*writer, str(target), way, str(FILE_COUNT), flushing], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(moments.randrange(5)):
            process.stdout.readline()
        time.sleep(moments.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait(PROCESS_SECONDS)
        process.stdout.close()
        if way == "two renames":
            clean_up(target)
        words = says(target)
        assert len(words) == 1, "old and new are never mixed"
        assert len(list(target.rglob("*.txt"))) == FILE_COUNT, "nothing is missing"
        seen |= words
    assert len(seen) > 3, "the kills came at different moments"
    clean_up(target)
    assert list(target.parent.iterdir()) == [target], "what the dead left is cleaned"


def test_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out") as first:
        fill(first, "first")
        with staged_folder(tmp_path / "out") as second:
            assert first.exists()
            fill(second, "second")
        assert says(tmp_path / "out") == {"second"}
    assert says(tmp_path / "out") == {"first"}


def test_ctrl_c_during_the_work_leaves_nothing(tmp_path: Path) -> None:
    code = """
        import sys, time
        from pathlib import Path
        from compiler.staged_folder import staged_folder
        with staged_folder(Path(sys.argv[1])) as staging:
            (staging / "half").write_text("half")
            print("ready", flush=True)
            time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    assert len(list(tmp_path.iterdir())) == 1
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PROCESS_SECONDS)
    assert process.returncode == -signal.SIGINT
    assert list(tmp_path.iterdir()) == []


def test_every_file_is_on_the_disk_before_the_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    flush, swap = os.fsync, module.exchange
    monkeypatch.setattr(
        os, "fsync", lambda fd: (events.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name), flush(fd))
    )
    monkeypatch.setattr(module, "exchange", lambda one, other: events.append("exchange") or swap(one, other))
    (tmp_path / "out").mkdir()
    with staged_folder(tmp_path / "out") as staging:
        fill(staging, "new")
        name = staging.name
    assert sorted(events[:5]) == sorted(["0.txt", "1.txt", "2.txt", "inner", name])
    assert events[5:] == ["exchange", tmp_path.name]
