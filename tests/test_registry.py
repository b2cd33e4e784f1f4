"""Names to builders."""

from __future__ import annotations

import pytest

from detkit.registry import Registry, suggest


@pytest.fixture
def table() -> Registry:
    table: Registry = Registry("backbone")
    for name in ("resnet50", "resnet18", "vgg16", "lenet"):
        table.register(name)(lambda name=name: name)
    return table


def test_decorator_returns_the_builder(table: Registry) -> None:
    def build() -> int:
        return 1

    assert table.register("new")(build) is build
    assert table["new"] is build
    assert table["vgg16"]() == "vgg16"
    assert "new" in table
    assert "old" not in table


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*", ["lenet", "resnet18", "resnet50", "vgg16"]),
        ("res*", ["resnet18", "resnet50"]),
        ("*net", ["lenet"]),
        ("resnet?0", ["resnet50"]),
        ("RES*", []),
        ("", []),
    ],
)
def test_names_are_sorted_matches(table: Registry, pattern: str, names: list[str]) -> None:
    assert table.names(pattern) == names


def test_name_is_taken_once(table: Registry) -> None:
    with pytest.raises(ValueError, match=r"^backbone 'lenet' is registered twice$"):
        table.register("lenet")(lambda: None)
    assert table["lenet"]() == "lenet"


def test_unknown_name_gets_close_matches_and_the_list(table: Registry) -> None:
    with pytest.raises(ValueError, match="unknown") as caught:
        table["resnet5"]
    assert str(caught.value) == (
        "unknown backbone 'resnet5'; did you mean 'resnet50' or 'resnet18' or 'lenet'? "
        "allowed: lenet, resnet18, resnet50, vgg16"
    )


@pytest.mark.parametrize(
    ("given", "allowed", "text"),
    [
        ("adam", ["sgd", "adamw"], "did you mean 'adamw'? allowed: sgd, adamw"),
        ("zzz", ["sgd", "adamw"], "allowed: sgd, adamw"),
        ("a", [], "allowed: "),
        (
            "ab1",
            ["ab2", "ab3", "ab4", "ab5"],
            "did you mean 'ab5' or 'ab4' or 'ab3'? allowed: ab2,",
        ),
    ],
)
def test_suggest(given: str, allowed: list[str], text: str) -> None:
    assert suggest(given, allowed).startswith(text)


class Letters:
    """A family whose members another library would know."""

    def builder(self, name: str):
        if name not in self.names():
            raise ValueError(f"no letter {name!r}")
        return lambda: name.upper()

    def names(self) -> list[str]:
        return ["abc:b", "abc:a"]


def test_family_is_found_by_its_prefix_and_listed_only_when_asked_for(table: Registry) -> None:
    table.register_family("abc:", Letters())
    assert table["abc:a"]() == "ABC:A"
    assert table["lenet"]() == "lenet"
    assert "abc:b" in table and "abc:c" not in table and "lenet" in table
    assert table.names("abc:*") == ["abc:a", "abc:b"]
    assert table.names("*") == ["lenet", "resnet18", "resnet50", "vgg16"]
    with pytest.raises(ValueError, match=r"^no letter 'abc:c'$"):
        table["abc:c"]
