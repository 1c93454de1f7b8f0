"""The harness's own command, with `--model strucprune`: see `harness_model`.

python -m strucprune_core.evaluation.tasks run --model strucprune --model_args pretrained=DIR ...
"""

from __future__ import annotations

from strucprune_core.evaluation.tasks.installed import check_installed

if __name__ == "__main__":
    check_installed()
    from lm_eval.__main__ import cli_evaluate

    from strucprune_core.evaluation.tasks import harness_model  # noqa: F401 - it registers itself

    cli_evaluate()
