"""Op name -> a function of jax arrays. One row for every op of ``twofold.ir.OPS``; a test lists gaps.

Importing this package loads jax.
"""

from twofold.backends.xla.table import control, conv, elementwise, indexing, movement, pool, random, reduction

TABLE: dict[str, elementwise.Row] = {}
for _family in (control, conv, elementwise, indexing, movement, pool, random, reduction):
    TABLE.update(_family.ROWS)

__all__ = ["TABLE"]
