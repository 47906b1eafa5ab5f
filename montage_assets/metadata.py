"""How things look in the UI: pictures in Markdown, file names as plain text, tables."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg


def picture(data: bytes, alt: str, kind: str = "jpeg") -> dg.MetadataValue:
    """A picture as Markdown with the bytes inside, since the UI serves no files."""
    return dg.MetadataValue.md(picture_markdown(data, alt, kind))


def picture_markdown(data: bytes, alt: str, kind: str = "jpeg") -> str:
    """Markdown of one picture."""
    return f"![{plain(alt)}](data:image/{kind};base64,{base64.b64encode(data).decode()})"


def plain(name: str) -> str:
    """A file name as plain text: it may hold anything, and the UI renders Markdown."""
    return "".join(f"&#{ord(char)};" if char in "<>&[]()*_`!\\#|" else char for char in name)


def table(rows: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue:
    """A table whose columns are the keys of the rows, in order, typed by their values.

    All rows have the same keys. A column of whole and other numbers is one of floats. No rows give a table
    without columns.
    """
    columns = [dg.TableColumn(name, _column_type([row[name] for row in rows])) for name in (rows[0] if rows else ())]
    records = [dg.TableRecord(dict(row)) for row in rows]
    return dg.MetadataValue.table(records, schema=dg.TableSchema(columns))


def _column_type(values: Sequence[object]) -> str:
    kinds = {type(value) for value in values}
    if kinds == {bool}:
        return "bool"
    if kinds == {int}:
        return "int"
    return "float" if kinds <= {int, float} else "string"
