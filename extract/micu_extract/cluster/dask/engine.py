"""An extraction in shares: by a Dask cluster, `micu-extract … --dask ADDRESS`, or by `--devices`.

This process plans, has the shards made by the cluster's workers (see
`micu_extract.cluster.dask.dispatch`), and joins their records when all are through: shards and
ledger are those of one local run.
"""

import logging
import secrets
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from micu.base.command_line import typed_words
from micu.base.errors import ConfigError, ExtraError, MicuError
from micu.base.files import TEMPORARY_SUFFIX, check_held, hold_file, remove_stale_temporaries
from micu.base.process import stop_signals
from micu.store.ledger import Failure, append_ledger, read_ledger
from micu_extract.cluster.dask.dispatch import Dispatcher, shards_left
from micu_extract.cluster.dask.making import OWN, describe_making
from micu_extract.cluster.dask.worker import Errand
from micu_extract.pipeline.decode_ahead import ALL_FAILED, RETRIES
from micu_extract.pipeline.failures import JUDGED_FIRST, Limit, describe_shared
from micu_extract.pipeline.plan import Job, Plan, plan_extraction
from micu_extract.pipeline.writer import Summary, enter_folder
from micu_extract.sets.merge import merge_set
from micu_extract.sets.shares import Part, refuse_other_partitions

logger = logging.getLogger(__name__)

CONNECT_S = 30.0
"""How long a scheduler may take to answer, s."""
ROUNDS = 3
"""How often what is left in the end is handed out again."""
TOKEN_S = 86400.0
"""Age from which the token of a run that seems dead is removed, s: locks of callers on other
machines may not be seen."""
CALLERS_OWN = (
    *("--dask", "--devices", "--part", "--max-failures", "--overwrite", "--retry-failed", "--json"),
)
"""Options that are not passed on to shares."""


def extract_on_cluster(
    address: str, job: Job, plans: Sequence[Plan], max_failures: Limit | None = None
) -> list[Summary]:
    """Make feature sets of one manifest on the workers of a Dask scheduler; see `extract_shared`.

    Raises:
        ConfigError: There is no scheduler at this address.
        OSError: The scheduler was lost.
    """
    return extract_shared(_connect(address), "--dask", job, plans, max_failures)


def extract_shared(
    connection: AbstractContextManager[Any],
    option: str,
    job: Job,
    plans: Sequence[Plan],
    max_failures: Limit | None = None,
) -> list[Summary]:
    """Make feature sets of one manifest by the workers of what is to be connected.

    Safe to interrupt and to type again, as `extract_several` is.

    Args:
        connection: Gives what `Dispatcher` takes for a Dask client.
        option: What was typed, for messages.
        job: What was asked for.
        plans: Of the sets, made here, with one number of rows per shard.
        max_failures: More of them in one set stop the run, with `stopped_by` `TOO_MANY_FAILED`.

    Raises:
        ConfigError: There is no worker with a GPU to offer, or one that does not see the run's
            files.
        MicuError: A worker refused the run, or none is left.
        DeviceError: Workers have no memory left on their devices, and others do not make up for it.
        OSError: A disk refused a shard.
    """
    started = time.monotonic()
    # Of the shards of part i/n, each is a part i + n j of some multiple of n.
    parts = job.part.count if job.part else 1
    count = -(-max(len(plan.layout) for plan in plans) // parts) * parts
    for plan in plans:
        if not plan.replaces:
            refuse_other_partitions(plan.folder, Part(1, count))
    later = replace(job, overwrite=False, retry_failed=False, look_again=False)
    doubts = max_failures is None or not max_failures.bears_all
    doubts = doubts and not any(plan.done for plan in plans)

    def replan() -> list[Plan]:
        for plan in plans:
            check_held(plan.folder)
        return [plan_extraction(later, plan.header.spec) for plan in plans]

    with ExitStack() as stay, stop_signals() as stop:
        with connection as client, _describe_run(job, plans) as errand:
            about = (client, errand, count, replan, max_failures, option)
            dispatcher = Dispatcher(*about, one_by_one=parts > 1, doubts=doubts)
            dispatcher.look_at_all()
            for plan in plans:
                # Shares write ledgers of their own, into which this one is not to speak.
                again = {failure.source for failure in plan.again.values()}
                mine = replace(plan, dropped=plan.dropped | again)
                stay.enter_context(enter_folder(mine))
            ledgers = [read_ledger(plan.folder).keys() for plan in plans]
            for _ in range(ROUNDS):
                left = shards_left(replan()) - dispatcher.guilty.keys()
                if stop.name or not left:
                    break
                dispatcher.run(sorted(left), stop)
        if not dispatcher.flights:
            for plan in replan():
                _close_set(plan, dispatcher.guilty, option.removeprefix("--"))
    summaries = [
        _summarise(before, after, known, dispatcher.told[str(before.folder)])
        for before, after, known in zip(plans, replan(), ledgers, strict=True)
    ]
    for summary in summaries:
        summary.stopped_by, summary.wall_s = stop.name, time.monotonic() - started
        if stop.name == ALL_FAILED:  # none of them is filed
            summary.failed = int(dispatcher.told[summary.folder]["failed"])
            summary.shared = dispatcher.shared.get(summary.folder, "")
        if summary.left and not stop.name:
            raise MicuError(
                f"{summary.folder}: expected no clip left, got {summary.left} in {ROUNDS} rounds; "
                "is another run at work there? Type the same command to go on"
            )
    return summaries


# --- before and after --------------------------------------------------------------------------


def check_dask() -> Any:
    """Dask's client.

    Raises:
        ExtraError: Dask is not installed.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ExtraError("distributed", "dask") from error
    return Client


@contextmanager
def _connect(address: str) -> Iterator[Any]:
    try:
        client = check_dask()(address, name="micu-extract", set_as_default=False, timeout=CONNECT_S)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--dask {address}: expected the address of a Dask scheduler, got: {error}; start one "
            "with: dask scheduler, and type the address that it prints"
        ) from error
    with client:
        try:
            yield client
        except Exception as error:
            if isinstance(error, MicuError | OSError) or client.status not in ("closing", "closed"):
                raise
            raise OSError(f"--dask {address}: the scheduler was lost: {error}") from error


@contextmanager
def _describe_run(job: Job, plans: Sequence[Plan]) -> Iterator[Errand]:
    """What the workers are told; while it lasts, a file among the features shows them the place."""
    run = secrets.token_hex(6)
    out = job.out.absolute()
    remove_stale_temporaries(out, TOKEN_S)
    token = out / f".dask-{run}{TEMPORARY_SUFFIX}"
    command, *words = job.words or typed_words(CALLERS_OWN)
    # As it was typed: it stands in messages of the ledger.
    place = [] if command == "text" else ["--media-root", str(job.media_root)]
    libraries = sorted({name for plan in plans for name in plan.header.spec.versions})
    modules = tuple(sorted(name for name in set(job.modules) if name.split(".")[0] not in OWN))
    with hold_file(token):
        yield Errand(
            run=run,
            words=(command, *place, *words),
            folder=str(Path.cwd()),
            manifest=str(job.manifest.path.absolute()),
            manifest_sha256=job.manifest.sha256,
            media_root=str(job.media_root.absolute()),
            token=str(token),
            making=describe_making(libraries, modules),
            modules=modules,
        )


def _close_set(plan: Plan, guilty: Mapping[int, str], stage: str) -> None:
    """Put the clips of guilty shards in the ledger, and make one index and one ledger of all."""
    tries = f"failed {RETRIES + 1} times, the last time with nothing beside it"
    failures = [
        Failure(
            row.clip.clip_id,
            stage,
            "worker_died",
            f"shard {shard.number} {tries}: {guilty[shard.number]}",
            row.source,
        )
        for shard in plan.shards
        for row in shard.todo
        if shard.number in guilty
    ]
    append_ledger(plan.folder, failures, plan.label)
    if plan.part is not None:  # others are at work
        return
    report = merge_set(plan.folder, incomplete=True)
    if report.parts and not report.folded:
        logger.warning("%s: not joined: %s", plan.folder, "; ".join(report.problems[:5]))
    remove_stale_temporaries(plan.folder)


def _summarise(
    before: Plan, after: Plan, known: Collection[str], told: Mapping[str, float]
) -> Summary:
    """What a run did, from what was there before and is there now.

    Args:
        before: The run's plan.
        after: What is left to do.
        known: Clips that were in the ledger when the run began.
        told: Sums of what shares reported.
    """
    ledger = read_ledger(after.folder)
    still = [key for key, row in before.again.items() if ledger.get(key) == row]
    clips = {row.clip.clip_id: row.clip for shard in before.shards for row in shard.todo}
    others = {*known, *still}  # and those of other parts, which are not of these clips
    fresh = [row for key, row in ledger.items() if key in clips and key not in others]
    first = [(clips[row.clip_id], row) for row in fresh][:JUDGED_FIRST]
    return Summary(
        folder=str(before.folder),
        clips=before.done + before.failed + before.todo,
        done_before=before.done,
        failed_before=before.failed + len(still),
        extracted=after.done - before.done,
        failed=after.failed - before.failed - len(still),
        left=after.todo,
        damaged=int(told["damaged"]),
        read_s=told["read_s"],
        infer_s=told["infer_s"],
        write_s=told["write_s"],
        codes=dict(Counter(row.code for row in fresh)),
        shared="" if after.done else describe_shared(first),
    )
