"""A side table's columns, for every row of a source."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from data.casting import single_array


def left_join(table: pa.Table, side: pa.Table, key: str) -> pa.Table:
    """`table`, in order, with the columns it lacks from the row of `side` with the same `key`.

    Null where `side` has no such row. Both keys are text; `side` has each once.
    """
    place = pc.index_in(single_array(table[key]), value_set=single_array(side[key]))
    for name in side.column_names:
        if name not in table.column_names:
            table = table.append_column(name, single_array(side[name]).take(place))
    return table
