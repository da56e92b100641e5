"""The ranking of what is registered: by the declared metric, within a protocol, proofs first."""

import json
from html.parser import HTMLParser

import pytest
from commands import refused, succeed
from exports import register_vae

from pipelines import leaderboard, tracking


@pytest.fixture(scope="module")
def versions(project, sprites_data, tmp_path_factory) -> dict[str, int]:
    folder = tmp_path_factory.mktemp("exports")
    return {
        "good": register_vae(folder, sprites_data, 1, 50.0, proofs="3 of 3 shown", run="a"),
        "unproved": register_vae(folder, sprites_data, 2, 10.0, proofs="2 of 3 shown", run="<b>"),
        "better": register_vae(folder, sprites_data, 3, 40.0, run="c"),
        "lost": register_vae(folder, sprites_data, 4, float("nan"), run="d"),
        "other": register_vae(folder, sprites_data, 5, 1.0, "p2", run="e"),
    }


class Images(HTMLParser):
    """The sources of a page's images, and whether it is whole."""

    def __init__(self, page: str):
        super().__init__()
        self.sources: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name == "src"]


def test_versions_are_ranked_within_a_protocol_and_those_whose_proof_failed_come_last(versions, project):
    output = succeed(leaderboard, "--out", project.root / "board")
    tables = json.loads((project.root / "board/leaderboard.json").read_text())
    order = {table["protocol"]: [row["version"] for row in table["versions"]] for table in tables}
    assert order == {
        "p1": [versions[name] for name in ("better", "good", "unproved", "lost")],
        "p2": [versions["other"]],
    }
    assert "vae on sprites, protocol p1" in output and "protocol p2" in output


def test_the_gallery_is_one_page_with_a_grid_a_version_and_no_network(versions, project):
    succeed(leaderboard, "--top", 2, "--out", project.root / "top")
    page = (project.root / "top/index.html").read_text()
    sources = Images(page).sources
    assert len(sources) == 3 and len(set(sources)) == 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in page and "<b>vae/" in page


def test_a_model_that_is_not_registered_is_refused_with_what_is(versions, project):
    assert "registered: vae" in refused(leaderboard, "--model", "progan")


def test_models_of_other_projects_in_the_same_registry_are_left_out(versions, project, tmp_path):
    client = tracking.connected().MlflowClient()
    client.create_registered_model("churn")
    client.create_model_version("churn", str(tmp_path))
    assert "churn" not in succeed(leaderboard, "--out", project.root / "ours")
    assert "registered: vae" in refused(leaderboard, "--model", "churn")
