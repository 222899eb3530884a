"""Storage means the same on a disk and on S3, fails within its deadline, and never leads out of its folder.

The S3-compatible server is moto's (see `tests.record.s3`).
"""

from __future__ import annotations

import os
import pickle
import socket
import threading
import time

import pytest
from pyarrow.fs import FileSelector, FileSystem

from proxygap.base import filesystems
from proxygap.base.errors import InvalidExperiment, StorageError
from proxygap.base.files import Place
from proxygap.record.storage import Storage, storage_of
from tests.record.s3 import BUCKET, SECRET, S3Server, root, s3

__all__ = ["root", "s3"]


def test_files_come_back_and_go(root: str, tmp_path) -> None:
    storage = Storage(root).below("a run, 100%", "seed-0")
    assert (storage.read("x"), storage.entries(), storage.folders()) == (None, {}, [])
    storage.write("journal.jsonl", b"one")
    storage.write("journal.jsonl", b"two\n")
    storage.write("checkpoints/step-1/ä b.bin", b"")
    assert storage.read("journal.jsonl") == b"two\n"
    assert storage.read("checkpoints/step-1/ä b.bin") == b""
    assert storage.read("checkpoints") is None
    assert {name: entry.size for name, entry in storage.entries().items()} == {
        "journal.jsonl": 4,
        "checkpoints/step-1/ä b.bin": 0,
    }
    assert abs(storage.entries()["journal.jsonl"].mtime_ns - time.time_ns()) < 600e9
    assert storage.folders() == ["checkpoints"]
    assert Storage(root).folders() == ["a run, 100%"]
    assert Storage(storage.uri).entries().keys() == storage.entries().keys()

    big = bytes(range(256)) * 50_000  # above one part of an upload
    (tmp_path / "big").write_bytes(big)
    there = storage.upload(tmp_path / "big", "deep/down/big")
    back = storage.download("deep/down/big", tmp_path / "new" / "back")
    assert there == back
    assert (tmp_path / "new" / "back").read_bytes() == big
    assert storage.download("absent", tmp_path / "absent") is None
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["big", "new", "back"]

    storage.remove("journal.jsonl")
    storage.remove("journal.jsonl")
    storage.below("deep").delete()
    storage.below("deep").delete()
    assert list(storage.entries()) == ["checkpoints/step-1/ä b.bin"]
    with pytest.raises(StorageError, match="never deleted"):
        Storage(root).delete()
    with pytest.raises(FileNotFoundError):
        storage.upload(tmp_path / "nothing", "x")
    assert storage.read("x") is None


def test_a_reader_sees_the_old_file_or_the_new_one(root: str) -> None:
    storage, over = Storage(root), threading.Event()
    versions = [bytes([number]) * (number % 3 + 2) * 200_000 for number in range(12)]
    storage.write("file", versions[0])

    def rewrite() -> None:
        for version in versions[1:]:
            storage.write("file", version)
            time.sleep(0.05)  # no reader gets anywhere with an object that is never the same twice
        over.set()

    writer = threading.Thread(target=rewrite)
    writer.start()
    looks = 0
    while not over.is_set() or not looks:
        content = storage.read("file")
        assert content in versions
        looks += 1
    writer.join()


def test_a_folder_is_listed_while_others_make_and_delete_in_it(tmp_path) -> None:
    storage, over = Storage(str(tmp_path)).below("part"), threading.Event()
    storage.write("always/x", b"1")

    def churn() -> None:
        for turn in range(60):
            storage.write(f"{turn}/deep/x", b"1")
            storage.below(f"{turn}").delete()
        over.set()

    thread = threading.Thread(target=churn)
    thread.start()
    while not over.is_set():
        assert "always/x" in storage.entries()
        assert "always" in storage.folders()
    thread.join()
    assert (storage.folders(), list(storage.entries())) == (["always"], ["always/x"])


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path, monkeypatch) -> None:
    storage = Storage(str(tmp_path))
    storage.write("file", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"No space left on device\. Free disk space and resume"):
        storage.write("file", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]


def test_a_filesystem_of_its_own_kind_goes_through_drafts() -> None:
    """As HDFS does; pyarrow's own in-memory filesystem stands for any that has renames."""
    filesystem, _ = FileSystem.from_uri("mock:///")
    place = Place(filesystem, "runs", "mock:///runs").below("seed-0", "file")
    assert place.read() is None
    for content in (b"old", b"new"):
        place.write(content)
        assert place.read() == content
    assert [info.path for info in filesystem.get_file_info(FileSelector("runs/seed-0"))] == ["runs/seed-0/file"]


def test_a_source_that_fails_halfway_leaves_no_half_object(root: str, tmp_path, monkeypatch) -> None:
    """A file of 20 MB whose second read fails, as on a disk that is going bad."""
    storage, source = Storage(root), tmp_path / "source"
    source.write_bytes(b"x" * 20_000_000)

    class Bad:
        def __init__(self, file) -> None:
            self.file, self.reads = file, 0

        def __enter__(self):
            return self

        def __exit__(self, *_) -> None:
            self.file.close()

        def read(self, count: int) -> bytes:
            self.reads += 1
            if self.reads == 2:
                raise OSError(5, "Input/output error")
            return self.file.read(count)

    opened = type(source).open
    with monkeypatch.context() as patch:
        patch.setattr(
            type(source), "open", lambda self, *how: Bad(opened(self, *how)) if self == source else opened(self, *how)
        )
        with pytest.raises(OSError, match="Input/output error"):
            storage.upload(source, "deep/file")
    assert storage.entries() == {}


def test_the_environment_names_endpoint_credentials_and_storage(s3: S3Server, monkeypatch) -> None:
    monkeypatch.delenv("PROXYGAP_STORAGE", raising=False)
    assert storage_of(None) is None
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        with monkeypatch.context() as patch:
            patch.setenv(name, f"http://{s3.endpoint}")
            patch.setenv("PROXYGAP_STORAGE", f"s3://{BUCKET}/{name}")
            storage = storage_of(None)
            assert storage is not None
            storage.write("x", b"1")
            other = storage_of(f"s3://{BUCKET}/other")
            assert other is not None
            assert other.uri == f"s3://{BUCKET}/other"
        assert Storage(s3.uri(name)).read("x") == b"1"


def test_it_travels_without_secrets(s3: S3Server, tmp_path) -> None:
    for uri in (s3.uri("travels"), str(tmp_path)):
        storage = Storage(uri).below("part")
        storage.write("x", b"1")
        packed = pickle.dumps(storage)
        assert SECRET.encode() not in packed
        assert pickle.loads(packed).read("x") == b"1"
        with pytest.raises(StorageError, match="never deleted"):
            pickle.loads(pickle.dumps(Storage(uri))).delete()


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("runs", "neither a URI nor an absolute path"),
        ("./runs", "neither a URI nor an absolute path"),
        ("~/runs", "neither a URI nor an absolute path"),
        ("file:///nfs/../etc", "has a .. in it"),
        ("/nfs/../etc", "has a .. in it"),
        ("s3://bucket/%2e%2e/x", "has a .. in it"),
        ("file://host/x", "Unsupported hostname"),
        ("s3:///x", "no bucket is named"),
        ("s3://", "no bucket is named"),
        ("http://host/x", "no filesystem takes http://"),
        ("mock:///x", "no filesystem takes mock://"),
        ("s3://id:hush@bucket/x", "does not carry credentials"),
        ("s3://hush@bucket/x", "does not carry credentials"),
        ("hdfs://id:hush@host/x", "does not carry credentials"),
        ("s3://bucket/x?secret_key=hush", "does not carry credentials"),
        ("s3://bucket/x?session_token=hush", "does not carry credentials"),
        ("abfs://c@a.dfs.core.windows.net/x?sas_token=hush", "does not carry credentials"),
        ("s3://bucket/x?colour=blue", "unknown option colour"),
        ("gs://hush@bucket/x", "GCS URIs do not accept username"),
        ("s3://[bucket/x", "not a URI"),
    ],
)
def test_what_no_filesystem_should_take_is_refused(uri: str, told: str) -> None:
    with pytest.raises(InvalidExperiment, match=told) as caught:
        Storage(uri)
    assert caught.value.field == "record.storage"
    assert caught.value.remedy
    assert "hush" not in f"{caught.value!r} {caught.value}"


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a//b", ".", "a/.", "a\\b", "a\0b", "a\nb"])
def test_names_that_lead_elsewhere_are_refused(root: str, name: str, tmp_path) -> None:
    storage = Storage(root).below("part")
    (tmp_path / "x").write_bytes(b"1")
    for attempt in (
        lambda: storage.read(name),
        lambda: storage.write(name, b"1"),
        lambda: storage.upload(tmp_path / "x", name),
        lambda: storage.download(name, tmp_path / "y"),
        lambda: storage.remove(name),
        lambda: storage.below(name),
    ):
        with pytest.raises(StorageError, match="not the name of anything below a folder"):
            attempt()
    assert Storage(root).entries() == {}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("key", ["../../outside", "a\\..\\b"])
def test_a_foreign_listing_is_not_trusted(s3: S3Server, key: str) -> None:
    folder = f"foreign-{len(key)}"
    s3.client.put_object(Bucket=BUCKET, Key=f"{folder}/{key}", Body=b"1")
    with pytest.raises(StorageError, match="not the name of anything below a folder"):
        Storage(s3.uri(folder)).entries()


def test_a_server_that_does_not_answer_fails_in_time(monkeypatch) -> None:
    """With shorter deadlines than the real ones, whose sum is then held against the promise."""
    slowest = filesystems._ATTEMPTS * max(filesystems._CONNECT_S, filesystems._REQUEST_S + filesystems._PUT_S)
    assert slowest <= filesystems.DEADLINE_S
    monkeypatch.setattr(filesystems, "_REQUEST_S", 1.0)
    monkeypatch.setattr(filesystems, "_CONNECT_S", 1.0)
    monkeypatch.setattr(filesystems, "_ATTEMPTS", 1)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        storage = Storage(f"s3://bucket/runs?endpoint_override={address}&scheme=http&region=us-east-1")
        for attempt in (lambda: storage.read("x"), storage.folders):
            started = time.monotonic()
            with pytest.raises(StorageError, match="is up and reachable") as caught:
                attempt()
            assert time.monotonic() - started < 15
            assert caught.value.field.startswith("s3://bucket/runs")
            assert SECRET not in str(caught.value)
    with pytest.raises(StorageError, match="is up and reachable"):  # nobody listens there any more
        storage.read("x")


def test_a_bucket_that_is_not_there_is_told(s3: S3Server) -> None:
    storage = Storage(s3.uri("x", bucket="elsewhere"))
    with pytest.raises(StorageError, match="Create the bucket, or name another"):
        storage.write("x", b"1")


def test_a_folder_that_may_not_be_written_is_told(tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"")
    storage = Storage(str(tmp_path / "file")).below("part")
    with pytest.raises(StorageError, match=r"File exists|Not a directory"):
        storage.write("x", b"1")
    assert storage.read("x") is None
