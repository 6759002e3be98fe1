"""Parquet files of any name: pyarrow takes names in UTF-8 alone, so Python opens them."""
import pyarrow.parquet as pq


def read_table(file):
    with open(file, "rb") as stream:
        return pq.read_table(stream)


def read_schema(file):
    with open(file, "rb") as stream:
        return pq.read_schema(stream)


def parquet_file(file):
    """-> pyarrow's ParquetFile, to be read in pieces."""
    return pq.ParquetFile(open(file, "rb"))  # noqa: SIM115  (goes with it)


def write_table(table, file, compression="zstd"):
    with open(file, "wb") as stream:
        pq.write_table(table, stream, compression=compression)
