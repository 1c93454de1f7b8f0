"""Tasks of lm-evaluation-harness on a streamed model, one layer in memory."""
