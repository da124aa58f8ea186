"""The tables of a run folder, `trials` and `epochs`: a file a trial, and larger ones that `compact` makes of them."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa

from results.store import parquet, schema
from results.store.disk import Files
from results.store.parquet import MERGED, Where

MERGE = 20_000  # files at a time: 4 million epochs, 300 MB while they are merged
ROW_GROUP = 65_536  # of a merged file: sorted by id, so that a filter skips most, in a tenth of the time for one trial


class Table:
    """One of the tables.

    Args:
        files: of the run folder.
        name: `trials` or `epochs`.
    """

    def __init__(self, files: Files, name: str):
        self.name = name
        self._files, self._columns = files, schema.TABLES[name]

    def read(self, columns: Sequence[str] | None = None, where: Where | None = None) -> pa.Table:
        """Return the rows that `where` asks for, each trial or epoch once; of those only some columns.

        Raises:
            RequestError: there is no such column, or a value in `where` is none of its type, or what is there cannot be
                read.
        """
        return parquet.read(self._files, self.name, self._columns, columns, where)

    def read_new(self, columns: Sequence[str], read: set[str]) -> list[dict[str, Any]]:
        """Return the rows that stand in files whose names are not in `read`, and add these names to it.

        Raises:
            RequestError: a file cannot be read.
        """
        wanted = pa.schema([self._columns.field(name) for name in columns])
        names, table = parquet.current(self._files, self.name, lambda name: name not in read, lambda _: wanted)
        read.update(names)
        return table.to_pylist()

    def write(self, trial_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rows of one trial, in place of those that it has."""
        unknown = {key for row in rows for key in row} - set(self._columns.names)
        if unknown:
            raise ValueError(f"no such column in {self.name}: {', '.join(sorted(unknown))}")
        data = parquet.written(pa.Table.from_pylist(list(rows), schema=self._columns))
        self._files.write(f"{self.name}/{trial_id}.parquet", data)

    def write_merged(self, rows: pa.Table) -> None:
        """Write rows of many trials as one file."""
        data = parquet.written(rows, compression="zstd", row_group_size=ROW_GROUP)
        self._files.write(f"{self.name}/{MERGED}{uuid.uuid4().hex[:12]}.parquet", data)

    def merge(self, trial_ids: Collection[str]) -> None:
        """Put the rows of these trials into merged files, and then remove the trials' own.

        Raises:
            RequestError: a file cannot be read.
        """
        with parquet.of_a_sweep(self._files, self.name):
            names = parquet.listed(self._files, self.name)
            merged = [name for name in names if parquet.is_merged(name)]
            id_alone = pa.schema([self._columns.field("trial_id")])
            before = set(parquet.concatenated(self._files, merged, id_alone)["trial_id"].unique().to_pylist())
            small = [name for name in names if not parquet.is_merged(name) and parquet.trial_id(name) in trial_ids]
            new = [name for name in small if parquet.trial_id(name) not in before]  # the rest a killed merge has left
            for start in range(0, len(new), MERGE):
                self.write_merged(parquet.concatenated(self._files, new[start : start + MERGE], self._columns))
            for _ in parquet.each(self._files, self._files.remove, small):
                pass
