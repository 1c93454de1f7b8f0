"""The step that does the work of each kind of unit: the one of the file of its name in `steps`."""

from __future__ import annotations

from collections.abc import Callable

from strucprune_core.plan.graph import Unit
from strucprune_core.run.context import Job
from strucprune_core.run.steps.allocate import allocate
from strucprune_core.run.steps.assemble import assemble
from strucprune_core.run.steps.block_configs import block_configs
from strucprune_core.run.steps.block_probe import block_probe
from strucprune_core.run.steps.capture import capture
from strucprune_core.run.steps.check import check
from strucprune_core.run.steps.curve import curve
from strucprune_core.run.steps.distill import distill
from strucprune_core.run.steps.divergence import divergence
from strucprune_core.run.steps.drop import drop
from strucprune_core.run.steps.embed import embed
from strucprune_core.run.steps.evaluate import evaluate
from strucprune_core.run.steps.expert_probe import expert_probe
from strucprune_core.run.steps.fp8 import fp8
from strucprune_core.run.steps.gguf import gguf
from strucprune_core.run.steps.gguf_q8_0 import gguf_q8_0
from strucprune_core.run.steps.gradient import gradient
from strucprune_core.run.steps.model_check import model_check
from strucprune_core.run.steps.price import price
from strucprune_core.run.steps.probe import probe
from strucprune_core.run.steps.recover import recover
from strucprune_core.run.steps.refit import refit
from strucprune_core.run.steps.repair import repair
from strucprune_core.run.steps.replay import replay
from strucprune_core.run.steps.report import report
from strucprune_core.run.steps.review import review
from strucprune_core.run.steps.route import route
from strucprune_core.run.steps.select import select
from strucprune_core.run.steps.solve import solve
from strucprune_core.run.steps.tasks import tasks
from strucprune_core.run.steps.tokens import tokens
from strucprune_core.run.steps.trial import trial
from strucprune_core.run.steps.verify import verify
from strucprune_core.run.steps.weights import weights
from strucprune_core.run.workspace import Draft

Step = Callable[[Job, Unit, Draft], None]
STEPS: dict[str, Step] = {
    "model_check": model_check,
    "tokens": tokens,
    "weights": weights,
    "embed": embed,
    "capture": capture,
    "route": route,
    "select": select,
    "repair": repair,
    "divergence": divergence,
    "curve": curve,
    "probe": probe,
    "gradient": gradient,
    "price": price,
    "trial": trial,
    "review": review,
    "block_probe": block_probe,
    "drop": drop,
    "expert_probe": expert_probe,
    "allocate": allocate,
    "solve": solve,
    "replay": replay,
    "recover": recover,
    "refit": refit,
    "distill": distill,
    "assemble": assemble,
    "gguf": gguf,
    "gguf_q8_0": gguf_q8_0,
    "fp8": fp8,
    "block_configs": block_configs,
    "check": check,
    "evaluate": evaluate,
    "tasks": tasks,
    "verify": verify,
    "report": report,
}
