"""Row 21: a killed `dvc repro`."""

import os
import shlex
import sys

import yaml
from conftest import make_project

from chaos.harness import SHORT, Training, running


def test_a_killed_dvc_repro_leaves_no_writer_and_goes_on(table, reference, tmp_path, sprites_data):
    project = make_project(tmp_path, sprites_data)
    training = Training(project, "dvc", SHORT, 0, ("kill step=50 target=driver",))  # the driver is DVC itself
    out = "data/models/progan"
    stage = {"cmd": shlex.join([*training.command, "--out", out]), "deps": ["data/shards"], "outs": [f"{out}/run.json"]}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": stage}}))
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    variables = {**training.variables, "DVC_SITE_CACHE_DIR": str(tmp_path / "site")}
    stderr = training.fault_folder / "stderr"

    def repro():
        return running([sys.executable, "-m", "dvc", "repro"], variables, stderr, tmp_path)

    with repro() as process:
        strike = training.wait_for_strike(process)
        process.wait()  # or it is a zombie, which DVC takes for an owner of its locks
        with repro() as at_once:
            code = at_once.wait(300)
            text = training.stderr
        orphans = strike.left_behind(timeout=30)
    if code:
        with repro() as later:
            assert later.wait(300) == 0, training.stderr
    start = training.resumption(strike)
    equal = training.weights == reference(SHORT, 0).weights
    repeated = max(0, strike.num_images - start["num_images"])
    table(21, "dvc repro killed", f"step {strike.step}", repeated=repeated, equal=equal)
    assert code == 0 or f"run {training.run.name} is held by process " in text, text
    assert not orphans
    assert repeated == 0 and equal
    assert os.path.exists(tmp_path / out / "run.json")
