"""Streams delimited text in bounded memory: long lines and broken rows become faults, the rest goes on."""

import csv
import dataclasses
import gzip
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import polars as pl
from upath import UPath

from assets.interactions.readers.base import FAULTS_SCHEMA, POSITION, DatasetError, fault, no_faults, no_rows

BLOCK_BYTES = 8 << 20
MAX_LINE_BYTES = 1 << 20
KEPT_OF_LONG_LINE = 4096
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
NOT_UTF8 = "The row holds bytes that are not UTF-8: save the file as UTF-8."


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How a text file is written.

    Attributes:
        delimiter: Between fields; may be longer than one character.
        quoted: Whether fields may stand in double quotes (RFC 4180).
        encoding: ``utf-8`` or ``latin-1``.
        columns: Names of the columns if the file has no header line.
        max_line_bytes: A longer line (or quoted record) is refused.
        block_bytes: How much of the file is held at a time.
    """

    delimiter: str = ","
    quoted: bool = True
    encoding: str = "utf-8"
    columns: tuple[str, ...] = ()
    max_line_bytes: int = MAX_LINE_BYTES
    block_bytes: int = BLOCK_BYTES


class Rows(NamedTuple):
    """Rows of a block as text columns (null where a field is empty), and what could not be taken apart."""

    rows: pl.DataFrame
    faults: pl.DataFrame


class _Lines(NamedTuple):
    first: int  # number of the first line, counted from 1 at the top of the file
    data: bytes  # complete lines
    too_long: bool  # `data` is the head of one line that is longer than allowed


def _open(path: UPath) -> IO[bytes]:
    raw: Any = path.open("rb")
    return gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw  # type: ignore[return-value]


def _blocks(stream: IO[bytes], dialect: Dialect) -> Iterator[_Lines]:
    """Cuts a stream at line ends. A line over the cap is skipped, of which only the head is ever held."""
    line, rest, skipping = 1, b"", False
    while chunk := stream.read(dialect.block_bytes):
        if skipping:
            end = chunk.find(b"\n")
            if end < 0:
                continue
            chunk, skipping, line = chunk[end + 1 :], False, line + 1
        held = rest + chunk
        cut = held.rfind(b"\n") + 1
        if cut:
            yield _Lines(line, held[:cut], False)
            line += held.count(b"\n", 0, cut)
        rest = held[cut:]
        if len(rest) > dialect.max_line_bytes:
            yield _Lines(line, rest[:KEPT_OF_LONG_LINE], True)
            rest, skipping = b"", True
    if rest:
        yield _Lines(line, rest, False)


def _text(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return data.decode(encoding, errors="replace")


def _long_line(position: int, dialect: Dialect, head: str) -> pl.DataFrame:
    return fault(
        position,
        "line_too_long",
        f"The line is longer than {dialect.max_line_bytes:,} bytes: shorten its fields or close its quotes.",
        head,
    )


def _malformed(positions: list[int], found: list[int], wanted: int, texts: list[str]) -> pl.DataFrame:
    details = [f"The row has {n} fields where the header has {wanted}: check its delimiters and quotes." for n in found]
    return pl.DataFrame(
        {
            POSITION: positions,
            "reason": ["malformed_row"] * len(found),
            "detail": details,
            "payload": [t[:4096] for t in texts],
        },
        schema=FAULTS_SCHEMA,
    )


def _refuse_bad_encoding(rows: pl.DataFrame) -> Rows:
    """Moves rows with undecodable bytes to the faults."""
    names = [n for n in rows.columns if n != POSITION]
    broken = pl.any_horizontal([pl.col(n).str.contains("\ufffd", literal=True).fill_null(False) for n in names])
    bad = rows.filter(broken)
    if bad.is_empty():
        return Rows(rows, no_faults())
    faults = bad.select(
        POSITION,
        pl.lit("bad_encoding").alias("reason"),
        pl.lit(NOT_UTF8).alias("detail"),
        pl.struct(names).struct.json_encode().str.slice(0, 4096).alias("payload"),
    )
    return Rows(rows.filter(~broken), faults)


def _split(block: _Lines, columns: tuple[str, ...], dialect: Dialect) -> Rows:
    """Takes lines without quotes apart, all at once."""
    text = _text(block.data, dialect.encoding)
    lines = pl.DataFrame({"line": pl.Series([text]).str.split("\n").explode().str.strip_suffix("\r")}).with_columns(
        pl.int_range(block.first, pl.len() + block.first, dtype=pl.Int64).alias(POSITION)
    )
    lines = lines.filter(pl.col("line") != "").with_columns(
        (pl.col("line").str.count_matches(dialect.delimiter, literal=True) + 1).alias("fields"),
        pl.col("line").str.len_bytes().alias("bytes"),
    )
    wanted = len(columns)
    long = lines.filter(pl.col("bytes") > dialect.max_line_bytes)
    lines = lines.filter(pl.col("bytes") <= dialect.max_line_bytes)
    odd = lines.filter(pl.col("fields") != wanted)
    faults = [_long_line(p, dialect, t[:KEPT_OF_LONG_LINE]) for p, t in long.select(POSITION, "line").iter_rows()]
    if len(odd):
        faults.append(_malformed(odd[POSITION].to_list(), odd["fields"].to_list(), wanted, odd["line"].to_list()))
    good = lines.filter(pl.col("fields") == wanted)
    fields = (
        good["line"].str.split_exact(dialect.delimiter, wanted - 1).struct.rename_fields(list(columns)).struct.unnest()
        if wanted > 1
        else good.select(pl.col("line").alias(columns[0]))
    )
    rows = pl.concat([good.select(POSITION), fields], how="horizontal")
    return Rows(rows, pl.concat([no_faults(), *faults]))


def _quotes(lines: list[str], delimiter: str) -> str:
    """Whether the quotes of a record are ``closed``, still ``open`` at its end, or ``stray``."""
    try:
        list(csv.reader([line + "\n" for line in lines], delimiter=delimiter, strict=True))
    except csv.Error as error:
        return "open" if "unexpected end of data" in str(error) else "stray"
    return "closed"


def _parse_quoted(block: _Lines, columns: tuple[str, ...], dialect: Dialect, last: bool) -> tuple[Rows, int]:
    """Takes lines with quotes apart, record by record.

    A record that spans lines is taken for a stray quote if it has not the right number of fields or text
    after a closing quote: only its first line is refused, and reading goes on at the next.

    Returns:
        The rows, and how many lines at the end belong to a record that goes on in the next block.
    """
    lines = _text(block.data, dialect.encoding).split("\n")
    if lines[-1] == "":
        lines.pop()
    wanted, start = len(columns), 0
    positions: list[int] = []
    records: list[list[str]] = []
    odd: list[tuple[int, int]] = []
    long: list[int] = []
    csv.field_size_limit(2**31 - 1)
    while start < len(lines):
        reader = csv.reader((lines[i] + "\n" for i in range(start, len(lines))), delimiter=dialect.delimiter)
        offset, before = start, 0
        try:
            for record in reader:
                first, end, before = offset + before, offset + reader.line_num, reader.line_num
                size = sum(map(len, record)) + len(record)
                spans = end - first > 1
                quotes = _quotes(lines[first:end], dialect.delimiter) if spans or end == len(lines) else "closed"
                if quotes == "open" and not last and size <= dialect.max_line_bytes:
                    return _quoted_rows(block, columns, dialect, lines, positions, records, odd, long), end - first
                ragged = len(record) != wanted or size > dialect.max_line_bytes
                if quotes == "open" or (spans and (quotes == "stray" or ragged)):
                    odd.append((first, len(record)))
                    start = first + 1
                    break
                if size > dialect.max_line_bytes:
                    long.append(first)
                elif len(record) != wanted and record:
                    odd.append((first, len(record)))
                elif record:
                    positions.append(block.first + first)
                    records.append(record)
            else:
                break
        except csv.Error:
            # A carriage return inside of a field.
            odd.append((offset + before, 0))
            start = offset + before + 1
    return _quoted_rows(block, columns, dialect, lines, positions, records, odd, long), 0


def _quoted_rows(
    block: _Lines,
    columns: tuple[str, ...],
    dialect: Dialect,
    lines: list[str],
    positions: list[int],
    records: list[list[str]],
    odd: list[tuple[int, int]],
    long: list[int],
) -> Rows:
    rows = pl.DataFrame(records, schema=dict.fromkeys(columns, pl.String), orient="row")
    rows.insert_column(0, pl.Series(POSITION, positions, dtype=pl.Int64))
    faults = [
        _malformed([block.first + i for i, _ in odd], [n for _, n in odd], len(columns), [lines[i] for i, _ in odd])
    ]
    faults += [_long_line(block.first + i, dialect, lines[i][:KEPT_OF_LONG_LINE]) for i in long]
    return Rows(rows, pl.concat(faults))


def _header(block: _Lines, dialect: Dialect, name: str) -> tuple[tuple[str, ...], _Lines]:
    head, _, rest = block.data.partition(b"\n")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in head:
        raise DatasetError(f"The file {name} is UTF-16: save it as UTF-8.")
    text = _text(head, dialect.encoding).rstrip("\r")
    if "\r" in text:
        raise DatasetError(f"The lines of {name} end with carriage returns alone: save it with line feeds.")
    names = next(csv.reader([text], delimiter=dialect.delimiter)) if dialect.quoted else text.split(dialect.delimiter)
    columns = tuple(n.strip() for n in names)
    if len(set(columns)) < len(columns) or not {"", POSITION}.isdisjoint(columns):
        raise DatasetError(
            f"The header of {name} has an empty, reserved or repeated column name ({', '.join(columns)}): "
            "give every column one name."
        )
    return columns, _Lines(block.first + 1, rest, False)


def scan_text(path: UPath, name: str, dialect: Dialect) -> Iterator[tuple[tuple[str, ...], Rows]]:
    """Streams a delimited file.

    Args:
        path: The file; ``.gz`` is unpacked on the way.
        name: How messages call it.
        dialect: How it is written.

    Yields:
        The columns, and the rows of one block. Empty fields are null. Positions count lines after the header.

    Raises:
        DatasetError: If the header cannot be used.
    """
    columns = dialect.columns
    header_lines = 0 if columns else 1
    carried = _Lines(0, b"", False)
    anything = False
    try:
        with _open(path) as stream:
            for block in _blocks(stream, dialect):
                if not columns:
                    block = block._replace(data=block.data.removeprefix(BYTE_ORDER_MARK).lstrip(b"\r\n"))
                    if not block.data:
                        continue
                anything = True
                if not columns:
                    if block.too_long:
                        raise DatasetError(
                            f"The first line of {name} is longer than {dialect.max_line_bytes:,} bytes "
                            "and no header: give the file a header with the column names."
                        )
                    columns, block = _header(block, dialect, name)
                block = block._replace(first=block.first - header_lines)
                if block.too_long:
                    if carried.data:
                        yield columns, _finish(_parse_quoted(carried, columns, dialect, last=True)[0])
                        carried = _Lines(0, b"", False)
                    head = _text(block.data, dialect.encoding)
                    yield columns, Rows(no_rows(columns), _long_line(block.first, dialect, head))
                    continue
                if carried.data:
                    block = _Lines(carried.first, carried.data + block.data, False)
                carried = _Lines(0, b"", False)
                if dialect.quoted and b'"' in block.data:
                    read, open_lines = _parse_quoted(block, columns, dialect, last=False)
                    if open_lines:
                        carried = _tail(block, open_lines)
                else:
                    read = _split(block, columns, dialect)
                yield columns, _finish(read)
            if carried.data:
                yield columns, _finish(_parse_quoted(carried, columns, dialect, last=True)[0])
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        detail = f"The file cannot be unpacked to its end ({error}): fetch it again."
        yield columns, Rows(no_rows(columns), fault(0, "truncated_file", detail))
        return
    if not anything:
        detail = "The file is empty, without even a header: write it again."
        yield columns, Rows(no_rows(columns), fault(0, "empty_file", detail))


def _tail(block: _Lines, num_lines: int) -> _Lines:
    """The last lines of a block."""
    data = block.data if block.data.endswith(b"\n") else block.data + b"\n"
    cut = len(data) - 1
    for _ in range(num_lines):
        cut = data.rfind(b"\n", 0, cut)
    return _Lines(block.first + data.count(b"\n", 0, cut + 1), data[cut + 1 :], False)


def _finish(read: Rows) -> Rows:
    names = [n for n in read.rows.columns if n != POSITION]
    if not names:
        return read
    blank = read.rows.with_columns([pl.when(pl.col(n).str.strip_chars() != "").then(pl.col(n)).alias(n) for n in names])
    rows, refused = _refuse_bad_encoding(blank)
    return Rows(rows, pl.concat([read.faults, refused]))
