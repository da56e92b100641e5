"""params.yaml: every wrong setting is one line that names key, value and choices; the digest is the identity."""

from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import yaml
from conftest import TINY_MODELS
from hypothesis import given, settings
from hypothesis import strategies as st

from genmodels.config import (
    Params,
    RunConfig,
    TrainConfig,
    load_params,
    validated,
)
from genmodels.credentials import masked
from genmodels.model import model_class, model_names
from genmodels.settings_file import MAX_ALIASES, MAX_DEPTH, ConfigError, read_yaml

BASE = {
    "datasets": {"sprites": {"source": "sprites", "image_size": 16}},
    "models": {"vae": {"dataset": "sprites", "latent_dim": 4, "train": {"num_images": 100}}},
    "recipes": {"vae": {"big": {"latent_dim": 8, "train": {"seed": 3}}}},
}


@pytest.fixture
def write(tmp_path):
    def write(values) -> Path:
        path = tmp_path / "params.yaml"
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
        return path

    return write


def refusal(path: Path, *overrides: str) -> str:
    """The message, which is one line."""
    with pytest.raises(ConfigError) as error:
        load_params(path, overrides)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    return str(error.value)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override, words",
    {
        "models.vae.latent_dmi=3": ["models.vae.latent_dmi", "did you mean 'latent_dim'?", "choices:"],
        "models.vae.train.num_imags=3": ["models.vae.train.num_imags", "did you mean 'num_images'?"],
        "datasets.sprites.imagesize=8": ["datasets.sprites.imagesize", "did you mean 'image_size'?"],
        "compute.num_worker=2": ["compute.num_worker", "did you mean 'num_workers'?"],
        "evaluation.sed=2": ["evaluation.sed", "did you mean 'seed'?"],
        "modles.vae.lr=1": ["modles", "did you mean 'models'?"],
        "models.vea={dataset: sprites}": ["'vea'", "did you mean 'vae'?", *model_names()],
        "models.vae.dataset=sprite": ["'sprite'", "did you mean 'sprites'?"],
        "models.vae.dataset=[sprites]": ["['sprites']", "choices: sprites"],
        "models.vae={latent_dim: 3}": ["models.vae.dataset is missing", "sprites"],
        "recipes.vae.big.latent_dmi=3": ["latent_dmi", "did you mean 'latent_dim'?"],
        "recipes.vea.big={}": ["'vea'", "did you mean 'vae'?"],
        "datasets.faces={sorce: a}": ["datasets.faces.sorce", "did you mean 'source'?"],
        "models.vae={datset: sprites}": ["models.vae.datset", "did you mean 'dataset'?"],
        "models.vae.trian={}": ["models.vae.trian", "did you mean 'train'?"],
        "models.vae.dataset=other": ["models.vae.dataset: unknown data set 'other'"],
        "recipes.vae.big.dataset=other": ["recipes.vae.big.dataset: unknown data set 'other'"],
        "recipes.vae.big.train.sed=3": ["recipes.vae.big.train.sed", "did you mean 'seed'?"],
        "recipes.vae.small.widht=3": ["recipes.vae.small.widht", "did you mean 'width'?"],
        "recipes.vaee.big={}": ["recipes.vaee.big: unknown model 'vaee'"],
        "sweep.vaee={}": ["sweep.vaee: unknown model 'vaee'"],
        # wrong types
        "models.vae.latent_dim=many": ["models.vae.latent_dim", "integer", "'many'"],
        "models.vae.latent_dim=2.5": ["models.vae.latent_dim", "integer", "2.5"],
        "models.vae.latent_dim=": ["models.vae.latent_dim", "None"],
        "models.vae.latent_dim=[1, 2]": ["models.vae.latent_dim", "[1, 2]"],
        "models.vae.likelihood=gauss": ["models.vae.likelihood", "'gaussian' or 'bernoulli'", "'gauss'"],
        "models.vae.train=5": ["models.vae.train", "expected a section", "5"],
        "models.vae=5": ["models.vae", "dictionary", "5"],
        "models=5": ["models", "dictionary", "5"],
        "compute.use_gpu=perhaps": ["compute.use_gpu", "'perhaps'"],
        # out of range
        "models.vae.latent_dim=0": ["models.vae.latent_dim", "greater than or equal to 1", "got 0"],
        "models.vae.lr=0": ["models.vae.lr", "greater than 0", "got 0"],
        "models.vae.lr=.inf": ["models.vae.lr", "finite", "inf"],
        "models.vae.beta=.nan": ["models.vae.beta", "nan"],
        "models.vae.train.ema_rampup=1.5": ["models.vae.train.ema_rampup", "less than or equal to 1", "1.5"],
        "datasets.sprites.image_size=3": ["datasets.sprites.image_size", "greater than or equal to 4", "got 3"],
        "datasets.sprites.background=[300, 0, 0]": ["datasets.sprites.background.0", "equal to 255", "got 300"],
        "datasets.sprites.background=[0, -5, 0]": ["datasets.sprites.background.1", "equal to 0", "got -5"],
        "datasets.sprites.background=[true, 0, 0]": ["datasets.sprites.background.0", "integer", "got True"],
        "datasets.sprites.source=''": ["datasets.sprites.source", "at least 1 character"],
        "compute.num_workers=[true, 2]": ["compute.num_workers"],
        "compute.num_workers=-1": ["compute.num_workers", "greater than or equal to 0", "got -1"],
        # overrides that are none
        "models.vae.latent_dim": ["expected key=value"],
        "=3": ["expected key=value"],
        "models..latent_dim=3": ["expected key=value"],
        "models.vae.latent_dim.x=3": ["'latent_dim' is a value, not a section"],
        "models.vae.train.seed=99999999999999999999999": ["models.vae.train.seed", "less than 9223372036854775808"],
        "models.vae.latent_dim=[3": ["--set", "flow sequence"],
        "models.vae.latent_dim=!!python/object/apply:os.system [touch hacked]": ["--set", "python/object"],
    }.items(),
    ids=str,
)
def test_a_wrong_setting_is_named_with_its_value_and_the_choices(override, words, write):
    message = refusal(write(BASE), override)
    for word in words:
        assert word in message


@pytest.mark.parametrize("name", ["../../out", "", ".", ".hidden", "a/b", "-x", "new\nline"])
def test_a_data_set_s_name_is_that_of_a_folder(name, write):
    message = refusal(write({**BASE, "datasets": {**BASE["datasets"], name: {"source": "ring"}}}))
    assert "datasets" in message and "input should be a name: letters" in message and " ".join(name.split()) in message


def test_what_a_model_itself_refuses_is_one_line_too(write):
    values = {**BASE, "models": {"dcgan": {"dataset": "sprites", "penalty": "gp"}}, "recipes": {}}
    message = refusal(write(values))
    assert "models.dcgan" in message and "discriminator_norm" in message


def test_an_unknown_recipe_is_refused_with_the_nearest(write):
    with pytest.raises(ConfigError, match="unknown recipe of vae 'bigg' .did you mean 'big'.*choices: big"):
        load_params(write(BASE)).run("vae", "bigg")


@pytest.mark.parametrize("text", ["", "- 1", "5", "models", "null"])
def test_a_file_without_sections_is_refused(text, write):
    assert "expected sections (key: value), found" in refusal(write(text))


@pytest.mark.parametrize(
    "text, word",
    {
        "models: [1": "flow sequence",
        "a: b: c": "mapping values",
        "\ta: 1": "\\t",
        "a: \0": "unacceptable character",
        "{? [1] : 2}": "unhashable",
        "[" * 1000 + "]" * 1000: f"more than {MAX_DEPTH} levels",
        "models: {}\nmodels: {}": "'models' comes twice",
        "a: {x: {b: 1, b: 2}}": "'b' comes twice",
        "a: {b: 2024-13-45}": "'2024-13-45' is no timestamp (month must be in 1..12)",
        "a: {b: !!bool maybe}": "'maybe' is no bool",
        "a: {b: !!timestamp x}": "'x' is no timestamp",
        "a: {b: !!int ''}": "is no int",
        "a: {b: 0x_}": "'0x_' is no int",
        "a: {b: 10:00}": "'10:00' would be read to base 8 or 60",
        "a: {b: 0100}": "'0100' would be read to base 8 or 60",
        "a: *b": "undefined alias",
    }.items(),
)
def test_broken_yaml_is_refused_with_its_place(text, word, write):
    path = write(text)
    message = refusal(path)
    assert str(path) in message and word in message


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/name:os.system", "!evil"]
)
def test_yaml_that_would_build_an_object_is_refused_and_runs_nothing(tag, write, tmp_path):
    hacked = tmp_path / "hacked"
    assert "could not determine a constructor" in refusal(write(f"models: {tag} ['touch {hacked}']"))
    assert not hacked.exists()


SECRETS = {
    "a private key": "-----BEGIN OPENSSH PRIVATE " + "KEY-----",
    "an access key": "AKIA" + "X" * 16,
    "an access token": "hf_" + "x" * 24,
    "a signed token": "eyJ" + "x" * 9 + ".eyJ" + "x" * 9,
    "a URL with a password": "s3://user:" + "pass@host/bucket",
    "a signed URL": "https://host/path?X-Amz-" + "Signature=x",
}


@pytest.mark.parametrize("kind, secret", SECRETS.items())
def test_what_looks_like_a_secret_is_refused_and_not_repeated(kind, secret, write):
    message = refusal(write({**BASE, "datasets": {"mine": {"source": secret}}}))
    assert message.startswith(f"datasets.mine.source: looks like {kind}") and secret not in message
    message = refusal(write(BASE), f"datasets.sprites.source={secret}")
    assert message.startswith("--set datasets.sprites.source: looks like") and secret not in message
    assert secret not in refusal(write(BASE), secret)
    assert secret not in refusal(write({**BASE, secret: {"a": [secret]}}))


@pytest.mark.parametrize(
    "value", ["s3://bucket/photos", "https://host:8080/a@b", "data/sk-learn-digits-of-two-writers", "mask-rcnn-" * 3]
)
def test_what_looks_like_no_secret_is_read(value, write):
    params = load_params(write({**BASE, "datasets": {**BASE["datasets"], "mine": {"source": value}}}))
    assert params.dataset("mine").source == value


def test_passwords_of_urls_are_masked():
    assert masked("no reply from http://u:s3cr@host:80/a, b@c") == "no reply from http://u:***@host:80/a, b@c"


def test_an_alias_bomb_is_refused_before_it_grows(write):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    assert f"more than {MAX_ALIASES} aliases" in refusal(write("\n".join(lines)))


def test_a_few_aliases_are_read(write):
    assert read_yaml(write("a: &x {b: 1}\nc: *x\n")) == {"a": {"b": 1}, "c": {"b": 1}}


def test_a_mapping_that_takes_over_another_s_keys_may_be_taken_over_itself(write):
    values = read_yaml(write("a: &a {x: 1, y: 2}\nb: {deep: {er: &b {<<: *a, y: 3}}}\nc: {<<: *b, x: 4}\n"))
    assert values["b"]["deep"]["er"] == {"x": 1, "y": 3} and values["c"] == {"x": 4, "y": 3}


@pytest.mark.parametrize("value", ["2024-13-45", "!!bool maybe", "{a: 1, a: 2}", "0x_"])
def test_a_value_that_is_none_is_refused_in_an_override_too(value, write):
    assert refusal(write(BASE), f"models.vae.lr={value}").startswith(f"--set 'models.vae.lr={value}': ")


def test_an_alias_to_itself_is_refused(write):
    assert "models.vae" in refusal(write("models: &m {vae: *m}"))


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path):
    assert "no such file" in refusal(tmp_path / "params.yaml")
    assert str(tmp_path) in refusal(tmp_path)  # a folder
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfea: 1")
    assert "can't decode" in refusal(tmp_path / "params.yaml")


words = st.text(st.characters(codec="utf-8"), max_size=20)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(words | st.sampled_from(["vae", "train"]), part),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["datasets", "models", "recipes", "compute", "evaluation", "other"]), plain)
def test_whatever_the_file_holds_it_is_accepted_or_refused_in_one_line(tmp_path_factory, section, values):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump({**BASE, section: values}, allow_unicode=True), encoding="utf-8")
    try:
        load_params(path)
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1


@settings(max_examples=60, deadline=None)
@given(words)
def test_whatever_is_set_it_is_accepted_or_refused_in_one_line(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "base.yaml"
    path.write_text(yaml.safe_dump(BASE))
    for override in (text, f"models.vae.latent_dim={text}", f"{text}=1"):
        try:
            load_params(path, [override])
        except ConfigError as error:
            assert len(str(error).splitlines()) == 1


# --- what is resolved ------------------------------------------------------------------------------------------------


def test_defaults_section_recipe_and_overrides_are_laid_over_each_other_in_this_order(write):
    params = load_params(write(BASE), ["recipes.vae.big.train.batch_size=5"])
    plain, big = params.run("vae"), params.run("vae", "big")
    assert (plain.settings.latent_dim, plain.train.num_images, plain.train.seed) == (4, 100, 0)
    assert (big.settings.latent_dim, big.train.num_images, big.train.seed, big.train.batch_size) == (8, 100, 3, 5)
    assert plain.train.batch_size == TrainConfig().batch_size
    assert load_params(write(BASE), ["models.vae.latent_dim=9"]).run("vae").settings.latent_dim == 9
    given = load_params(write(BASE), ["models.vae.latent_dim=9", "models.vae.train.seed=4"]).run("vae", "big")
    assert (given.settings.latent_dim, given.train.seed, given.train.num_images) == (9, 4, 100)
    whole = load_params(write(BASE), ["models.vae.train={batch_size: 5}"]).run("vae", "big")
    assert (whole.train.batch_size, whole.train.seed, whole.settings.latent_dim) == (5, 3, 8)


def test_a_later_override_wins_and_new_sections_are_made(write):
    params = load_params(write({**BASE}), ["compute.num_workers=1", "compute.num_workers=2", "models.vae.lr=1e-4"])
    assert params.compute.num_workers == 2
    assert params.run("vae").settings.lr == 1e-4  # YAML reads 1e-4 as a word


def test_a_configuration_is_frozen(write):
    config = load_params(write(BASE)).run("vae")
    with pytest.raises(ValueError, match="frozen"):
        config.train.seed = 1


def test_the_project_s_own_params_are_valid():
    params = load_params(Path(__file__).parents[2] / "params.yaml")
    assert set(params.models) == set(model_names())


# --- identity --------------------------------------------------------------------------------------------------------


def tiny(name: str, **changes) -> RunConfig:
    section = {"dataset": "sprites", **TINY_MODELS.get(name, {}), **changes}
    return Params(datasets=BASE["datasets"], models={name: section}).run(name)


@pytest.mark.parametrize("name", model_names())
def test_a_configuration_survives_json_with_its_digest(name):
    config = tiny(name)
    again = RunConfig.from_json(yaml.safe_load(yaml.safe_dump(config.to_json())))
    assert again == config and again.digest("d") == config.digest("d")


def test_an_override_leaves_alone_what_shares_an_anchor_with_it(write):
    shared = {"num_images": 100, "seed": 1}
    models = {name: {"dataset": "sprites", "train": shared} for name in ("vae", "gan")}
    params = load_params(write({**BASE, "models": models, "recipes": {}}), ["models.vae.train.seed=2"])
    assert [params.run(name).train.seed for name in ("vae", "gan")] == [2, 1]


@pytest.mark.parametrize("override", ["num_workers=7", "use_gpu=false", "storage_path=elsewhere", "max_failures=0"])
def test_the_digest_does_not_know_where_a_training_runs(override, write):
    before, after = load_params(write(BASE)), load_params(write(BASE), [f"compute.{override}"])
    assert before.compute != after.compute
    assert before.run("vae").digest("d") == after.run("vae").digest("d")


def literals(annotation) -> list:
    """The values that a Literal, anywhere in an annotation, allows."""
    parts = get_args(annotation)
    return list(parts) if get_origin(annotation) is Literal else [value for part in parts for value in literals(part)]


def other_value(schema, key: str, now: dict):
    """Some valid value of a field that is not the present one."""
    for value in (
        not now[key] if isinstance(now[key], bool) else None,
        2,
        3,
        0.5,
        0.25,
        8,
        "A",
        {4: 3},
        [0.1, 0.2],
        ["A"],
    ):
        changed = {**now, key: value}
        try:
            if value is not None and validated(schema, changed, "").model_dump(mode="json")[key] != now[key]:
                return value
        except ConfigError:
            pass
    for value in literals(schema.model_fields[key].annotation):
        try:
            if value != now[key] and validated(schema, {**now, key: value}, ""):
                return value
        except ConfigError:
            pass
    raise AssertionError(f"this test knows no other value for {key}: add one")


@pytest.mark.parametrize("name", model_names())
def test_the_digest_changes_with_every_setting(name):
    config = tiny(name)
    digests = {config.digest("d"), config.digest("other data")}
    now, train = config.settings.model_dump(mode="json"), config.train.model_dump(mode="json")
    schema = model_class(name).Config
    changes = [{key: other_value(schema, key, now)} for key in schema.model_fields]
    changes += [{"train": {key: other_value(TrainConfig, key, train)}} for key in TrainConfig.model_fields]
    digests |= {tiny(name, **change).digest("d") for change in changes}
    assert len(digests) == 2 + len(changes)


def test_the_digest_changes_with_the_protocol(write):
    path = write(BASE)
    one, other = (load_params(path, [f"evaluation.num_images={n}"]).run("vae").digest("d") for n in (10, 11))
    assert one != other
