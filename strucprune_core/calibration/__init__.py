"""From text to statistics: token batches, and one streamed pass over the dense model."""
