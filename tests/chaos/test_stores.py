"""Row 7: an object store that goes away while checkpoints are put there. (Row 6, the tracking server: test_sync.py.)"""

import json
import time

import pytest

from chaos.harness import SHORT, Training
from genmodels.checkpoint import Checkpoints
from genmodels.data.remote import filesystem


def store_goes_away(project, seconds, bucket, swift, table, expected) -> None:
    store = f"{bucket}/checkpoints-{seconds}"
    settings = {"compute.checkpoint_store": store}
    training = Training(project, f"store-{seconds}", SHORT, 0, ("note step=25",), settings, dict(swift.environment))
    with training.started() as process:
        strike = training.wait_for_strike(process)
        swift.kill()
        time.sleep(seconds)
        swift.start()
        assert process.wait(800) == 0, training.stderr
    place = f"{store}/{training.run.name}"
    with_manifest = Checkpoints(place, 2).place.titles()
    fs, path = filesystem(place)
    whole = all(_is_whole(fs, f"{path}/{title}") for title in with_manifest)
    equal = training.weights == expected.weights
    table(7, f"store away for {seconds} s", f"step {strike.step}", repeated=0, equal=equal)
    assert len(training.events("started")) == 1
    assert [int(title) for title in with_manifest] == [1440, 1280] and whole
    assert equal


def _is_whole(fs, path: str) -> bool:
    return fs.size(f"{path}/state.pt") == json.loads(fs.cat_file(f"{path}/manifest.json"))["bytes"]


@pytest.mark.cluster
def test_a_store_that_is_away_for_a_moment_gets_every_checkpoint(chaos_project, bucket, swift, table, reference):
    store_goes_away(chaos_project, 5, bucket, swift, table, reference(SHORT, 0))


@pytest.mark.chaos
def test_a_store_that_is_away_for_a_minute_gets_every_checkpoint(chaos_project, bucket, swift, table, reference):
    store_goes_away(chaos_project, 60, bucket, swift, table, reference(SHORT, 0))
