"""Proofs that take several trainings: trained once, judged by the mean over seeds."""

import json

import pytest
from commands import call, refused, succeed

from genmodels.config import Comparison
from pipelines import evaluate, proofs, tracking, train
from pipelines.run import open_run

WIDTHS = (
    "comparisons.width={claim: wide beats narrow, score: swd, better: wide, seeds: 2, variants: "
    "{wide: {model: vae, changes: {width: 8}}, narrow: {model: vae, changes: {width: 2, lr: 1.0e-9}}}}"
)
SHORT = ("--set", "models.vae.train.num_images=128")


def test_a_comparison_trains_each_variant_and_seed_once_and_registers_none(project):
    output = succeed(proofs, "--only", "width", "--set", WIDTHS, *SHORT)
    assert "wide beats narrow" in output.replace("\n", " ")
    result = json.loads((project.root / "data/proofs/width/comparison.json").read_text())
    assert result["holds"] and {key: len(values) for key, values in result["measured"].items()} == {
        "wide": 2,
        "narrow": 2,
    }
    folders = sorted(project.runs.glob("vae-*"))
    assert len(folders) == 4
    assert not tracking.connected().MlflowClient().search_registered_models()
    succeed(proofs, "--only", "width", "--set", WIDTHS, *SHORT)
    assert sorted(project.runs.glob("vae-*")) == folders


def test_a_claim_that_does_not_hold_is_named_and_fails(project):
    result = call(proofs, "--only", "width", "--set", WIDTHS.replace("better: wide", "better: narrow"), *SHORT)
    assert result.exit_code == 1 and "width" in str(result.exception or result.output)


@pytest.mark.parametrize(
    "change, words",
    {
        ("better: wide", "better: wdie"): ["'wdie'", "wide, narrow"],
        ("width: 8", "widht: 8"): ["comparisons.width.variants.wide.changes.widht", "did you mean 'width'?"],
        ("score: swd, ", ""): ["belong together"],
        ("score: swd", "score: fdi"): ["comparisons.width.score", "'fdi'"],
        (", narrow: {model: vae, changes: {width: 2, lr: 1.0e-9}}", ""): ["another variant"],
    }.items(),
)
def test_a_wrong_comparison_is_refused(change, words, project):
    line = refused(proofs, "--set", WIDTHS.replace(*change))
    assert all(word in line for word in words), line


def test_an_unknown_comparison_is_refused_with_the_choices(project):
    assert "choices: width" in refused(proofs, "--only", "heigth", "--set", WIDTHS)


def test_without_a_score_every_variant_must_show_its_own_proofs():
    comparison = Comparison(claim="c", variants={"a": {"model": "vae"}, "b": {"model": "vae"}})
    shown, missing = {"proofs": [{"holds": True}]}, {"proofs": [{"holds": True}, {"holds": False}]}
    assert proofs.judge(comparison, {"a": [shown], "b": [shown]}) == {"measured": {"a": [1], "b": [1]}, "holds": True}
    assert not proofs.judge(comparison, {"a": [shown], "b": [missing]})["holds"]


def test_a_training_whose_evaluation_was_interrupted_is_not_repeated(project, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    words = ("--only", "width", "--set", WIDTHS.replace("seeds: 2", "seeds: 1"), *SHORT, "--set", "models.vae.beta=0.5")
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "evaluate", interrupt)
        assert call(proofs, *words).exit_code == 130
    before = len(list(project.runs.glob("vae-*")))
    assert call(proofs, *words).exit_code in (0, 1)  # so few images show nothing
    assert len(list(project.runs.glob("vae-*"))) == before + 1  # the other variant's


def test_where_nothing_was_held_out_nothing_is_shown():
    comparison = Comparison(claim="c", variants={"a": {"model": "vae"}})
    assert not proofs.judge(comparison, {"a": [{"proofs": []}]})["holds"]


def test_a_score_that_was_not_measured_is_named(project, monkeypatch):
    """As FID of points."""
    monkeypatch.setattr(proofs, "evaluated", lambda *_: {"scores": {"swd": 1.0, "swd_16": 1.0}})
    line = refused(proofs, "--set", WIDTHS.replace("score: swd", "score: fid"))
    assert "comparisons.width.score 'fid'" in line and "swd, swd_16" in line


def test_brackets_in_a_claim_are_shown(capsys):
    proofs.show({"n": {"claim": "c [/x]", "score": None, "measured": {"v [b]": [1]}, "holds": True}})
    assert "c [/x]" in (output := capsys.readouterr().out) and "v [b]" in output


def test_an_interrupted_training_that_a_proof_ends_stays_one_to_register(project):
    config = proofs.params(SHORT[1:]).run("vae", changes={"train": {"seed": 41}})
    spec = train.prepared(proofs.params(SHORT[1:]), config)
    run = open_run(project.runs, config, project.root / "data/shards/sprites", spec.digest)
    run.update(registered=True)  # as an ordinary training is that was killed
    proofs.evaluated(proofs.params(SHORT[1:]), config, project.root / "data/proofs/one/vae-41")
    assert run.info["registered"] and run.info["status"] == "finished"
