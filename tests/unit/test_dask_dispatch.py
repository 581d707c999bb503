"""Who is given what, and who is blamed, with stand-ins for a Dask cluster."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

import micu_extract.cluster.dask.dispatch as dispatch
from micu.base.errors import ConfigError, DeviceError, MicuError
from micu.base.process import StopFlag
from micu_extract.cluster.dask.dispatch import Dispatcher
from micu_extract.cluster.dask.worker import UNLIKE, ShareEnd, Sight, look_around
from micu_extract.pipeline.failures import Limit
from micu_extract.sets.shares import Part, parse_part

MADE = json.dumps(dict.fromkeys(("extracted", "failed", "damaged"), 1) | {"folder": "f"})[:-1]
MADE += ', "stopped_by": "", "read_s": 0.1, "infer_s": 0.1, "write_s": 0.1}\n'


HERE = {"micu": "code 1", "torch": "2.14.1"}


@dataclass
class Cluster:
    """Does at once what it is given, and remembers it.

    Args:
        does: From a worker and a share to what becomes of it; None makes the shards, and the word
            `gone` takes the worker along.
    """

    does: Callable[[str, Part], ShareEnd | str | None]
    shards: int = 8
    there: list[str] = field(default_factory=lambda: ["a", "b"])
    blind: dict[str, str] = field(default_factory=dict)
    making: dict[str, dict[str, str]] = field(default_factory=dict)
    """Of workers that have not what makes features here."""
    offers: int = 1
    given: list[tuple[str, str]] = field(default_factory=list)
    beside: list[int] = field(default_factory=list)
    """Shares that were out already when a share was given."""
    made: set[int] = field(default_factory=set)
    out: int = 0

    def nthreads(self, **options: object) -> dict[str, int]:
        return dict.fromkeys(self.there, 1)

    def run(
        self, do: Callable[..., Any], what: object, *, workers: list[str], **options: object
    ) -> dict[str, Any]:
        if do is not look_around:
            return {}
        problems = {name: ((self.blind[name],) if name in self.blind else ()) for name in workers}
        making = {name: self.making.get(name, HERE) for name in workers}
        return {name: Sight(self.offers, problems[name], making[name]) for name in workers}

    def submit(
        self, run: object, errand: object, part: str, *, workers: list[str], **options: object
    ) -> "Future":
        (worker,) = workers
        self.given.append((worker, part))
        self.beside.append(self.out)
        self.out += 1
        return Future(self, worker, parse_part(part))

    def left(self) -> list[Any]:
        numbers = [number for number in range(self.shards) if number not in self.made]
        return [SimpleNamespace(shards=[SimpleNamespace(number=number) for number in numbers])]

    def dispatcher(self, max_failures: Limit | None = None) -> Dispatcher:
        errand: Any = SimpleNamespace(run="x", making=HERE)
        made = Dispatcher(self, errand, self.shards, self.left, max_failures)
        made.look_at_all()
        return made


@dataclass
class Future:
    cluster: Cluster
    worker: str
    part: Part
    ended: ShareEnd | None = None

    def done(self) -> bool:
        self.cluster.out -= 1
        deed = self.cluster.does(self.worker, self.part)
        if deed is None:
            shards = range(self.cluster.shards)
            self.cluster.made |= {shard for shard in shards if self.part.owns(shard)}
        if deed == "gone":
            self.cluster.there.remove(self.worker)
            self.cluster.there.append(self.worker + "'")
            return False
        self.ended = deed if isinstance(deed, ShareEnd) else ShareEnd(0, MADE, "")
        return True

    def cancel(self) -> None:
        pass

    def result(self, timeout: float) -> ShareEnd:
        assert self.ended is not None
        return self.ended


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(dispatch, "POLL_S", 0.0)
    return


def run(cluster: Cluster) -> Dispatcher:
    dispatcher = cluster.dispatcher()
    dispatcher.run(range(cluster.shards), StopFlag())
    return dispatcher


def test_shares_are_long_at_first_and_short_in_the_end() -> None:
    cluster = Cluster(lambda worker, part: None, shards=20)
    run(cluster)
    parts = [parse_part(part) for _, part in cluster.given]
    assert [part.last - part.number + 1 for part in parts] == [5, 4, 3, 2, 2, 1, 1, 1, 1]
    assert cluster.made == set(range(20))


def test_a_share_reaches_over_shards_that_are_made_but_not_over_others() -> None:
    cluster = Cluster(lambda worker, part: None, shards=9)
    cluster.made = {1, 2, 5}
    cluster.dispatcher().run([0, 3, 4, 6, 7, 8], StopFlag())
    assert [part for _, part in cluster.given[:2]] == ["1-4/9", "5-5/9"]
    assert cluster.made == set(range(9))


@pytest.mark.parametrize("deed", ["gone", ShareEnd(-9, "", ""), ShareEnd(1, "", "Error: 5")])
def test_a_shard_that_fails_three_times_is_guilty_and_was_alone_the_last_time(
    deed: ShareEnd | str,
) -> None:
    cluster = Cluster(lambda worker, part: None)

    def up_to_the_third(worker: str, part: Part) -> ShareEnd | str | None:
        if not part.owns(3):
            return None
        cluster.made |= {shard for shard in range(3) if part.owns(shard)}
        return deed

    cluster.does = up_to_the_third
    assert run(cluster).guilty.keys() == {3}
    assert cluster.made == set(range(8)) - {3}
    tries = [i for i, (_, part) in enumerate(cluster.given) if parse_part(part).owns(3)]
    assert len(tries) == 3
    assert cluster.given[tries[-1]][1] == "4-4/8"
    assert cluster.beside[tries[-1]] == 0


def test_a_share_that_makes_nothing_is_taken_apart_until_the_guilty_is_found() -> None:
    cluster = Cluster(lambda worker, part: "gone" if part.owns(3) else None)
    assert run(cluster).guilty.keys() == {3}
    assert cluster.made == set(range(8)) - {3}


def test_what_fails_beside_others_only_is_innocent() -> None:
    cluster = Cluster(lambda worker, part: None)
    cluster.does = lambda worker, part: "gone" if part.owns(3) and cluster.out else None
    assert run(cluster).guilty == {}
    assert cluster.made == set(range(8))


def test_a_worker_that_fails_what_others_do_not_is_given_no_more() -> None:
    cluster = Cluster(
        lambda worker, part: ShareEnd(1, "", "") if worker == "b" else None, shards=40
    )
    dispatcher = run(cluster)
    assert dispatcher.guilty == {}
    assert cluster.made == set(range(40))
    assert sum(worker == "b" for worker, _ in cluster.given) <= dispatch.BAD_WORKER


def test_a_run_whose_every_share_fails_stops_without_blaming_a_shard() -> None:
    cluster = Cluster(lambda worker, part: ShareEnd(1, "", "no driver"), shards=400)
    dispatcher = cluster.dispatcher()
    with pytest.raises(MicuError, match=r"20 shares in a row that failed.*exit code 1 \(no driver"):
        dispatcher.run(range(400), StopFlag())
    assert dispatcher.guilty == {}


def test_a_full_disk_ends_the_run_without_blaming_a_shard() -> None:
    cluster = Cluster(lambda worker, part: ShareEnd(74, "", "error: disk full"))
    dispatcher = cluster.dispatcher()
    with pytest.raises(OSError, match="disk full"):
        dispatcher.run([0], StopFlag())
    assert dispatcher.guilty == {}


NO_MEMORY = ShareEnd(71, "", "error: cuda:0: expected memory for a batch of one unit")


def test_a_worker_whose_device_has_no_memory_is_given_no_more_and_costs_no_shard() -> None:
    cluster = Cluster(lambda worker, part: NO_MEMORY if worker == "b" else None, shards=40)
    assert run(cluster).guilty == {}
    assert cluster.made == set(range(40))
    assert sum(worker == "b" for worker, _ in cluster.given) <= dispatch.BAD_WORKER


def test_workers_that_all_lack_memory_end_the_run_without_blaming_a_shard() -> None:
    dispatcher = Cluster(lambda worker, part: NO_MEMORY, shards=2).dispatcher()
    with pytest.raises(DeviceError, match=r"worker [ab]: exit code 71 .cuda:0: expected memory"):
        dispatcher.run(range(2), StopFlag())
    assert dispatcher.guilty == {}


def test_what_a_worker_refuses_ends_the_run() -> None:
    cluster = Cluster(lambda worker, part: ShareEnd(2, "", "error: other weights\nretype"))
    with pytest.raises(MicuError, match="worker a: other weights\nretype"):
        run(cluster)


def test_a_worker_that_comes_later_and_sees_nothing_is_passed_over() -> None:
    cluster = Cluster(lambda worker, part: None)
    dispatcher = cluster.dispatcher()
    cluster.there.append("c")
    cluster.blind["c"] = "does not see /features"
    dispatcher.run(range(8), StopFlag())
    assert {worker for worker, _ in cluster.given} == {"a", "b"}


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"blind": {"b": "does not see /features"}}, "worker b does not see /features"),
        ({"offers": 0}, "expected workers that offer GPU, got 2 without"),
    ],
)
def test_a_run_does_not_begin_without_workers_that_see_and_offer(
    facts: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Cluster(lambda worker, part: None, **facts).dispatcher()


def test_a_run_whose_workers_are_all_gone_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "WORKERLESS_S", 0.0)
    cluster = Cluster(lambda worker, part: None)
    dispatcher = cluster.dispatcher()
    cluster.there.clear()
    with pytest.raises(MicuError, match="expected workers that offer GPU, got none"):
        dispatcher.run(range(8), StopFlag())


def test_too_many_failures_stop_a_run() -> None:
    stop = StopFlag()
    cluster = Cluster(lambda worker, part: None, shards=20)
    cluster.dispatcher(Limit(count=2)).run(range(20), stop)
    assert stop.name == "too many failures"
    assert len(cluster.given) < 9


# --- workers with another micu -----------------------------------------------------------------

OTHER_CODE = {**HERE, "micu": "code 2"}


@pytest.mark.parametrize(
    ("making", "told"),
    [
        (OTHER_CODE, "micu code 2 (here code 1)"),
        ({**HERE, "torch": "2.13.0"}, "torch 2.13.0 (here 2.14.1)"),
        ({"micu": "code 1"}, "torch none (here 2.14.1)"),
        ({}, "micu none (here code 1); torch none (here 2.14.1)"),
    ],
)
def test_a_worker_that_would_make_other_features_is_given_nothing(
    making: dict[str, str], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = Cluster(lambda worker, part: None, making={"b": making})
    run(cluster)
    assert cluster.made == set(range(8))
    assert {worker for worker, _ in cluster.given} == {"a"}
    assert caplog.messages == [
        f"worker b would make other features: it has {told}; it is given nothing"
    ]


def test_a_worker_that_has_more_libraries_is_welcome() -> None:
    cluster = Cluster(lambda worker, part: None, making={"b": {**HERE, "scipy": "1.0"}})
    run(cluster)
    assert {worker for worker, _ in cluster.given} == {"a", "b"}


def test_a_worker_with_another_micu_that_comes_later_is_given_nothing() -> None:
    cluster = Cluster(lambda worker, part: None)
    dispatcher = cluster.dispatcher()
    cluster.there.append("c")
    cluster.making["c"] = OTHER_CODE
    dispatcher.run(range(8), StopFlag())
    assert {worker for worker, _ in cluster.given} == {"a", "b"}


def test_a_run_does_not_begin_where_every_worker_has_another_micu() -> None:
    cluster = Cluster(lambda worker, part: None, making={"a": OTHER_CODE, "b": {}})
    with pytest.raises(ConfigError) as caught:
        cluster.dispatcher()
    assert str(caught.value) == (
        "--dask: expected workers with what makes features here, got none\n"
        "worker a has micu code 2 (here code 1)\n"
        "worker b has micu none (here code 1); torch none (here 2.14.1)\n"
        "install the same micu and libraries there, and start these workers anew"
    )


@pytest.mark.parametrize(("workers", "rest"), [(8, None), (9, 1), (30, 22)])
def test_of_many_refused_workers_eight_are_named(workers: int, rest: int | None) -> None:
    there = [f"w{i}" for i in range(workers)]
    cluster = Cluster(
        lambda worker, part: None, there=there, making=dict.fromkeys(there, OTHER_CODE)
    )
    with pytest.raises(ConfigError) as caught:
        cluster.dispatcher()
    assert str(caught.value).count("code 2") == 8
    assert (f"and {rest} more" in str(caught.value)) == (rest is not None)
    assert ("more" in str(caught.value)) == (rest is not None)


def test_a_worker_whose_micu_changes_midway_loses_its_share_to_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    changed = ShareEnd(UNLIKE, "", "micu code 2 (here code 1)")
    cluster = Cluster(lambda worker, part: changed if worker == "b" else None, shards=20)
    assert run(cluster).guilty == {}
    assert cluster.made == set(range(20))
    assert sum(worker == "b" for worker, _ in cluster.given) == 1
    assert "worker b would make other features" in caplog.text


def test_a_run_whose_last_worker_changes_ends_with_what_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "WORKERLESS_S", 0.0)
    changed = ShareEnd(UNLIKE, "", "micu code 2 (here code 1)")
    dispatcher = Cluster(lambda worker, part: changed).dispatcher()
    with pytest.raises(MicuError, match=r"got none for 0 s.*\nworker a has micu code 2 .here"):
        dispatcher.run(range(8), StopFlag())
    assert dispatcher.guilty == {}


def test_a_suspect_is_left_in_doubt_by_a_worker_that_changes() -> None:
    cluster = Cluster(lambda worker, part: None)
    alone: list[str] = []

    def does(worker: str, part: Part) -> ShareEnd | None:
        if not part.owns(3):
            return None
        if part.number == part.last == 4 and not cluster.out and not alone:
            alone.append(worker)
            return ShareEnd(UNLIKE, "", "micu code 2 (here code 1)")
        return ShareEnd(1, "", "no driver") if not alone else None

    cluster.does = does
    assert run(cluster).guilty == {}
    assert cluster.made == set(range(8))
