"""What a model is worth and what it costs: perplexity, memory, and the reload check."""
