"""Handing the shards of an extraction to the workers of a Dask cluster, as native futures.

The devices of one machine are handed theirs in the same way; see `micu_extract.cluster.devices`.

Every future is tied to one worker, and a worker has one at a time. Left to itself, the scheduler
runs what died with a worker on the next one, four times, and fails what was waiting there with it.
Here it is known which share died where, so that the shard at fault is found: it is tried twice
among others, and once more while nothing else runs, so that it cannot be a neighbour's fault.
"""

import contextlib
import itertools
import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, replace
from typing import Any

import click

from micu.base.errors import ConfigError, DeviceError, MicuError
from micu.base.process import EXIT_DEVICE, EXIT_FAILURES, EXIT_IO, EXIT_USAGE, StopFlag
from micu_extract.cluster.dask.making import tell_differences
from micu_extract.cluster.dask.worker import (
    GRACE_S,
    RESOURCE,
    UNLIKE,
    Errand,
    ShareEnd,
    Sight,
    look_around,
    run_share,
    stop_shares,
)
from micu_extract.pipeline.decode_ahead import ALL_FAILED, RETRIES, TOO_MANY_FAILED
from micu_extract.pipeline.failures import Limit
from micu_extract.pipeline.plan import Plan
from micu_extract.sets.shares import Part

logger = logging.getLogger(__name__)

POLL_S = 0.3
"""How often the cluster is looked at, s."""
HERE_POLL_S = 0.02
"""How often devices of this machine are, s."""
ANSWER_S = 60.0
"""How long the scheduler, or a worker, may take to answer, s."""
WORKERLESS_S = 300.0
"""How long a run waits for a worker when all are gone, s."""
MOST_TOLD = 8
"""Workers that a message names."""
BAD_WORKER = 3
"""Shares in a row that fail on a worker which stays alive: it is given no more."""
FRUITLESS = 20
"""Shares in a row that fail anywhere, without a shard made: the run is at fault, not a shard."""


@dataclass(frozen=True, slots=True)
class Flight:
    """A share that a worker has."""

    future: Any
    shards: Sequence[int]
    alone: bool
    """Nothing else runs meanwhile."""


@dataclass(slots=True)
class Dispatcher:
    """Hands shares to workers, one at a time to each, and finds out what is at fault."""

    client: Any
    errand: Errand
    count: int
    """Shards of a set."""
    replan: Callable[[], list[Plan]]
    max_failures: Limit | None
    option: str = "--dask"
    """What was typed, for messages."""

    one_by_one: bool = False
    """Shares are of one shard: those between are of others."""
    flights: dict[str, Flight] = field(default_factory=dict)
    """By the worker's address."""
    doubts: bool = True
    """Whether a share may stop because its first clips all fail, see `ALL_FAILED`."""
    guilty: dict[int, str] = field(default_factory=dict)
    """Shards that ended their worker every time, and how."""
    told: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Sums of what shares reported, by the set's folder."""
    shared: dict[str, str] = field(default_factory=dict)
    """What the first failures of a share that was stopped by them share, by the set's folder."""
    _alive: Collection[str] = ()
    _seats: dict[str, int] = field(default_factory=dict)
    """Workers that take shares: how many failed in a row."""
    _unfit: set[str] = field(default_factory=set)
    _unlike: dict[str, str] = field(default_factory=dict)
    """Workers that would make other features, and what they have otherwise."""
    _seated: float = 0.0
    """When there was a worker last."""
    _round: Sequence[int] = ()
    _waiting: list[int] = field(default_factory=list)
    _suspects: list[int] = field(default_factory=list)
    _failures: Counter[int] = field(default_factory=Counter)
    """Of each shard."""
    _fruitless: int = 0

    def look_at_all(self) -> None:
        """Look at the workers that there are, and refuse to begin with one that is blind.

        Raises:
            ConfigError: A worker does not see the run's files, or none offers a GPU and has the
                same micu.
        """
        problems = self._look()
        if problems:
            raise ConfigError(
                f"{self.option}: expected workers that see what is here\n" + "\n".join(problems)
            )
        if not self._seats and self._unlike:
            raise ConfigError(
                f"--dask: expected workers with what makes features here, got none{self._told()}"
            )
        if not self._seats:
            raise ConfigError(
                f"--dask: expected workers that offer {RESOURCE}, got {len(self._alive)} without; "
                "start one for each GPU: CUDA_VISIBLE_DEVICES=0 dask worker SCHEDULER --nthreads 1 "
                f"--resources {RESOURCE}=1 (without a GPU too: it is the right to one share)"
            )

    def run(self, shards: Sequence[int], stop: StopFlag) -> None:
        """Hand out shards until all are made or found guilty, or the run is stopped."""
        self._round, self._waiting, self._suspects = shards, list(shards), []
        self._seated = time.monotonic()
        try:
            while not stop.name and (self._waiting or self._suspects or self.flights):
                for problem in self._look():
                    logger.warning("%s; it is given nothing", problem)
                self._wait_for_seats()
                self._hand_out()
                self._collect()
                if self._too_many_failed(
                    at_end=not (self._waiting or self._suspects or self.flights)
                ):
                    stop.name = stop.name or TOO_MANY_FAILED
                if self.shared:
                    stop.name = stop.name or ALL_FAILED
                time.sleep(POLL_S if self.option == "--dask" else HERE_POLL_S)
        finally:
            self._recall()

    # --- workers -----------------------------------------------------------------------------

    def _look(self) -> list[str]:
        """See who is there; what is wrong with workers that have come."""
        self._alive = self._ask_who_is_there()
        self._seats = {address: n for address, n in self._seats.items() if address in self._alive}
        self._unfit.intersection_update(self._alive)
        self._unlike = {name: told for name, told in self._unlike.items() if name in self._alive}
        new = [a for a in self._alive if a not in self._seats and a not in self._unfit]
        problems = []
        for address, sight in self._tell(new, look_around, self.errand).items():
            seen = sight if isinstance(sight, Sight) else Sight(1, (f"cannot look: {sight!r}",))
            if seen.offers < 1 or seen.problems:
                self._unfit.add(address)
            elif differences := tell_differences(self.errand.making, seen.making):
                self._refuse(address, "; ".join(differences))
            else:
                self._seats[address] = 0
            if seen.offers >= 1:
                problems += [f"worker {address} {problem}" for problem in seen.problems]
        return problems

    def _refuse(self, address: str, differences: str) -> None:
        """Give nothing to a worker whose features would be others."""
        logger.warning(
            "worker %s would make other features: it has %s; it is given nothing",
            address,
            differences,
        )
        self._unlike[address] = differences
        self._unfit.add(address)
        self._seats.pop(address, None)

    def _told(self) -> str:
        """Which workers were refused for their micu, and what to do."""
        if not self._unlike:
            return ""
        told = [f"\nworker {worker} has {other}" for worker, other in self._unlike.items()]
        rest = f"\nand {len(told) - MOST_TOLD} more" if len(told) > MOST_TOLD else ""
        remedy = "\ninstall the same micu and libraries there, and start these workers anew"
        return "".join(told[:MOST_TOLD]) + rest + remedy

    def _ask_who_is_there(self) -> Collection[str]:
        try:
            there: Mapping[str, int] = self.client.nthreads(callback_timeout=ANSWER_S)
        except OSError as error:
            raise OSError(f"--dask: the scheduler does not answer: {error}") from error
        return there.keys()

    def _tell(self, workers: Sequence[str], do: Callable[..., Any], what: Any) -> dict[str, Any]:
        """What a function returns in the processes of workers, or the error that it raised."""
        if not workers:  # which Dask takes for all of them
            return {}
        try:
            told: dict[str, Any] = self.client.run(
                do, what, workers=workers, on_error="return", callback_timeout=ANSWER_S
            )
        except OSError as error:  # one did not answer, which takes the answers of all along
            return dict.fromkeys(workers, error)
        return told

    def _wait_for_seats(self) -> None:
        now = time.monotonic()
        if self._seats or self.flights:
            self._seated = now
        elif now - self._seated > WORKERLESS_S:
            raise MicuError(
                f"--dask: expected workers that offer {RESOURCE}, got none for {WORKERLESS_S:g} s; "
                f"start some and type the same command to go on{self._told()}"
            )

    def _hand_out(self) -> None:
        free = [address for address in self._seats if address not in self.flights]
        for address in sorted(free, key=lambda address: self._seats[address]):
            alone = not self._waiting
            if alone and (self.flights or not self._suspects):
                return
            shards = [self._suspects.pop(0)] if alone else self._take()
            last = 0 if self.one_by_one else shards[-1] + 1
            part = Part(shards[0] + 1, self.count, last)
            future = self.client.submit(
                run_share,
                self._errand(),
                str(part),
                workers=[address],
                resources={RESOURCE: 1},
                pure=False,
            )
            self.flights[address] = Flight(future, shards, alone)

    def _errand(self) -> Errand:
        """What a share is told now."""
        if self.doubts:
            return self.errand
        return replace(self.errand, words=(*self.errand.words, "--max-failures", "100%"))

    def _take(self) -> list[int]:
        """The next shards for one worker: many at first, single ones in the end.

        A share is a run of shards, in which only such as are made already may lie between.
        """
        most = 1 if self.one_by_one else -(-len(self._waiting) // (2 * len(self._seats)))
        start = self._round.index(self._waiting[0])
        pairs = zip(self._waiting[:most], self._round[start:], strict=False)
        shards = [mine for mine, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]
        del self._waiting[: len(shards)]
        return shards

    # --- what comes back ---------------------------------------------------------------------

    def _collect(self) -> None:
        for address, flight in list(self.flights.items()):
            if address not in self._alive:
                del self.flights[address]
                flight.future.cancel()  # the scheduler keeps it for a worker of that address
                self._failed(address, flight, "its Dask worker is gone")
            elif flight.future.done():
                del self.flights[address]
                self._judge(address, flight)

    def _judge(self, address: str, flight: Flight) -> None:
        try:
            report: ShareEnd = flight.future.result(timeout=ANSWER_S)
        except (Exception, CancelledError) as error:  # noqa: BLE001 - whatever Dask says, try again
            self._failed(address, flight, f"Dask gave no report: {error!r}")
            return
        if report.code in (0, EXIT_FAILURES):
            self._seats[address] = self._fruitless = 0
            printed = json.loads(report.printed.splitlines()[-1])
            summaries = printed if isinstance(printed, list) else [printed]
            if any(summary["stopped_by"] == ALL_FAILED for summary in summaries):
                self._doubt_all(flight, summaries)
            self._note(address, flight, summaries)
        elif report.code == UNLIKE:
            self._refuse(address, report.told)
            (self._suspects if flight.alone else self._waiting).extend(flight.shards)
            self._waiting.sort()
        elif report.code == EXIT_USAGE:
            raise MicuError(f"worker {address}: {report.last_words}")
        else:
            logger.warning("worker %s said:\n%s", address, report.told.strip())
            self._failed(address, flight, report.ending, report.code)

    def _doubt_all(self, flight: Flight, summaries: Sequence[Mapping[str, Any]]) -> None:
        """End the run with a share whose first clips all failed, unless others fare better."""
        if any(plan.done for plan in self.replan()):
            self.doubts = False
            self._waiting = sorted([*self._waiting, *flight.shards])
        else:
            self.shared |= {summary["folder"]: summary["shared"] for summary in summaries}

    def _note(self, address: str, flight: Flight, summaries: Sequence[Mapping[str, Any]]) -> None:
        for summary in summaries:
            sums = self.told[summary["folder"]]
            for name in ("extracted", "failed", "damaged", "read_s", "infer_s", "write_s"):
                sums[name] += summary[name]
        left = len(self._waiting) + len(self._suspects)
        left += sum(len(other.shards) for other in self.flights.values())
        click.echo(
            f"{address}: shards {flight.shards[0]} to {flight.shards[-1]}: extracted "
            f"{sum(s['extracted'] for s in summaries)}, failed "
            f"{sum(s['failed'] for s in summaries)}; {left} shards to go",
            err=True,
        )

    def _failed(self, address: str, flight: Flight, how: str, code: int = 0) -> None:
        """Put what a share has left back in the queue, and its first shard under suspicion."""
        left = sorted(shards_left(self.replan()) & set(flight.shards))
        self._fruitless = self._fruitless + 1 if len(left) == len(flight.shards) else 0
        if not left:
            return
        suspect, *others = left
        self._failures[suspect] += 1
        logger.warning("worker %s, shard %d: %s", address, suspect, how)
        if flight.alone:
            if code == EXIT_IO:
                raise OSError(f"worker {address}: {how}")
            if code == EXIT_DEVICE:  # as a run without a cluster would end
                raise DeviceError(f"worker {address}: {how}")
            self.guilty[suspect] = how
            self._fruitless, self._seats = 0, dict.fromkeys(self._seats, 0)
        elif self._failures[suspect] >= RETRIES:
            self._suspects.append(suspect)
        else:
            others.append(suspect)
        self._waiting = sorted([*self._waiting, *others])
        if self._fruitless >= FRUITLESS:
            raise MicuError(
                f"{self.option}: expected shards, got {FRUITLESS} shares in a row that failed, the "
                f"last on {address}: {how}; when that is mended, type the same command to go on"
            )
        self._doubt(address, flight)

    def _doubt(self, address: str, flight: Flight) -> None:
        """Give nothing more to a worker that fails again and again while others do not."""
        if address in self._seats and flight.shards[0] not in self.guilty:
            self._seats[address] += 1
            if self._seats[address] >= BAD_WORKER and not all(self._seats.values()):
                logger.warning("worker %s fails what others do not; it is given no more", address)
                self._unfit.add(address)
                del self._seats[address]

    def _too_many_failed(self, *, at_end: bool) -> bool:
        return self.max_failures is not None and any(
            self.max_failures.reached(
                int(sums["failed"]), int(sums["extracted"] + sums["failed"]), at_end=at_end
            )
            for sums in self.told.values()
        )

    def _recall(self) -> None:
        """Have the shares that are out publish what is whole, and wait for it."""
        deadline = time.monotonic() + GRACE_S + ANSWER_S
        with contextlib.suppress(OSError):  # with the scheduler lost, workers end by themselves
            busy = [address for address in self._ask_who_is_there() if address in self.flights]
            self._tell(busy, stop_shares, self.errand.run)
            while self.flights and time.monotonic() < deadline:
                alive = self._ask_who_is_there()
                for address, flight in list(self.flights.items()):
                    if flight.future.done() or address not in alive:
                        del self.flights[address]
                time.sleep(POLL_S)


def shards_left(plans: Sequence[Plan]) -> set[int]:
    """Numbers of the shards that any set lacks clips of."""
    return {shard.number for plan in plans for shard in plan.shards}
