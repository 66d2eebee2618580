"""``python -m langchain_ensemble.lm_eval``: the harness's command line, with our model known."""

from lm_eval.__main__ import cli_evaluate

import langchain_ensemble.lm_eval.model  # noqa: F401  (registers the model)

if __name__ == "__main__":
    cli_evaluate()
