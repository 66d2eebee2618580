"""``python -m langchain_ensemble.lm_eval``: the harness's command line, with our model known."""

import sys

from lm_eval.__main__ import cli_evaluate

import langchain_ensemble.lm_eval.model  # noqa: F401  (registers the model)
from langchain_ensemble.errors import ConfigError, EnsembleError

if __name__ == "__main__":
    try:
        cli_evaluate()
    except EnsembleError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2 if isinstance(error, ConfigError) else 1)
