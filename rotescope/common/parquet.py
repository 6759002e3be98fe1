"""Parquet files of any name: pyarrow takes names in UTF-8 alone, so Python opens them. Each says what it is in its metadata."""
import pyarrow.parquet as pq

KIND = b"rotescope"  # the key of the metadata under which a table of ours says what it is: "records 1"
UNMARKED = ({"image", "method", "prompt_index", "prompt", "seed"},  # the columns of ours that older releases did not mark
            {"detector", "prompt_index", "score"}, {"prompt_index", "position", "token", "significance"},
            {"image_id", "where", "risk", "exposures"})


def read_table(file):
    with open(file, "rb") as stream:
        return pq.read_table(stream)


def read_schema(file):
    with open(file, "rb") as stream:
        return pq.read_schema(stream)


def parquet_file(file):
    """-> pyarrow's ParquetFile, to be read in pieces."""
    return pq.ParquetFile(open(file, "rb"))  # noqa: SIM115  (goes with it)


def write_table(table, file, compression="zstd", kind=None):
    """kind: what the table is, for its metadata, if its schema does not say so."""
    if kind:
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), KIND: f"{kind} 1".encode()})
    with open(file, "wb") as stream:
        pq.write_table(table, stream, compression=compression)


def kind_of(schema):
    """What a table of ours holds: manifest, records, pairs, images, scores, tokens; "" of a table that is not ours."""
    said = (schema.metadata or {}).get(KIND)
    if said:
        return said.decode(errors="replace").partition(" ")[0]
    return "results" if any(columns <= set(schema.names) for columns in UNMARKED) else ""
