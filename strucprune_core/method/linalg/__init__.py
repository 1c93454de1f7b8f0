"""Linear algebra on matrices that may be larger than the device's memory.

StructPrune's abstract claims O(sqrt N) memory for a model of N parameters. One layer in memory does
not give that: it grows as N^0.78 over the sizes of OPT, and as N^0.76 over those of LLaMA
(`benchmarks/memory_scaling.py`). So a matrix here may lie on disk and visit the device in row
panels, whose size the planner chooses (`plan/pieces.py`).
"""
