"""Shards in a bucket of a real S3 server: the same data set, whole or not there, through faults and outages."""

import json
import shutil
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
from genmodels.data.loader import Loader, read_split
from genmodels.data.prepare import prepare
from genmodels.data.reader import verify
from genmodels.data.remote import filesystem
from genmodels.data.shards import DATASET_FILE, DamagedData, open_shards
from genmodels.data.store import Store, adopt, object_name

pytestmark = pytest.mark.cluster

PLAIN = {"source": "sprites", "image_size": 16, "pyramid": False, "num_images": 40, "shard_size": 4}  # 10 shards
MANY = {**PLAIN, "num_images": 160}  # 40: more than a cache need hold


@pytest.fixture
def url(bucket, tmp_path) -> str:
    """Where a test puts its data set."""
    return f"{bucket}/{tmp_path.name}"


@pytest.fixture
def stored(url, tmp_path) -> Path:
    """A small data set whose shards are in the bucket."""
    make(url, tmp_path)
    return tmp_path / "out"


def make(url: str | None, folder: Path, settings=PLAIN, **values):
    return prepare("sprites", DatasetConfig(**settings, store=url), folder / "out", folder, 1, **values)


def forbidden(*_):
    raise AssertionError("made again")


def names(url: str) -> set[str]:
    return set(Store(url).sizes())


def objects(folder: Path) -> set[str]:
    return {object_name(file) for file in open_shards(folder).files} | {DATASET_FILE}


@pytest.fixture
def puts(monkeypatch) -> list[str]:
    """The names of what is uploaded."""
    done, original = [], Store.put

    def put(self, path, name):
        original(self, path, name)
        done.append(name)

    monkeypatch.setattr(Store, "put", put)
    return done


# Preparing


def test_the_bucket_gets_the_shards_and_the_folder_keeps_the_tables(url, stored, tmp_path):
    make(None, tmp_path / "local")
    here, there = open_shards(tmp_path / "local/out"), open_shards(stored)
    assert there.spec == here.spec and there.fingerprint == here.fingerprint  # the place is no part of the identity
    assert there.shards == here.shards and there.store == url
    assert {path.name for path in stored.iterdir()} == {DATASET_FILE} | {table.name for table in there.tables}
    assert names(url) == objects(stored)
    assert verify(stored) == there


def test_what_is_whole_is_not_made_again_and_comes_back_from_the_bucket(url, stored, tmp_path):
    make(url, tmp_path, progress=forbidden)
    before = {path.name: path.read_bytes() for path in stored.iterdir()}
    shutil.rmtree(stored)
    make(url, tmp_path, progress=forbidden)
    assert {path.name: path.read_bytes() for path in stored.iterdir()} == before


def test_an_object_that_is_gone_is_noticed_and_put_back_alone(url, stored, tmp_path, puts):
    shard = object_name(open_shards(stored).shards[3])
    fs, path = filesystem(url)
    fs.rm_file(f"{path}/{shard}")
    make(url, tmp_path)
    assert puts == [shard, DATASET_FILE] and names(url) == objects(stored)


@pytest.mark.parametrize("save_every", [0.0, 60.0])  # seconds: uploads while decoding, all at the end
def test_a_killed_upload_leaves_nothing_that_looks_whole_and_goes_on(url, tmp_path, puts, save_every):
    program = f"""
        import time
        from pathlib import Path
        from genmodels.config import DatasetConfig
        from genmodels.data import prepare as preparation
        preparation.SAVE_EVERY = {save_every}
        from genmodels.data.store import Store
        original, done = Store.put, []
        def put(self, path, name):
            original(self, path, name)
            print(name, flush=True)
            done.append(name)
            if len(done) == 5:
                time.sleep(60)  # until it is killed
        Store.put = put
        config = DatasetConfig(**{PLAIN!r}, store={url!r})
        preparation.prepare("sprites", config, Path({str(tmp_path)!r}) / "out", Path("."), 1)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        done = {process.stdout.readline().strip() for _ in range(5)}
        process.send_signal(signal.SIGKILL)
    with pytest.raises(ValueError, match=f"{url} holds no data set"):
        adopt(url, tmp_path / "other")
    assert not (tmp_path / "out").exists() and not (tmp_path / "other").exists()
    make(url, tmp_path)
    assert len(done) == 5 and not done & set(puts)
    assert names(url) == objects(tmp_path / "out") and puts[-1] == DATASET_FILE


def test_a_new_state_leaves_the_old_one_readable(url, stored, tmp_path):
    old = shutil.copytree(stored, tmp_path / "old")
    make(url, tmp_path, {**PLAIN, "num_images": 20})
    assert open_shards(stored).spec.num_train < open_shards(old).spec.num_train
    verify(stored)
    verify(old)


def test_a_copied_store_is_read_where_it_is(url, stored, tmp_path):
    fs, path = filesystem(url)
    for name in names(url):
        fs.copy(f"{path}/{name}", f"{path}-copy/{name}")
    adopt(f"{url}-copy", tmp_path / "copy")
    assert open_shards(tmp_path / "copy").store == f"{url}-copy"
    assert open_shards(tmp_path / "copy").spec == open_shards(stored).spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "Forbidden"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "Unable to locate credentials"),
        ({"url": "s3://there-is-no-such-bucket/x"}, "The specified bucket does not exist"),
        ({"url": "s3://No_Such_Name/x"}, "Bad Request"),
    ],
)
def test_a_store_that_refuses_is_one_line_at_once(url, tmp_path, monkeypatch, change, message):
    import s3fs

    url = {**change}.pop("url", url)
    for name in change.keys() - {"url"}:
        monkeypatch.setenv(name, change[name]) if change[name] else monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr("genmodels.data.remote._filesystems", {})
    with pytest.raises(ValueError, match=message) as error:
        make(url, tmp_path)
    assert url in str(error.value) and "\n" not in str(error.value)


# Streaming


@pytest.fixture(scope="module")
def both(bucket, tmp_path_factory) -> tuple[Path, Path]:
    """One data set in a folder, and with its shards in the bucket."""
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    make(None, here, MANY)
    make(f"{bucket}/both", there, MANY)
    return here / "out", there / "out"


@pytest.fixture
def cache(tmp_path, both) -> ShardCache:
    """As small as it may be: with every epoch, some shards are fetched anew."""
    return ShardCache(tmp_path / "cache", 32 * open_shards(both[0]).shards[0].bytes)


def opened(folder: Path, cache: ShardCache | None = None, **values) -> Loader:
    return Loader(folder, ["image"], 16, 16, seed=3, mirror=True, cache=cache, **values)


def stream(num: int, *args, **values) -> np.ndarray:
    with opened(*args, **values) as loader:
        return np.stack([next(loader)["image"].numpy() for _ in range(num)])


def test_batches_are_those_of_local_files(both, cache):
    here, there = both
    expected = stream(30, here)
    assert (stream(30, there, cache) == expected).all()
    ranks = [stream(30, there, cache, rank=rank, world_size=2) for rank in (0, 1)]
    assert (np.concatenate(ranks, 1) == expected).all()
    held_out = [read_split(folder, "test", 16, 9, cache=cache)[0] for folder in both]
    assert all((held_out[0][key] == held_out[1][key]).all() for key in held_out[0].keys() | held_out[1].keys())


@pytest.mark.parametrize("fault", ["altered", "truncated", "missing"])
def test_a_damaged_object_ends_the_stream_with_its_name(url, stored, tmp_path, fault):
    shard = next(shard for shard in open_shards(stored).shards if shard.split == "train")
    fs, path = filesystem(f"{url}/{object_name(shard)}")
    content = bytearray(fs.cat_file(path))
    content[2000] ^= 1
    fs.rm_file(path)
    if fault != "missing":
        fs.pipe_file(path, bytes(content) if fault == "altered" else bytes(content[:-512]))
    with pytest.raises(DamagedData, match=object_name(shard)):
        stream(30, stored, ShardCache(tmp_path / "cache", 10**9))


@pytest.mark.parametrize("kind", ["killed", "stopped"])
@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_an_outage_costs_time_and_nothing_else(swift, both, cache, kind, seconds):
    def outage():
        swift.kill() if kind == "killed" else swift.pause()
        away.set()
        time.sleep(seconds)
        swift.start() if kind == "killed" else swift.go_on()

    away, times = threading.Event(), []
    with opened(both[1], cache) as loader:
        batches = [next(loader)["image"].numpy()]
        thread = threading.Thread(target=outage)
        thread.start()
        assert away.wait(60)
        for _ in range(59):
            start = time.monotonic()
            batches.append(next(loader)["image"].numpy())
            times.append(time.monotonic() - start)
        thread.join()
    equal = (np.stack(batches) == stream(60, both[0])).all()
    slowest = max(range(59), key=lambda number: times[number])
    print(
        f"server {kind} for {seconds} s: batch {slowest + 2} of 60 waited {times[slowest]:.1f} s, the median"
        f" {sorted(times)[29] * 1000:.1f} ms; all 60 equal to those of local files: {equal}"
    )
    assert equal and times[slowest] > seconds / 2  # the outage was in the way


def test_a_preparation_outlives_an_outage(swift, url, tmp_path, puts):
    restart = threading.Timer(3, swift.start)

    def fail_once(done, total):
        if done == 20:
            swift.kill()
            restart.start()

    make(url, tmp_path, progress=fail_once)
    restart.join()
    assert names(url) == objects(tmp_path / "out") and len(puts) == len(set(puts))
    assert json.loads(Store(url).description())["store"] == url
