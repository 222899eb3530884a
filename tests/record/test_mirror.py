"""Whoever takes up a run continues one writer's history, whatever happened to the writers before.

The S3-compatible server is moto's (see `tests.record.s3`).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from filelock import FileLock

from proxygap.base.errors import StorageError, Superseded
from proxygap.base.files import Place
from proxygap.record import mirror as mirror_module
from proxygap.record.attempt import Attempt, Held, asked_attempt, attempts_of, held_by
from proxygap.record.journal import Journal
from proxygap.record.mirror import Mirror, fetch
from proxygap.record.storage import Storage
from tests.record.histories import Writer, check, rows_of
from tests.record.s3 import S3Server, root, s3

__all__ = ["root", "s3"]

ROOT = Path(__file__).resolve().parents[2]


class Killed(BaseException):
    """The process ends here."""


def taken(part: Storage, local: Path, least: int = 0) -> tuple[Mirror, Writer]:
    mirror = Mirror(part, local, least)
    return mirror, Writer(local, mirror.take_up().name)


def visible(local: Path) -> dict[str, bytes]:
    """Content of a folder as a run sees it."""
    files = (path for path in local.rglob("*") if path.is_file())
    names = ((path.relative_to(local), path) for path in files)
    return {
        name.as_posix(): path.read_bytes()
        for name, path in names
        if name.name != "attempt.json" and not any(part.startswith(".") for part in name.parts)
    }


def test_another_node_continues_where_the_last_publish_was(root: str, tmp_path) -> None:
    part = Storage(root).below("run-1", "seed-0")
    assert fetch(part, tmp_path / "viewer") is None
    mirror, writer = taken(part, tmp_path / "a")
    assert mirror.attempt.number == 1
    for _ in range(5):
        writer.step()
    mirror.publish()
    published = visible(tmp_path / "a")
    writer.step()  # never published

    assert fetch(part, tmp_path / "viewer") == mirror.attempt
    assert visible(tmp_path / "viewer") == published
    second, continued = taken(part, tmp_path / "b")
    assert second.attempt.number == 2
    assert visible(tmp_path / "b") == published
    assert check(tmp_path / "b") == 5
    assert held_by(tmp_path / "b") == Held(second.attempt, writes=True)
    continued.step()
    with pytest.raises(Superseded, match="has taken this over"):
        mirror.publish()
    second.publish()
    with pytest.raises(Superseded):
        mirror.publish()
    assert attempts_of(part) == [second.attempt], "the older one was deleted once the newer had everything"
    assert fetch(part, tmp_path / "viewer") == second.attempt
    assert visible(tmp_path / "viewer") == visible(tmp_path / "b")

    # back on the first node: what it held is moved aside, whole
    lost = visible(tmp_path / "a")
    third, _ = taken(part, tmp_path / "a")
    assert third.attempt.number == 3
    assert visible(tmp_path / "a") == visible(tmp_path / "b")
    (aside,) = (tmp_path / "a" / ".aside").iterdir()
    assert aside.name.startswith(mirror.attempt.name)
    assert visible(aside) == lost


def test_only_what_changed_travels_and_what_is_gone_goes(root: str, tmp_path, monkeypatch) -> None:
    part = Storage(root).below("part")
    mirror, writer = taken(part, tmp_path / "a")
    written: list[str] = []
    replaced = Place._replaced
    monkeypatch.setattr(Place, "_replaced", lambda self: (written.append(self.path), replaced(self))[1])

    def sent() -> list[str]:
        names = [path.partition(mirror.attempt.name + "/")[2] for path in written]
        written.clear()
        return names

    for _ in range(4):
        writer.step()
    mirror.publish()
    first, second = (f"checkpoints/step-{n:010d}" for n in (2, 4))
    assert sent() == [
        "journal.jsonl",
        f"{first}/policy.safetensors",
        f"{second}/policy.safetensors",
        f"{first}/manifest.json",
        f"{second}/manifest.json",
        ".published.json",
        "status.json",
    ]
    mirror.publish()
    assert sent() == []
    for _ in range(2):
        writer.step()
    mirror.publish()
    third = "checkpoints/step-0000000006"
    assert sent() == [
        "journal.jsonl",
        f"{third}/policy.safetensors",
        f"{third}/manifest.json",
        ".published.json",
        "status.json",
    ]
    there = {name.partition("/")[2] for name in part.entries()}
    assert there == {*visible(tmp_path / "a"), ".claim.json", ".published.json"}

    fetch(part, tmp_path / "v")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "v").rglob("*.safetensors")}
    (tmp_path / "v" / "tracking.json").write_text("mine")
    for _ in range(2):
        writer.step()
    mirror.publish()
    fetch(part, tmp_path / "v")
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "v").rglob("*.safetensors")}
    kept = before.keys() & after.keys()
    assert [path.parent.name for path in kept] == [third.rpartition("/")[2]]
    assert all(before[path] == after[path] for path in kept)
    assert (tmp_path / "v" / "tracking.json").read_text() == "mine"
    assert check(tmp_path / "v") == 8
    assert not (tmp_path / "v" / second).exists()


def test_drafts_locks_links_and_what_is_skipped_stay(tmp_path) -> None:
    part, local = Storage(str(tmp_path / "store")).below("part"), tmp_path / "a"
    mirror = Mirror(part, local, skip=("seed-*", "trials"))
    mirror.take_up()
    for name in (
        "identity.json",
        "seed-0/journal.jsonl",
        "trials/0/x",
        "report/index.html",
        ".draft-1/x",
        ".x.tmp",
        "y.tmp",
    ):
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (local / name).write_text(name)
    (tmp_path / "secret").write_text("not ours")
    (local / "link").symlink_to(tmp_path / "secret")
    mirror.publish()
    found = {name.partition("/")[2] for name in part.entries()}
    assert found == {".claim.json", ".published.json", "identity.json", "report/index.html"}
    # taken up here by the newer attempt: the seeds' folders are not its business
    other = Mirror(part, tmp_path / "b", skip=("seed-*",))
    other.take_up()
    (tmp_path / "b" / "identity.json").write_text("other")
    other.publish()
    Mirror(part, local, skip=("seed-*", "trials")).take_up()
    assert (local / "identity.json").read_text() == "other"
    assert (local / "seed-0" / "journal.jsonl").exists()
    assert (local / "trials" / "0" / "x").exists()


def test_a_node_that_is_ahead_of_storage_keeps_what_it_has(root: str, tmp_path) -> None:
    part = Storage(root).below("part")
    mirror, writer = taken(part, tmp_path / "a")
    for _ in range(3):
        writer.step()
    mirror.publish()
    for _ in range(3):
        writer.step()
    again, _ = taken(part, tmp_path / "a")  # the process died before it published
    assert check(tmp_path / "a") == 6
    assert not (tmp_path / "a" / ".aside").exists()
    assert fetch(part, tmp_path / "a") == again.attempt
    assert check(tmp_path / "a") == 6
    again.publish()
    assert fetch(part, tmp_path / "v") == again.attempt
    assert check(tmp_path / "v") == 6


def test_a_checkpoint_that_was_never_published_is_not_mixed_into_another_history(tmp_path) -> None:
    part = Storage(str(tmp_path / "store")).below("part")
    mirror, writer = taken(part, tmp_path / "a")
    for _ in range(2):
        writer.step()
    mirror.publish()
    for _ in range(6):
        writer.step()
    other, continued = taken(part, tmp_path / "b")
    continued.step()
    other.publish()
    # a viewer that does not want checkpoints leaves those of step 8 lying about
    fetch(part, tmp_path / "a", ("checkpoints/*",))
    assert (tmp_path / "a" / "checkpoints" / "step-0000000008").exists()
    taken(part, tmp_path / "a")
    assert check(tmp_path / "a") == 3
    assert [path.name for path in (tmp_path / "a" / "checkpoints").iterdir()] == ["step-0000000002"]


def test_a_folder_from_before_there_was_storage_is_published_or_kept_aside(tmp_path) -> None:
    part = Storage(str(tmp_path / "store")).below("part")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        old = Writer(tmp_path / name, name)
        for _ in range(3 if name == "a" else 4):
            old.step()
    first, _ = taken(part, tmp_path / "a")
    assert check(tmp_path / "a") == 3
    first.publish()
    lost = visible(tmp_path / "b")
    taken(part, tmp_path / "b")
    assert visible(tmp_path / "b") == visible(tmp_path / "a")
    (aside,) = (tmp_path / "b" / ".aside").iterdir()
    assert visible(aside) == lost


def test_who_still_writes_a_folder_is_not_robbed_of_it(tmp_path) -> None:
    part = Storage(str(tmp_path / "store")).below("part")
    journal = Journal(tmp_path / "a" / "journal.jsonl")
    with pytest.raises(StorageError, match="another process is writing this run"):
        Mirror(part, tmp_path / "a").take_up()
    assert attempts_of(part) == []
    Mirror(part, tmp_path, skip=("a",)).take_up()
    journal.close()
    Mirror(part, tmp_path / "a").take_up()
    with FileLock(tmp_path / "a" / ".journal.jsonl.lock", timeout=0):
        pass


@pytest.mark.parametrize(("deaths", "points"), [(0, range(11)), (1, (0, 3, 6, 8))])
def test_every_point_of_death_leaves_a_whole_state(
    root: str, tmp_path, monkeypatch, unsynced, deaths: int, points: Sequence[int]
) -> None:
    """A publish is cut off after each of its operations in turn, ``deaths`` earlier attempts died likewise."""
    for point in points if root.startswith("file:") else points[1::3]:
        part = Storage(root).below(f"part-{deaths}-{point}")
        home = tmp_path / str(point)
        mirror, writer = taken(part, home / "first")
        for _ in range(4):
            writer.step()
        mirror.publish()
        for death in range(deaths + 1):
            mirror, writer = taken(part, home / str(death))
            for _ in range(3):
                writer.step()
            finished = publish_until(mirror, point, monkeypatch)
            behind, _ = taken(part, home / f"{death}-restored")
            rows = check(home / f"{death}-restored")
            assert rows == len(writer.rows) if finished else rows >= 4
            assert fetch(part, home / f"{death}-viewer") is not None
            assert check(home / f"{death}-viewer") == rows
            with pytest.raises(Superseded):
                mirror.publish()
            assert check(home / str(death)) == len(writer.rows), "nothing of the local folder was lost"
            behind.publish()


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here cuts the power, and waiting for the disk is most of the time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def publish_until(mirror: Mirror, operations: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Publish, but die before the operation of this number that changes storage; whether it got through."""
    left = [operations]

    def counted(original):
        def run(self, *args):
            if not left[0]:
                raise Killed
            left[0] -= 1
            return original(self, *args)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(Place, "_replaced", counted(Place._replaced))
        for name in ("delete", "remove"):
            patch.setattr(Storage, name, counted(getattr(Storage, name)))
        try:
            mirror.publish()
        except Killed:
            return False
    return True


@pytest.mark.parametrize("seed", range(12))
def test_any_interleaving_of_claims_publishes_deaths_and_fetches(seed: int, tmp_path, monkeypatch, unsynced) -> None:
    """Five nodes, one part, on disk: the newest writer's last whole publish is never lost, nor mixed with another's."""
    draw, part = random.Random(seed), Storage(str(tmp_path / "store")).below("part")
    running: dict[int, tuple[Mirror, Writer]] = {}
    owner, least = None, 0
    for _ in range(60):
        node, action = draw.randrange(5), draw.choice(["claim", "step", "step", "publish", "die", "fetch"])
        local = tmp_path / f"node-{node}"
        if action == "claim":
            running[node] = taken(part, local)
            assert check(local) >= least
            owner = node
        elif action == "fetch":
            fetch(part, tmp_path / f"viewer-{node}")
            assert check(tmp_path / f"viewer-{node}") >= least
        elif node in running:
            mirror, writer = running[node]
            if action == "step":
                writer.step()
                continue
            whole = False
            try:
                if action == "publish":
                    mirror.publish()
                    whole = True
                else:
                    whole = publish_until(mirror, draw.randrange(9), monkeypatch)
                    del running[node]
            except Superseded:
                assert node != owner
                running.pop(node, None)
            else:
                assert node == owner
            if whole:
                least = len(writer.rows)
    taken(part, tmp_path / "last")
    assert check(tmp_path / "last") >= least


def test_of_two_claims_at_once_the_larger_one_wins(root: str, tmp_path, monkeypatch) -> None:
    part = Storage(root).below("part")
    both, look = threading.Barrier(2), mirror_module.attempts_of
    waited = threading.local()

    def together(of: Storage) -> list[Attempt]:
        found = look(of)
        if not getattr(waited, "once", False):
            waited.once = True
            both.wait(60)
        return found

    monkeypatch.setattr(mirror_module, "attempts_of", together)
    lost: list[Path] = []
    won: list[Mirror] = []

    def run(local: Path) -> None:
        try:
            mirror, writer = taken(part, local)
            writer.step()
            time.sleep(0.2)
            mirror.publish()
        except Superseded:
            lost.append(local)
        else:
            won.append(mirror)

    threads = [threading.Thread(target=run, args=(tmp_path / name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    assert len(lost) == len(won) == 1
    assert won[0].attempt.number == 1
    assert fetch(part, tmp_path / "v") == won[0].attempt
    assert check(tmp_path / "v") == 1
    assert attempts_of(part) == [won[0].attempt]


def test_a_late_writer_at_full_speed_never_shows_in_what_the_winner_has(root: str, tmp_path) -> None:
    """Four nodes take the part from each other while all publish as fast as they can, and a viewer looks on."""
    part, over = Storage(root).below("part"), threading.Event()
    problems: list[BaseException] = []

    def guarded(work) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - told by the test
                problems.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def write(local: Path, begun: threading.Event) -> None:
        mirror, writer = taken(part, local)
        check(local, settled=False)
        try:
            while not over.is_set():
                writer.step()
                mirror.publish()
                begun.set()
        except Superseded:
            return

    def look() -> None:
        seen = 0
        while not (over.is_set() and seen):
            if fetch(part, tmp_path / "viewer"):
                seen = check(tmp_path / "viewer", settled=False)

    threads = [guarded(look)]
    for turn in range(4):
        begun = threading.Event()
        threads.append(guarded(lambda turn=turn, begun=begun: write(tmp_path / str(turn), begun)))
        assert begun.wait(120), problems
        time.sleep(0.4)
    over.set()
    for thread in threads:
        thread.join()
    assert problems == []
    rows = [len(rows_of(tmp_path / str(turn))) for turn in range(4)]
    taken(part, tmp_path / "last")
    assert check(tmp_path / "last") >= rows[3] - 1
    authors = [row["who"] for row in rows_of(tmp_path / "last")]
    assert authors == sorted(authors), "no attempt wrote after a newer one"


def test_eight_parts_at_once_do_not_disturb_each_other(s3: S3Server, tmp_path) -> None:
    run, problems = Storage(s3.uri(tmp_path.name)), []

    def work(seed: int) -> None:
        try:
            mirror, writer = taken(run.below(f"seed-{seed}"), tmp_path / f"seed-{seed}")
            for _ in range(4):
                writer.step()
                mirror.publish()
        except BaseException as error:  # noqa: BLE001 - told by the test
            problems.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert run.folders() == [f"seed-{seed}" for seed in range(8)]
    for seed in range(8):
        fetch(run.below(f"seed-{seed}"), tmp_path / "v" / f"seed-{seed}")
        assert check(tmp_path / "v" / f"seed-{seed}") == 4
        assert visible(tmp_path / "v" / f"seed-{seed}") == visible(tmp_path / f"seed-{seed}")


WRITER = """
import sys
from pathlib import Path
from proxygap.record.mirror import Mirror
from proxygap.record.storage import Storage
from tests.record.histories import Writer
mirror = Mirror(Storage(sys.argv[1]).below("part"), Path(sys.argv[2]))
writer = Writer(Path(sys.argv[2]), mirror.take_up().name)
while True:
    writer.step()
    print(len(writer.rows), flush=True)
    mirror.publish()
"""


def test_killed_while_it_publishes(root: str, tmp_path) -> None:
    """A real process, SIGKILL in the middle of a publish; its node and another one take up what it left."""
    part, draw, least = Storage(root).below("part"), random.Random(0), 0
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    for turn in range(1):
        local = tmp_path / f"node-{turn}"
        command = [sys.executable, "-c", WRITER, root, str(local)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=ROOT) as process:
            assert process.stdout is not None
            for _ in range(draw.randrange(5, 9)):
                told = int(process.stdout.readline())
            time.sleep(draw.random() * 0.02)
            process.send_signal(signal.SIGKILL)
        held = visible(local)
        assert len(rows_of(local)) >= told
        fetch(part, tmp_path / f"viewer-{turn}")
        least = check(tmp_path / f"viewer-{turn}")
        assert least >= told - 1, "every publish that had ended is there"
        assert visible(local) == held
    taken(part, tmp_path / "elsewhere")
    assert check(tmp_path / "elsewhere") >= least
    taken(part, tmp_path / "node-0")
    assert check(tmp_path / "node-0") >= least


def test_a_recovering_job_does_not_take_a_part_from_a_later_submission(tmp_path, monkeypatch) -> None:
    part = Storage(str(tmp_path / "store")).below("part")
    monkeypatch.delenv("PROXYGAP_ATTEMPT", raising=False)
    assert asked_attempt() == 0
    monkeypatch.setenv("PROXYGAP_ATTEMPT", "7")
    assert taken(part, tmp_path / "a", asked_attempt())[0].attempt.number == 7
    with pytest.raises(Superseded):
        Mirror(part, tmp_path / "b", least=6).take_up()
    assert taken(part, tmp_path / "b", 7)[0].attempt.number == 8
    assert taken(part, tmp_path / "c", 12)[0].attempt.number == 12
    assert taken(part, tmp_path / "d")[0].attempt.number == 13


def test_storage_that_fails_costs_one_publish(tmp_path, monkeypatch) -> None:
    part = Storage(str(tmp_path / "store")).below("part")
    mirror, writer = taken(part, tmp_path / "a")
    writer.step()
    synced = os.fsync

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    for _ in range(3):
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="Free disk space"):
            mirror.publish()
        monkeypatch.setattr(os, "fsync", synced)
        writer.step()
    mirror.publish()
    fetch(part, tmp_path / "v")
    assert check(tmp_path / "v") == 4


def test_a_damaged_copy_costs_a_checkpoint_and_never_a_journal(root: str, tmp_path) -> None:
    part = Storage(root).below("part")
    mirror, writer = taken(part, tmp_path / "a")
    for _ in range(4):
        writer.step()
    mirror.publish()
    there = part.below(mirror.attempt.name)
    there.remove("checkpoints/step-0000000004/policy.safetensors")
    taken(part, tmp_path / "b")
    found = Writer(tmp_path / "b", "b").store.load_newest("the run")
    assert found is not None
    assert (found.clocks.real_step, [refusal.name for refusal in found.refusals]) == (2, ["step-0000000004"])
    there.remove("journal.jsonl")
    with pytest.raises(StorageError, match="a journal is missing"):
        Mirror(part, tmp_path / "c").take_up()


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "a/../../evil", "attempt.json", ".copied.json", "a\\b"])
def test_a_list_from_a_stranger_leads_nowhere(root: str, name: str, tmp_path) -> None:
    part = Storage(root).below("part", "attempt-0001-00000000")
    files = {"ok": {"size": 1, "sha256": "0"}, name: {"size": 1, "sha256": "0", "text": "evil"}}
    part.write(".published.json", json.dumps({"files": files}).encode())
    for take in (
        lambda: fetch(Storage(root).below("part"), tmp_path / "x" / "a"),
        Mirror(Storage(root).below("part"), tmp_path / "x" / "b").take_up,
    ):
        with pytest.raises(StorageError, match="not the name of"):
            take()
    assert not any(
        path.name == "evil" or path.read_bytes() == b"evil" for path in tmp_path.rglob("*") if path.is_file()
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"files": []}',
        b'{"files": {"a": {}}}',
        b"\x80\x04",
        b'{"files": {"a": {"size": 1, "sha256": 3}}}',
    ],
)
def test_a_list_that_is_none_is_refused(content: bytes, tmp_path) -> None:
    part = Storage(str(tmp_path / "store")).below("part")
    part.write("attempt-0001-00000000/.published.json", content)
    with pytest.raises(StorageError, match="not a list of files"):
        fetch(part, tmp_path / "a")


def test_a_link_in_the_local_folder_is_not_followed_out_of_it(tmp_path) -> None:
    part = Storage(str(tmp_path / "store")).below("part")
    mirror, writer = taken(part, tmp_path / "a")
    for _ in range(2):
        writer.step()
    mirror.publish()
    (tmp_path / "outside").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "checkpoints").symlink_to(tmp_path / "outside")
    with pytest.raises(StorageError, match="a link leads out of the folder"):
        fetch(part, tmp_path / "b")
    assert list((tmp_path / "outside").iterdir()) == []
