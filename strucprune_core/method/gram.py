"""The statistics of a site: a token-weighted Gram matrix of its input activations, in float32.

    w_t = 1 / mean(x_out,t^2)        G = sum_t w_t a_t a_t^T / sum_t w_t

a_t (m,) is a token's activation where columns are to be removed, and x_out,t (d,) the layer's
output for it. With G, the squared output error of any new weights W is tr((W - W0) G (W - W0)^T),
so one pass over the text serves every later step. Optimal Brain Surgeon for layers uses the same
matrix as its Hessian (Frantar and Alistarh 2023, "SparseGPT": H = X X^T).

We differ in the weights w_t. A few tokens carry activations tens of thousands of times the median
(Sun et al. 2024, "Massive Activations"), and without weights G would describe only them. The
weights also make the errors of different layers comparable. An expert's sum runs over its own
tokens, but is divided by the weight of all tokens: its error is then its share of the layer's
error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from strucprune_core.errors import NumericalFailure
from strucprune_core.method.linalg.matrices import DeviceMatrix, Matrix, Room, spans
from strucprune_core.method.linalg.symmetric import add_gram

LEAST_MEAN_SQUARE = 1e-12  # A token whose output is zero gets a finite weight.


def token_weights(outputs: Tensor) -> Tensor:
    """w_t of each token, (n,) float32, from the layer's outputs on the residual stream, (n x d)."""
    return 1.0 / outputs.float().square().mean(-1).clamp_min(LEAST_MEAN_SQUARE)


class GramAccumulator:
    """Sums w_t a_t a_t^T over batches: the lower half, by row panels.

    Args:
        width: Input columns, m.
        room: The activations' device, and sizes of panels.
        sums: Zeros (m x m) float32 to sum in; None: on the device.
    """

    def __init__(self, width: int, room: Room, sums: Matrix | None = None) -> None:
        zeros = torch.zeros(0 if sums else width, width, device=room.device)
        self._sums = sums or DeviceMatrix(zeros)
        self._room, self._step = room, room.panels.step(width)
        self._buffer = room.buffer_for(self._sums, self._step, torch.float32)

    def add(self, activations: Tensor, weights: Tensor) -> None:
        """Add tokens: their activations (n x m), any float dtype, and weights w_t (n,) float32."""
        scaled = activations.float() * weights.sqrt()[:, None]
        add_gram(self._sums, scaled, self._step, self._buffer)

    def finish(self, total_weight: float, into: Matrix | None = None) -> None:
        """Divide the sums and fill their upper half. Ends the accumulation.

        Args:
            total_weight: What to divide by.
            into: Where G goes, (m x m) float32; None: where the sums are.

        Raises:
            NumericalFailure: an entry is not finite.
        """
        target = into or self._sums
        for span in spans(target.shape[0], self._step):
            panel = self._sums.read(span, slice(0, span.stop), self._buffer)
            panel.div_(total_weight)
            if not torch.isfinite(panel.sum(dtype=torch.float64)):
                raise NumericalFailure(
                    "the Gram matrix has non-finite entries",
                    remedy="The model's activations overflow on this calibration text; check the "
                    "weights.",
                )
            target.write_symmetric(span, panel)
            self._room.tick()

    def gram(self, total_weight: float) -> Tensor:
        """G, (m x m) float32, where the sums lie: their own memory. Ends the accumulation."""
        self.finish(total_weight)
        return self._sums.tensor
