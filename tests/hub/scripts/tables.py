"""Make, or read from a repository, a table. Usage: tables.py pandas|pyarrow make FOLDER, or tables.py pandas|pyarrow read NAME.

pandas reads a CSV file by a URL, and pyarrow two columns of a Parquet file through the file system of the client.
"""

import json
import os
import sys

COLUMNS = {"token": list(range(20_000)), "text": [f"word {number % 700}" for number in range(20_000)]}


def with_pandas(verb: str, place: str) -> list[object]:
    """Return the sum of a column and one value of another."""
    import pandas as pd

    if verb == "make":
        pd.DataFrame(COLUMNS).to_csv(f"{place}/table.csv", index=False)
        return []
    table = pd.read_csv(f"hf://datasets/{place}/table.csv")
    return [int(table["token"].sum()), table["text"][701]]


def with_pyarrow(verb: str, place: str) -> list[object]:
    """Return the sum of a column and one value of another."""
    import pyarrow.parquet as pq
    from huggingface_hub import HfFileSystem

    if verb == "make":
        import pyarrow as pa

        pq.write_table(pa.table(COLUMNS), f"{place}/table.parquet", row_group_size=1000)
        return []
    table = pq.read_table(f"datasets/{place}/table.parquet", filesystem=HfFileSystem(), columns=["token", "text"])
    return [sum(table["token"].to_pylist()), table["text"][701].as_py()]


if __name__ == "__main__":
    library, verb, place = sys.argv[1:]
    print(json.dumps((with_pandas if library == "pandas" else with_pyarrow)(verb, place)), flush=True)
    # Threads of pyarrow that read through Python may abort while Python ends (issues 34314 and 39162 of apache/arrow).
    os._exit(0)
