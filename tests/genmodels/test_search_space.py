"""Sweep spaces: what may be declared, what is drawn from them, and what is refused before anything starts."""

import optuna
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from genmodels.config import Params, load_params
from genmodels.search_space import Dimension, bounds, draw, grid, nested
from genmodels.settings_file import ConfigError

SPACE = {
    "lr": {"loguniform": ["1e-5", 0.01]},
    "penalty": {"choice": ["none", "r1"]},
    "penalty_weight": {"loguniform": [0.1, 10], "when": {"penalty": ["r1"]}},
    "beta1": {"uniform": [0, 0.9]},
    "discriminator_steps": {"int": [1, 3]},
    "train.batch_size": {"choice": [16, 32]},
}
BASE = {
    "datasets": {"sprites": {"source": "sprites", "image_size": 16}},
    "models": {"dcgan": {"dataset": "sprites", "train": {"num_images": 100}}},
}


def params(tmp_path, space) -> Params:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({**BASE, "sweep": {"dcgan": space}}, sort_keys=False))
    return load_params(path)


@pytest.fixture
def space(tmp_path) -> dict[str, Dimension]:
    return params(tmp_path, SPACE).sweep["dcgan"]


@pytest.mark.parametrize(
    "space, words",
    [
        ({"lrr": {"uniform": [0.1, 1]}}, ["sweep.dcgan.lrr", "did you mean 'lr'?"]),
        (
            {"lr": {"choice": [0.1]}, "lr.x": {"int": [1, 3], "when": {"lr": [0.1]}}},
            ["sweep.dcgan.lr.x", "inside 'lr'"],
        ),
        ({"lr": {"uniform": [0, 1]}}, ["sweep.dcgan.lr", "greater than 0", "got 0"]),
        ({"beta1": {"uniform": [0.5, 1]}}, ["sweep.dcgan.beta1", "less than 1", "got 1"]),
        ({"penalty": {"choice": ["none", "r2"]}}, ["sweep.dcgan.penalty", "'r2'"]),
        ({"train.batch_size": {"int": [0, 8]}}, ["sweep.dcgan.train.batch_size", "got 0"]),
        ({"width": {"int": [1.5, 8]}}, ["sweep.dcgan.width", "whole numbers"]),
        ({"lr": {"loguniform": [0, 1]}}, ["sweep.dcgan.lr", "0 < low < high"]),
        ({"lr": {"uniform": [1, 0.1]}}, ["sweep.dcgan.lr", "low < high"]),
        ({"lr": {"uniform": [1]}}, ["sweep.dcgan.lr", "[low, high]"]),
        ({"lr": {"normal": [0, 1]}}, ["sweep.dcgan.lr", "uniform, loguniform, int, choice"]),
        ({"lr": 0.1}, ["sweep.dcgan.lr", "loguniform: ["]),
        ({"train.seed": {"int": [0, 9]}}, ["sweep.dcgan.train.seed", "do not compare"]),
        ({"lr": {"uniform": [0.1, 1], "when": {"penalty": ["r1"]}}}, ["lr.when", "'penalty'", "choices: none"]),
        (
            {"penalty": SPACE["penalty"], "lr": {"uniform": [0.1, 1], "when": {"penalty": ["gp"]}}},
            ["lr.when.penalty", "outside"],
        ),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_a_wrong_space_is_one_line(tmp_path, space, words):
    with pytest.raises(ConfigError) as error:
        params(tmp_path, space)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_space_of_an_unknown_model_is_refused(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({**BASE, "sweep": {"dcgn": {}}}))
    with pytest.raises(ConfigError, match="did you mean 'dcgan'"):
        load_params(path)


@given(seed=st.integers(0, 1000))
def test_every_draw_lies_inside_and_conditions_hold(seed):
    space = {name: Dimension(**values) for name, values in SPACE.items()}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    values = draw(space, study.ask())
    assert ("penalty_weight" in values) == (values["penalty"] == "r1")
    for name, value in values.items():
        assert space[name].drawn(value) is not None
        assert space[name].clipped(value) == value


def test_a_grid_has_every_combination_once_and_both_ends(space):
    points = grid(space, 3)
    # 3 rates x (no penalty, or r1 with 3 weights) x 3 betas x 3 numbers of steps x 2 batches
    assert len(points) == 3 * (1 + 3) * 3 * 3 * 2
    assert {point["lr"] for point in points} >= {1e-5, 0.01}
    assert all(("penalty_weight" in point) == (point["penalty"] == "r1") for point in points)


def test_every_bound_is_tried_with_what_it_needs(space):
    tried = list(bounds(space))
    assert ("penalty_weight", {"penalty": "r1", "penalty_weight": 10.0}) in tried
    assert len(tried) == sum(len(dimension.values) for dimension in space.values())


def test_dotted_settings_become_sections():
    assert nested({"lr": 1, "train.batch_size": 2, "train.mirror": True}) == {
        "lr": 1,
        "train": {"batch_size": 2, "mirror": True},
    }


def test_values_outside_are_clipped():
    assert Dimension(int=[1, 3]).clipped(3.6) == 3
    assert Dimension(uniform=[0, 1]).clipped(-2) == 0
    assert Dimension(choice=["a"]).drawn("b") is None
