"""What a page is made of: sections with text, figures and tables."""

from __future__ import annotations

from dataclasses import dataclass

from proxygap.report.drawing import Drawing


@dataclass(frozen=True, slots=True)
class Column:
    """A table column; ``side`` (objective, outcome or empty) colors its title."""

    title: str
    side: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A table row; a failed one is shown as such, and ``link`` makes its first cell one."""

    cells: tuple[str, ...]
    failed: bool = False
    link: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Columns, rows, and a note on how to read them."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with text, figures, tables and, folded away, a listing."""

    title: str
    text: str = ""
    drawings: tuple[Drawing, ...] = ()
    tables: tuple[Table, ...] = ()
    pre: str = ""
    summary: str = ""
    open: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """A page: the verdict first, then what was asked, then the evidence."""

    title: str
    kind: str
    verdict: str
    remarks: tuple[str, ...]
    subtitle: tuple[str, ...]
    sections: tuple[Section, ...]
    footer: str
