"""KEEP's General Knowledge Center: versioned user, item and user×category vectors.

Zhang et al., "KEEP: An Industrial Pre-Training Framework for Online Recommendation via Knowledge
Extraction and Plugging", CIKM 2022, §5. A batch of quadruples (user, item, category, version)
goes in, eq. 6's vectors come out. Start reading at `center.py` (the question), `store.py` (the
interface) and the two stores: `mapped_store.py` (memory-mapped files) and `redis_store.py`.

    from serving.knowledge import MappedStore, lookup

    store = MappedStore("knowledge/")
    answer = lookup(store, users=["u1", "u1"], items=["i1", "i2"], categories=["c1", "c1"])
    answer.concatenated()  # [2, D_u + D_i + D_ui + D_uc]
"""

from serving.knowledge.center import lookup
from serving.knowledge.mapped_store import MappedStore
from serving.knowledge.store import Knowledge, Rows, Store

__all__ = ["Knowledge", "MappedStore", "Rows", "Store", "lookup"]
