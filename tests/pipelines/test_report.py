"""The report: what it says of evaluations that are stale, torn, missing, or prove nothing."""

import json

import pytest
from commands import call, refused, succeed

from pipelines import report


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes an evaluation of one model, and the weights that its training left; returns the evaluation's file."""
    monkeypatch.setenv("GENMODELS_ROOT", str(tmp_path))

    def evaluation(name: str = "vae", claim: str = "held", trained: str = "a", split: str = "test", **changes: object):
        proofs = [{"claim": claim, "measured": 1.0, "baseline": 2.0, "holds": True, "unit": ""}]
        protocol = {"num_images": 4, "image_size": 16, "extractor_sha256": "", "split": split, "data_digest": "d"}
        result = {
            "model": name,
            "sha256": "a",
            "scores": {"swd": 1.0},
            "real_vs_real": {},
            "protocol": protocol,
            "proofs": proofs,
        }
        file = tmp_path / "data/evaluations" / name / "evaluation.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(result | changes))
        export_of(name, trained)
        return file

    def export_of(name: str, sha256: str):
        folder = tmp_path / "data/models" / name / "export"
        folder.mkdir(parents=True)
        config = {"model": name, "settings": {}, "data": {}, "progress": {}, "sha256": sha256}
        (folder / "config.json").write_text(json.dumps(config))

    evaluation.export_of = export_of
    return evaluation


def test_a_claim_is_shown_as_it_is_written(write):
    write(claim="attribute Bags_[/Under]_Eyes [b]seen[/b]")
    assert "Bags_[/Under]_Eyes[b]seen[/b]" in "".join(
        line.split("│")[2].strip() for line in succeed(report).splitlines() if "│" in line
    ).replace(" ", "")


@pytest.mark.parametrize("text", ['{"model": "vae", "sc', '{"model": "vae"}', "[]"])
def test_an_evaluation_that_is_not_whole_is_named(text, write):
    file = write()
    file.write_text(text)
    assert str(file) in refused(report)


def test_check_fails_where_nothing_was_held_out(write):
    write(split="train", proofs=[])
    assert "not shown: vae" in str(call(report, "--check").exception)
    succeed(report)


def test_what_was_trained_since_its_evaluation_or_never_evaluated_is_named(write, tmp_path):
    write(trained="b")
    write("aae")
    write.export_of("gan", "c")
    result = call(report)
    assert result.exit_code == 0 and "gan, vae" in result.stderr and "aae" not in result.stderr
    page = (tmp_path / "data/report/index.html").read_text()
    assert page.count("an earlier training") == 1
    assert "gan, vae" in str(call(report, "--check").exception)


def test_pictures_of_an_earlier_evaluation_are_not_shown(write, tmp_path):
    file = write(pictures=["rows"])
    (file.parent / "pictures").mkdir()
    for name in ("rows", "older"):
        (file.parent / "pictures" / f"{name}.png").write_bytes(b"png")
    succeed(report)
    page = (tmp_path / "data/report/index.html").read_text()
    assert "<figcaption>rows" in page and "older" not in page


def test_a_place_that_cannot_be_written_is_refused_before_any_work(write, tmp_path):
    write()
    (file := tmp_path / "file").touch()
    assert "--out" in (line := refused(report, "--out", file / "report")) and f"{file} is no folder" in line
