"""How things look in the UI: pictures in Markdown, file names as plain text."""

import base64

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
