import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

import micu_extract.media.watch as watch
from micu_extract.media.watch import Effort, Usage, Watch, ask_ps, parse_time, read_usage, usage_of

RESTING = Usage(cpu_s=5.0, waited_s=7.0, is_ready=False, is_stopped=False)


def used(
    cpu_s: float = 0.0,
    waited_s: float | None = 0.0,
    *,
    ready: bool = False,
    stopped: bool = False,
) -> Usage:
    """What `RESTING` has become after so much more of both."""
    waited_s = None if waited_s is None else RESTING.waited_s + waited_s  # type: ignore[operator]
    return Usage(RESTING.cpu_s + cpu_s, waited_s, ready, stopped)


def spent_s(before: Usage | None, now: Usage | None, passed_s: float = 2.0) -> float:
    effort = Effort(before)
    effort.add_(passed_s, now)
    return effort.spent_s


@pytest.mark.parametrize(
    ("now", "expected_s"),
    [
        (used(2.0, ready=True), 2.0),  # a core of its own
        (used(), 2.0),  # asleep, in a read that never ends
        (used(0.5, 1.5), 0.5),  # on a core a quarter of the time
        (used(0.0, 2.0), 0.0),  # never
        (used(0.5, 1.0), 1.0),  # and asleep for half a second
        (used(0.5, 0.0, ready=True), 0.5),  # a wait that is not over is not counted yet
        (used(0.3, 6.0), 0.3),  # three threads wait at once
        (used(3.0, 9.0), 2.0),  # sixteen threads that spin on two cores
        (used(-1.0, -1.0), 2.0),  # threads have ended, and what they had is gone
        (used(stopped=True), 0.0),
        (used(1.0, stopped=True), 0.0),
        (None, 2.0),  # it has ended, or nobody says
    ],
)
def test_time_without_a_core_is_none_and_sleep_is(now: Usage | None, expected_s: float) -> None:
    assert spent_s(RESTING, now) == pytest.approx(expected_s)


@pytest.mark.parametrize(
    ("now", "expected_s"),
    [
        (used(0.5, None, ready=True), 0.5),  # ready and not on a core, as far as can be seen
        (used(0.5, None, ready=False), 2.0),
        (used(3.0, None, ready=True), 2.0),
        (used(0.5, None, stopped=True), 0.0),
    ],
)
def test_where_nobody_counts_waits_one_that_is_ready_has_worked_its_time_on_a_core(
    now: Usage, expected_s: float
) -> None:
    assert spent_s(RESTING, now) == pytest.approx(expected_s)
    uncounted = Usage(RESTING.cpu_s, None, is_ready=True, is_stopped=False)
    assert spent_s(uncounted, now) == pytest.approx(expected_s)


def test_waits_that_nobody_counts_are_remembered_when_it_sleeps_at_last() -> None:
    effort = Effort(used(0.0, None))
    effort.add_(2.0, used(0.5, None, ready=True))
    effort.add_(2.0, used(0.5, None))
    assert effort.spent_s == pytest.approx(2.5)


def test_a_process_that_was_not_seen_before_is_given_no_credit() -> None:
    assert spent_s(None, used(0.0, 2.0)) == 2.0


def test_a_long_wait_that_is_counted_when_it_is_over_is_taken_off_all_that_came_before() -> None:
    effort = Effort(RESTING)
    for _ in range(20):  # nothing is known of it but that it is ready
        effort.add_(1.0, used(0.0, 0.0, ready=True))
        assert effort.spent_s == 0.0
    effort.add_(1.0, used(0.5, 20.5))
    assert effort.spent_s == pytest.approx(0.5)
    effort.add_(1.0, used(0.5, 20.5))
    assert effort.spent_s == pytest.approx(1.5)


def test_threads_side_by_side_count_once() -> None:
    effort = Effort(RESTING)
    for i in range(1, 11):
        effort.add_(1.0, used(4.0 * i, ready=True))
    assert effort.spent_s == 10.0


def test_a_stop_between_two_looks_counts_neither_as_work_nor_as_a_wait() -> None:
    effort = Effort(RESTING)
    effort.add_(1.0, used(1.0, ready=True))
    effort.add_(50.0, used(1.0, stopped=True))
    effort.add_(1.0, used(1.0))
    assert effort.spent_s == 2.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("00:00:03", 3.0),
        ("01:02:03", 3723.0),
        ("2-01:02:03", 176523.0),
        ("0:01.25", 1.25),  # as macOS writes it
        ("83:20.50", 5000.5),
        ("-", 0.0),
        ("?", 0.0),
        ("", 0.0),
    ],
)
def test_times_of_ps(text: str, seconds: float) -> None:
    assert parse_time(text) == pytest.approx(seconds)


SPIN = "import sys\nprint('on', flush=True)\nwhile True: pass"
SLEEP = "import time\nprint('on', flush=True)\ntime.sleep(600)"


@contextmanager
def process(code: str) -> Iterator[int]:
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.readline()
        try:
            yield running.pid
        finally:
            running.kill()


def ask_proc(processes: Iterable[int]) -> Mapping[int, Usage]:
    found = {number: read_usage(Path("/proc") / str(number)) for number in processes}
    return {number: usage for number, usage in found.items() if usage is not None}


@pytest.mark.parametrize("ask", [ask_proc, ask_ps])
def test_the_system_tells_who_sleeps_who_is_ready_and_who_is_stopped(ask: Any) -> None:
    if ask is ask_proc and not Path("/proc/self/task").is_dir():
        pytest.skip("has no /proc")
    with process(SPIN) as spins, process(SLEEP) as sleeps, process(SPIN) as stopped:
        os.kill(stopped, signal.SIGSTOP)
        os.waitpid(stopped, os.WUNTRACED)  # until it has
        until = time.monotonic() + 300  # on a busy machine the one that spins may wait for long
        while time.monotonic() < until:
            found = ask([spins, sleeps, stopped])
            if found[spins].cpu_s > 0.2 and not found[sleeps].is_ready:
                break
            time.sleep(0.01)
        assert found[spins].is_ready
        assert not found[spins].is_stopped
        assert not found[sleeps].is_ready
        assert not found[sleeps].is_stopped
        assert found[stopped].is_stopped
        assert found[spins].cpu_s > 0.2
        assert set(ask([spins, 2**22 + 1])) == {spins}
    assert ask([]) == {}


def test_without_ps_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert ask_ps([os.getpid()]) == {}


def fake_proc(folder: Path, threads: Mapping[str, tuple[str, str]]) -> Path:
    for number, (stat, schedstat) in threads.items():
        (folder / "task" / number).mkdir(parents=True)
        (folder / "task" / number / "stat").write_text(stat)
        if schedstat:
            (folder / "task" / number / "schedstat").write_text(schedstat)
    return folder


def stat_line(state: str, user: int = 0, system: int = 0) -> str:
    return f"12 (a b) R) {state} 1 12 12 0 -1 4194304 101 0 0 0 {user} {system} 0 0 20 0 1 0 50292"


def test_threads_are_added_up(tmp_path: Path) -> None:
    folder = fake_proc(
        tmp_path,
        {
            "12": (stat_line("S"), "1500000000 250000000 7\n"),
            "13": (stat_line("R"), "500000000 750000000 9\n"),
        },
    )
    assert read_usage(folder) == Usage(2.0, 1.0, is_ready=True, is_stopped=False)


def test_a_kernel_that_does_not_count_waits(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    folder = fake_proc(tmp_path, {"12": (stat_line("T", ticks, 2 * ticks), "")})
    assert read_usage(folder) == Usage(3.0, None, is_ready=False, is_stopped=True)


def test_one_stopped_thread_of_two_stops_nothing(tmp_path: Path) -> None:
    counts = "0 0 0"
    folder = fake_proc(tmp_path, {"1": (stat_line("t"), counts), "2": (stat_line("S"), counts)})
    found = read_usage(folder)
    assert found is not None
    assert not found.is_stopped


def test_a_process_or_a_thread_that_has_ended_is_left_out(tmp_path: Path) -> None:
    assert read_usage(tmp_path / "none") is None
    folder = fake_proc(tmp_path, {"1": (stat_line("S"), "1000000000 0 1")})
    (folder / "task" / "2").mkdir()
    assert read_usage(folder) == Usage(1.0, 0.0, is_ready=False, is_stopped=False)
    (folder / "task" / "1" / "stat").unlink()
    assert read_usage(folder) is None


# --- the watch ---------------------------------------------------------------------------------


class Scene:
    """A watch with a limit of 10 s, and one process whose usage a test writes."""

    def __init__(self) -> None:
        self.reader, self.writer = Pipe(duplex=False)
        self.usage: dict[int, Usage] = {}
        self.watch = Watch(self.reader, 10.0, lambda processes: dict(self.usage))
        self.future: Future[None] = Future()
        self.watch.add(4, self.future)

    def begin(self, number: int = 4) -> None:
        self.writer.send((number, 77))
        self.watch.look(0.1)


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    with made.reader, made.writer:
        yield made


def test_a_clip_is_cancelled_after_the_limit_and_not_before(scene: Scene) -> None:
    for _ in range(1000):
        scene.watch.look(0.1)
    assert not scene.future.cancelled()  # nobody has begun with it

    scene.begin()
    for _ in range(99):
        scene.watch.look(0.1)
    assert not scene.future.cancelled()
    for _ in range(2):
        scene.watch.look(0.1)
    assert scene.future.cancelled()


def test_a_run_that_stood_still_is_charged_one_tick(scene: Scene) -> None:
    scene.begin()
    for _ in range(50):
        scene.watch.look(3600.0)
    assert not scene.future.cancelled()
    for _ in range(51):
        scene.watch.look(3600.0)
    assert scene.future.cancelled()


def test_a_look_that_is_a_little_late_counts_whole(scene: Scene) -> None:
    scene.begin()
    for _ in range(33):
        scene.watch.look(0.3)
    assert not scene.future.cancelled()
    scene.watch.look(0.3)
    assert scene.future.cancelled()


def test_waits_of_the_process_are_not_charged(scene: Scene) -> None:
    scene.usage[77] = RESTING
    scene.begin()
    for i in range(1, 500):
        scene.usage[77] = used(waited_s=0.1 * i)
        scene.watch.look(0.1)
    assert not scene.future.cancelled()
    for _ in range(101):  # from here on it sleeps
        scene.watch.look(0.1)
    assert scene.future.cancelled()


def test_a_decoded_clip_that_waits_to_be_handed_over_is_not_charged(scene: Scene) -> None:
    scene.begin()
    for _ in range(50):
        scene.watch.look(0.1)
    scene.writer.send((4, 0))
    for _ in range(1000):
        scene.watch.look(0.1)
    assert not scene.future.cancelled()
    scene.begin()  # what it has had is not forgotten
    for _ in range(52):
        scene.watch.look(0.1)
    assert scene.future.cancelled()


def test_done_clips_and_strange_numbers_are_left_alone(scene: Scene) -> None:
    scene.future.set_result(None)
    scene.begin()
    scene.begin(99)
    for _ in range(200):
        scene.watch.look(0.1)
    assert scene.future.result() is None


@pytest.mark.parametrize(
    ("limit_s", "tick_s"), [(0.1, 0.05), (5.0, 0.05), (10.0, 0.1), (100.0, 1.0), (600.0, 1.0)]
)
def test_a_short_limit_is_looked_at_often(limit_s: float, tick_s: float) -> None:
    reader, writer = Pipe(duplex=False)
    with reader, writer:
        assert Watch(reader, limit_s).tick_s == pytest.approx(tick_s)


def test_the_thread_looks_by_itself_and_ends_when_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "TICK_S", (0.01, 0.01))
    reader, writer = Pipe(duplex=False)
    with reader, writer:
        assert isinstance(reader, Connection)
        watching = Watch(reader, 0.1)
        future: Future[None] = Future()
        watching.add(0, future)
        writer.send((0, 2**22 + 1))
        watching.start()
        while not future.cancelled():
            pass
        watching.stop()
    assert watching._thread is not None
    assert not watching._thread.is_alive()


def test_this_process_is_known_to_the_system() -> None:
    assert usage_of([os.getpid()])[os.getpid()].cpu_s > 0
