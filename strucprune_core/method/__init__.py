"""The paper's method on tensors: statistics, layers, allocation, training. No I/O."""
