"""What the samples of an archive say of themselves, as columns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from genmodels.data.fields import Record
from genmodels.data.sources.columns import Columns, Named, Values
from genmodels.data.sources.roles import Roles


class Told:
    """Labels, captions, attributes and further columns, each by the file of the record; nothing is said by silence."""

    def __init__(self) -> None:
        self.labels: dict[str, str] = {}
        self.captions: dict[str, tuple[str, ...]] = {}
        self.attributes: dict[str, dict[str, str]] = defaultdict(dict)  # by name: what are attributes unless chosen
        self.values: dict[str, dict[str, str]] = defaultdict(dict)  # by name: what a configuration may name

    def roles(self, named: Named, where: str) -> Roles:
        """The roles that the configuration gives; `where` is how messages call the columns."""
        columns = Columns(Values(self.attributes), Values(self.values), where)
        roles = columns.roles(named, self.captions or None)
        return roles if named.label else roles._replace(labels=self.labels or None)


def summary(what: str, roles: Roles, records: Sequence[Record]) -> str:
    """An archive's description in one line: what it is, how many images, and what is said of them."""
    num_captions = sum(len(record.captions) for record in records)
    with_captions = f" with {num_captions:,} captions" if num_captions else ""
    return "; ".join([f"{what}: {len(records)} images{with_captions}", *roles.words])
