"""A simulator of a payment app's users, for data whose ceiling is known.

What users do and why: `population.py`. How that becomes columns: `tables.py`. How columns
become files: `writing.py`. The spec that reads them: `channels.py`. The best any model can
do on them: `oracle.py`.
"""

from data.simulator.channels import CORE_CHANNELS, simulator_spec
from data.simulator.oracle import oracle_metrics
from data.simulator.writing import simulate

__all__ = ["CORE_CHANNELS", "oracle_metrics", "simulate", "simulator_spec"]
