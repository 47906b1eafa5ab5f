"""How results look in the UI."""

from __future__ import annotations

import pytest

from montage_assets.metadata import plain, table


def test_a_table_takes_its_columns_and_their_types_from_its_rows() -> None:
    shown = table(
        [
            {"clip": "a.mp4", "frames": 60, "seconds": 2, "used": True},
            {"clip": "b.mp4", "frames": 70, "seconds": 2.5, "used": False},
        ]
    )
    assert [(column.name, column.type) for column in shown.schema.columns] == [
        ("clip", "string"),
        ("frames", "int"),
        ("seconds", "float"),
        ("used", "bool"),
    ]
    assert [record.data["clip"] for record in shown.records] == ["a.mp4", "b.mp4"]


def test_a_table_without_rows_is_empty() -> None:
    assert table([]).schema.columns == []


@pytest.mark.parametrize(
    ("values", "kind"), [((1, True), "string"), ((1, "a"), "string"), ((1.0, 2), "float"), ((True,), "bool")]
)
def test_a_column_of_mixed_values_is_of_the_type_that_holds_them_all(values: tuple[object, ...], kind: str) -> None:
    (column,) = table([{"x": value} for value in values]).schema.columns  # type: ignore[dict-item]
    assert column.type == kind


def test_file_names_are_shown_as_they_are() -> None:
    assert plain("<b>.mp4") == "&#60;b&#62;.mp4"
