"""Rows of a region store: which columns there are, their checks, their check sums, Arrow tables."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT_VERSION = 1
UNIT_TOLERANCE = 5e-3  # rounding 1024 numbers to float16 moves the length by less than 1e-3
_METADATA_KEY = b"tokenize_anything.region_store"
_FIXED_COLUMNS = ("region_id", "image", "box_xyxy", "mask_size_hw", "mask_counts", "checksum")
_DTYPES = ("float16", "float32")


@dataclass(frozen=True)
class VectorColumn:
    """One vector for each region.

    name: of the column.
    dim: numbers in a vector.
    dtype: float16 or float32, as stored.
    is_unit: every vector has length 1.
    """

    name: str
    dim: int
    dtype: str = "float16"
    is_unit: bool = False

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"{self.name}: expected dim of at least 1, got {self.dim}")
        if self.dtype not in _DTYPES:
            raise ValueError(f"{self.name}: expected dtype in {_DTYPES}, got {self.dtype!r}")


@dataclass(frozen=True)
class RegionColumns:
    """What a store holds of each region besides its id, image, box and mask.

    identity: what made the vectors; vectors of different identities are not comparable, so a store
        holds those of one.
    vectors, numbers (float32), texts: further columns.
    """

    identity: str
    vectors: tuple[VectorColumn, ...]
    numbers: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.identity.strip():
            raise ValueError("identity: expected text that says what made the vectors, got none")
        names = [*_FIXED_COLUMNS, *(v.name for v in self.vectors), *self.numbers, *self.texts]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"columns: expected distinct names, got {repeated} more than once")

    def vector(self, name: str) -> VectorColumn:
        """The vector column of that name.

        Raises:
            ValueError: there is none.
        """
        for column in self.vectors:
            if column.name == name:
                return column
        raise ValueError(
            f"column: expected one of {[column.name for column in self.vectors]}, got {name!r}"
        )

    def to_schema(self) -> pa.Schema:
        """Arrow schema that carries these columns as its metadata."""
        import pyarrow as pa

        fields = [
            pa.field("region_id", pa.int64(), nullable=False),
            pa.field("image", pa.string(), nullable=False),
            pa.field("box_xyxy", pa.list_(pa.float32(), 4), nullable=False),
            pa.field("mask_size_hw", pa.list_(pa.int32(), 2), nullable=False),
            pa.field("mask_counts", pa.string(), nullable=False),
            pa.field("checksum", pa.uint32(), nullable=False),
        ]
        for vector in self.vectors:
            kind = pa.list_(getattr(pa, vector.dtype)(), vector.dim)
            fields.append(pa.field(vector.name, kind, nullable=False))
        fields += [pa.field(name, pa.float32(), nullable=False) for name in self.numbers]
        fields += [pa.field(name, pa.string(), nullable=False) for name in self.texts]
        content = {"version": FORMAT_VERSION, **asdict(self)}
        return pa.schema(fields, metadata={_METADATA_KEY: json.dumps(content).encode()})

    @classmethod
    def from_schema(cls, schema: pa.Schema, where: str) -> RegionColumns:
        """Columns of an Arrow schema that `to_schema` made.

        Raises:
            ValueError: another schema, or one of a later version.
        """
        written = (schema.metadata or {}).get(_METADATA_KEY)
        if written is None:
            raise ValueError(
                f"{where} is a Lance data set, but no region store: expected {_METADATA_KEY!r} in "
                f"its schema, got the columns {schema.names}"
            )
        content = json.loads(written)
        version = content.pop("version")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{where}: expected region store version {FORMAT_VERSION}, got {version}; "
                f"update tokenize-anything"
            )
        vectors = tuple(VectorColumn(**vector) for vector in content["vectors"])
        columns = cls(
            content["identity"], vectors, tuple(content["numbers"]), tuple(content["texts"])
        )
        if not schema.equals(columns.to_schema()):
            raise ValueError(
                f"{where}: expected the columns its metadata lists, got {schema.names}; it is "
                f"damaged"
            )
        return columns


@dataclass(frozen=True, eq=False)
class RegionRows:
    """R regions of any images.

    region_ids: (R,) int64, each once in a store.
    images: R names of images, at least one character each.
    boxes_xyxy: (R,4) float32, original pixels, right and bottom exclusive.
    rles: R COCO run-length masks, compressed, of the image's size.
    vectors, numbers, texts: by column name: (R,D), (R,), and R texts.
    """

    region_ids: np.ndarray
    images: Sequence[str]
    boxes_xyxy: np.ndarray
    rles: Sequence[Mapping[str, Any]]
    vectors: Mapping[str, np.ndarray]
    numbers: Mapping[str, np.ndarray] = field(default_factory=dict)
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.region_ids)


def rows_to_table(rows: RegionRows, columns: RegionColumns) -> pa.Table:
    """Check rows and lay them out as Arrow, each with its check sum.

    Raises:
        ValueError: a column missing, of another length or width, with NaN or infinity, or too large
            for float16; an id twice; an image without name.
    """
    import pyarrow as pa

    count = len(rows)
    ids = _checked("region_id", rows.region_ids, (count,), "int64")
    values, repeats = np.unique(ids, return_counts=True)
    if (repeats > 1).any():
        raise ValueError(f"region_id: {describe_some(values[repeats > 1])} more than once")
    sizes = np.array([rle["size"] for rle in rows.rles], dtype=np.int32).reshape(-1, 2)
    boxes = _checked("box_xyxy", rows.boxes_xyxy, (count, 4), "float32")
    plain = [ids, boxes, _checked("mask_size_hw", sizes, (count, 2), "int32")]
    for column in columns.vectors:
        given = _given(rows.vectors, column.name)
        plain.append(_checked_vectors(column, given, count))
    plain += [
        _checked(name, _given(rows.numbers, name), (count,), "float32") for name in columns.numbers
    ]
    words = [rows.images, [str(rle["counts"]) for rle in rows.rles]]
    words += [_given(rows.texts, name) for name in columns.texts]
    for name, column_words in zip(("image", "mask_counts", *columns.texts), words, strict=True):
        if len(column_words) != count:
            raise ValueError(f"{name}: expected {count} texts, got {len(column_words)}")
    if not all(rows.images):
        raise ValueError("image: expected a name for every region, got an empty one")
    num_vectors = len(columns.vectors)
    checksums = pa.array(row_checksums(plain, words))
    arrays = [pa.array(ids), pa.array(words[0], pa.string()), _lists(plain[1]), _lists(plain[2])]
    arrays += [pa.array(words[1], pa.string()), checksums]
    arrays += [_lists(vectors) for vectors in plain[3 : 3 + num_vectors]]
    arrays += [pa.array(numbers) for numbers in plain[3 + num_vectors :]]
    arrays += [pa.array(texts, pa.string()) for texts in words[2:]]
    return pa.Table.from_arrays(arrays, schema=columns.to_schema())


def table_to_rows(table: pa.Table, columns: RegionColumns) -> RegionRows:
    """The rows of a table with all columns of a store."""
    sizes = to_numpy_column(table, "mask_size_hw").tolist()
    counts = table["mask_counts"].to_pylist()
    return RegionRows(
        region_ids=to_numpy_column(table, "region_id"),
        images=table["image"].to_pylist(),
        boxes_xyxy=to_numpy_column(table, "box_xyxy"),
        rles=[{"size": s, "counts": c} for s, c in zip(sizes, counts, strict=True)],
        vectors={v.name: to_numpy_column(table, v.name) for v in columns.vectors},
        numbers={name: to_numpy_column(table, name) for name in columns.numbers},
        texts={name: table[name].to_pylist() for name in columns.texts},
    )


def to_numpy_column(table: pa.Table, name: str) -> np.ndarray:
    """A column of numbers (n,) or of lists of equal length (n,D); shares memory where it can."""
    import pyarrow as pa

    column = table[name].combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # what combining no chunks gives
        column = pa.concat_arrays(column.chunks) if column.chunks else pa.array([], column.type)
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy(zero_copy_only=False)
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)


def table_checksums(table: pa.Table, columns: RegionColumns) -> np.ndarray:
    """(n,) check sums of what a table holds now, to be compared with those it was stored with."""
    names = ["region_id", "box_xyxy", "mask_size_hw", *(v.name for v in columns.vectors)]
    plain = [to_numpy_column(table, name) for name in (*names, *columns.numbers)]
    words = [table[name].to_pylist() for name in ("image", "mask_counts", *columns.texts)]
    return row_checksums(plain, words)


def row_checksums(plain: Sequence[np.ndarray], words: Sequence[Sequence[str]]) -> np.ndarray:
    """(R,) uint32 CRC-32 of each row: the bytes of its numbers, after those of its texts.

    Formats keep no check sums of their own for every page, and a changed bit in a vector would
    pass for another vector.
    """
    count = len(plain[0])
    little = [values.astype(values.dtype.newbyteorder("<"), copy=False) for values in plain]
    parts = [np.ascontiguousarray(v).reshape(count, -1).view(np.uint8) for v in little if count]
    numbers = np.concatenate(parts, axis=1) if parts else np.zeros((0, 0), np.uint8)
    texts = ["\0".join(row).encode() for row in zip(*words, strict=True)]
    sums = [zlib.crc32(row, zlib.crc32(text)) for row, text in zip(numbers, texts, strict=True)]
    return np.array(sums, dtype=np.uint32)


def is_unit_length(vectors: np.ndarray) -> np.ndarray:
    """(R,) bool of (R,D): length 1 up to rounding; False for NaN and infinity."""
    lengths = np.linalg.norm(vectors.astype(np.float32), axis=1)
    return np.abs(lengths - 1) <= UNIT_TOLERANCE


def _checked_vectors(column: VectorColumn, given: np.ndarray, count: int) -> np.ndarray:
    with np.errstate(over="ignore"):  # what float16 cannot hold is found by the check
        vectors = _checked(column.name, given, (count, column.dim), column.dtype)
    if column.is_unit and not is_unit_length(vectors).all():
        raise ValueError(f"{column.name}: expected vectors of length 1; divide by their length")
    return vectors


def _checked(name: str, given: Any, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    array = np.asarray(given)
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    array = array.astype(dtype, copy=False)
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers within {dtype}, got NaN or infinity")
    return array


def _given(columns: Mapping[str, Any], name: str) -> Any:
    if name not in columns:
        raise ValueError(f"{name}: expected this column in the rows, got only {sorted(columns)}")
    return columns[name]


def _lists(values: np.ndarray) -> pa.FixedSizeListArray:
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def describe_some(values: np.ndarray) -> str:
    """The first three of (n,) values, and how many more there are."""
    more = f" and {len(values) - 3} more" if len(values) > 3 else ""
    return f"{values[:3].tolist()}{more}"


def join_rows(parts: Sequence[RegionRows]) -> RegionRows:
    """The rows of at least one part, one after another; all have the columns of the first."""
    first = parts[0]
    return RegionRows(
        np.concatenate([part.region_ids for part in parts]),
        [name for part in parts for name in part.images],
        np.concatenate([part.boxes_xyxy for part in parts]),
        [rle for part in parts for rle in part.rles],
        {n: np.concatenate([part.vectors[n] for part in parts]) for n in first.vectors},
        {n: np.concatenate([part.numbers[n] for part in parts]) for n in first.numbers},
        {n: [text for part in parts for text in part.texts[n]] for n in first.texts},
    )


def pick_rows(rows: RegionRows, picks: np.ndarray) -> RegionRows:
    """Rows by (n,) positions."""
    places = picks.tolist()
    return RegionRows(
        rows.region_ids[picks],
        [rows.images[place] for place in places],
        rows.boxes_xyxy[picks],
        [rows.rles[place] for place in places],
        {name: vectors[picks] for name, vectors in rows.vectors.items()},
        {name: numbers[picks] for name, numbers in rows.numbers.items()},
        {name: [texts[place] for place in places] for name, texts in rows.texts.items()},
    )
