"""The cache of shards: checked, bounded, shared by processes, and whole after any death."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from genmodels.config import DatasetConfig
from genmodels.data.cache import ShardCache
from genmodels.data.loader import Loader
from genmodels.data.prefetch import check_limit
from genmodels.data.prepare import prepare
from genmodels.data.reader import ShardReader, verify
from genmodels.data.shards import DamagedData, ShardFile, open_shards
from genmodels.data.store import Store, adopt, object_name

NUM_SHARDS = 40  # of one image each, 10,240 bytes


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    """A data set whose shards lie in a store: a folder, by its URL."""
    folder = tmp_path_factory.mktemp("stored")
    config = DatasetConfig(
        source="sprites",
        image_size=16,
        pyramid=False,
        num_images=NUM_SHARDS,
        shard_size=1,
        holdout=0,
        store=f"file://{folder}/store",
    )
    prepare("numbers", config, folder / "out", folder, 1)
    return folder / "out"


@pytest.fixture
def copied(stored, tmp_path) -> Path:
    """The same with a store of its own, to be damaged."""
    store = tmp_path / "store"
    store.mkdir()
    for file in (stored.parent / "store").iterdir():
        (store / file.name).write_bytes(file.read_bytes())
    adopt(f"file://{store}", tmp_path / "out")
    return tmp_path / "out"


def opened(folder: Path) -> tuple[Store, tuple[ShardFile, ...]]:
    manifest = open_shards(folder)
    return Store(manifest.store), manifest.shards


def used(cache: ShardCache) -> int:
    with cache._alone():  # nothing comes or goes
        return sum(size for *_, size in cache._files())


def test_a_shard_is_fetched_once_and_its_bytes_are_those_of_the_store(stored, tmp_path, monkeypatch):
    store, shards = opened(stored)
    cache = ShardCache(tmp_path / "cache", 10**9)
    with_content = cache.hold(store, shards[0]).path.read_bytes()
    assert with_content == (stored.parent / "store" / object_name(shards[0])).read_bytes()
    monkeypatch.setattr(Store, "fetch", lambda *_: pytest.fail("fetched again"))
    assert cache.hold(store, shards[0]).path.read_bytes() == with_content


def test_the_least_recently_used_go_and_those_in_use_stay(stored, tmp_path):
    store, shards = opened(stored)
    cache = ShardCache(tmp_path / "cache", 3 * shards[0].bytes)
    held = cache.hold(store, shards[0])
    for shard in shards[1:10]:
        cache.hold(store, shard).close()
        assert used(cache) <= cache.limit_bytes
    assert {path.stem for path in cache.folder.glob("*.tar")} == {shards[i].sha256 for i in (0, 8, 9)}
    assert len(list(cache.folder.glob("*.lock"))) == 4  # of those shards, and of the room
    held.close()
    cache.hold(store, shards[8]).close()
    cache.hold(store, shards[10]).close()
    assert {path.stem for path in cache.folder.glob("*.tar")} == {shards[i].sha256 for i in (8, 9, 10)}


def test_what_is_in_use_may_go_over_the_limit_with_a_warning_and_a_prefetch_may_not(stored, tmp_path):
    store, shards = opened(stored)
    cache = ShardCache(tmp_path / "cache", shards[0].bytes)
    held = cache.hold(store, shards[0])
    assert not cache.prefetch(store, shards[1]) and used(cache) == shards[0].bytes
    with pytest.warns(UserWarning, match="10,240 bytes over the limit of 10,240"):
        both = held, cache.hold(store, shards[1])
    assert all(each.path.exists() for each in both)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1024], "9216 bytes, should be 10240"),
        (lambda content: content + b"x", "more than 10240 bytes, should be 10240"),
        (lambda content: content[:600] + bytes([content[600] ^ 1]) + content[601:], "sha256 differs"),
        (lambda content: None, "missing"),
    ],
)
def test_a_damaged_object_is_refused_by_name_after_a_second_look(copied, tmp_path, monkeypatch, damage, message):
    store, shards = opened(copied)
    file = tmp_path / "store" / object_name(shards[0])
    content = damage(file.read_bytes())
    file.unlink() if content is None else file.write_bytes(content)
    looks = []
    original = Store._fetch
    monkeypatch.setattr(Store, "_fetch", lambda *args: looks.append(1) or original(*args))
    cache = ShardCache(tmp_path / "cache", 10**9)
    with pytest.raises(DamagedData, match=message) as error:
        cache.hold(store, shards[0])
    assert object_name(shards[0]) in str(error.value) and "\n" not in str(error.value) and len(looks) == 2
    assert used(cache) == 0
    with pytest.raises(DamagedData, match=message):
        verify(copied)


def test_one_bad_answer_is_asked_again(stored, tmp_path, monkeypatch):
    store, shards = opened(stored)
    answers = iter(["sha256 differs"])
    original = Store._fetch
    monkeypatch.setattr(Store, "_fetch", lambda *args: next(answers, None) or original(*args))
    path = ShardCache(tmp_path / "cache", 10**9).hold(store, shards[0]).path
    assert path.stat().st_size == shards[0].bytes


def test_a_cached_shard_that_lost_its_end_is_fetched_again(stored, tmp_path):
    store, shards = opened(stored)
    cache = ShardCache(tmp_path / "cache", 10**9)
    path = cache.hold(store, shards[0]).path
    os.truncate(path, 100)
    assert cache.hold(store, shards[0]).path.stat().st_size == shards[0].bytes


def started(body: str) -> subprocess.Popen:
    """Another process, with the names that a program on a cache needs."""
    names = """
        import sys, time
        from pathlib import Path
        from genmodels.data.cache import ShardCache
        from genmodels.data.shards import open_shards
        from genmodels.data.store import Store
    """
    program = textwrap.dedent(names) + textwrap.dedent(body)
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


def fetch_all(folder: Path, cache: ShardCache) -> str:
    """A program that takes every shard in turn and prints the names of those that it fetched itself."""
    return f"""
        original = Store.fetch
        def fetch(self, file, path):
            print(file.name)
            original(self, file, path)
        Store.fetch = fetch
        manifest = open_shards(Path({str(folder)!r}))
        store, cache = Store(manifest.store), ShardCache(Path({str(cache.folder)!r}), {cache.limit_bytes})
        for shard in manifest.shards:
            cache.hold(store, shard).close()
    """


def test_processes_that_share_a_cache_fetch_each_shard_once(stored, tmp_path):
    processes = [started(fetch_all(stored, ShardCache(tmp_path / "cache", 10**9))) for _ in range(2)]
    fetched = [name for process in processes for name in process.communicate(timeout=300)[0].split()]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(fetched) == sorted(shard.name for shard in opened(stored)[1])


def test_processes_that_compete_for_little_room_all_finish(stored, tmp_path):
    cache = ShardCache(tmp_path / "cache", 4 * 10_240)
    processes = [started(fetch_all(stored, cache)) for _ in range(2)]
    for process in processes:
        process.communicate(timeout=300)
    assert [process.returncode for process in processes] == [0, 0]
    assert used(cache) <= cache.limit_bytes


def test_what_a_killed_process_left_is_cleaned_and_locks_nobody_out(stored, tmp_path):
    store, shards = opened(stored)
    cache = ShardCache(tmp_path / "cache", 10**9)
    program = f"""
        def stuck(self, file, path):
            print("fetching", flush=True)
            time.sleep(600)
        Store.fetch = stuck
        manifest = open_shards(Path({str(stored)!r}))
        ShardCache(Path({str(cache.folder)!r}), 10**9).hold(Store(manifest.store), manifest.shards[0])
    """
    with started(program) as process:
        assert process.stdout.readline() == "fetching\n"
        assert used(cache) == shards[0].bytes
        os.kill(process.pid, signal.SIGKILL)
    cache.hold(store, shards[1]).close()
    assert not list(cache.folder.glob("*.part"))
    assert cache.hold(store, shards[0]).path.stat().st_size == shards[0].bytes


def test_a_full_disk_is_named_with_path_and_bytes(stored, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    store, shards = opened(stored)
    cache = ShardCache(tmp_path / "cache", 10**9)
    with pytest.raises(OSError, match="cache: no room for a shard, needs 10,240 bytes, .* are free") as error:
        cache.hold(store, shards[0])
    assert error.value.errno == errno.ENOSPC and used(cache) == 0


# Streaming through it


def batches(folder: Path, num: int, **values) -> np.ndarray:
    with Loader(folder, ["image"], 16, 8, seed=3, mirror=True, **values) as loader:
        return np.concatenate([next(loader)["image"].numpy() for _ in range(num)])


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """The same data set as `stored`, in a folder."""
    folder = tmp_path_factory.mktemp("local")
    config = DatasetConfig(
        source="sprites", image_size=16, pyramid=False, num_images=NUM_SHARDS, shard_size=1, holdout=0
    )
    prepare("numbers", config, folder / "out", folder, 1)
    return folder / "out"


def test_batches_are_those_of_local_files_within_the_least_limit(stored, local, tmp_path):
    cache, sizes = ShardCache(tmp_path / "cache", 32 * 10_240), []
    with Loader(stored, ["image"], 16, 8, seed=3, mirror=True, cache=cache) as loader:
        streamed = []
        for _ in range(25):  # five epochs
            streamed.append(next(loader)["image"].numpy())
            sizes.append(used(cache))
    assert max(sizes) <= cache.limit_bytes
    assert (np.concatenate(streamed) == batches(local, 25)).all()


def test_ranks_share_a_cache(stored, local, tmp_path):
    cache = ShardCache(tmp_path / "cache", 10**9)
    ranks = [batches(stored, 10, cache=cache, rank=rank, world_size=2, num_threads=2) for rank in (0, 1)]
    whole = batches(local, 10).reshape(10, 2, 4, 3, 16, 16)
    assert all((ranks[rank].reshape(10, 4, 3, 16, 16) == whole[:, rank]).all() for rank in (0, 1))


def test_the_next_window_is_fetched_before_it_is_needed(stored, tmp_path):
    cache = ShardCache(tmp_path / "cache", 10**9)
    with Loader(stored, ["image"], 16, 8, seed=3, prefetch=1, cache=cache) as loader:
        next(loader)
        end = time.monotonic() + 60
        while len(list(cache.folder.glob("*.tar"))) < 32 and time.monotonic() < end:
            time.sleep(0.01)
            loader._ahead.advance(8)
    assert len(list(cache.folder.glob("*.tar"))) == 32


def test_a_limit_that_is_too_small_names_the_least(stored, tmp_path):
    cache = ShardCache(tmp_path / "cache", 32 * 10_240 - 1)
    with pytest.raises(ValueError, match=r"compute.cache_gb must be at least 0.001$") as error:
        Loader(stored, ["image"], 16, 8, seed=3, cache=cache)
    assert "\n" not in str(error.value)
    check_limit(ShardCache(cache.folder, 32 * 10_240), open_shards(stored).shards, 1)


def test_without_a_cache_a_store_is_refused(stored):
    with pytest.raises(ValueError, match="shards lie in file://.* read through a cache"):
        ShardReader(stored, "train", 16)


def test_a_shard_that_was_let_go_leaves_no_mapping_behind(stored, tmp_path):
    cache = ShardCache(tmp_path / "cache", 20 * 10_240)
    reader = ShardReader(stored, "train", 16, cache=cache)
    reader.read(np.arange(reader.num))
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(cache.folder) in line]
    assert len(mapped) == 16 and not [line for line in mapped if "(deleted)" in line]


def test_closing_a_loader_does_not_wait_for_a_store_that_is_away(stored, tmp_path, monkeypatch):
    away = threading.Event()

    def gone(*_, **__):
        away.set()
        raise ConnectionError("away")

    import fsspec.implementations.local as local_files

    monkeypatch.setattr(local_files.LocalFileSystem, "cat_file", gone)
    loader = Loader(stored, ["image"], 16, 8, seed=3, cache=ShardCache(tmp_path / "cache", 10**9))
    loader._submit()
    assert away.wait(60)
    start = time.monotonic()
    loader.close()
    assert time.monotonic() - start < 60  # the patience with an outage is 300 s
