"""An ensemble in EleutherAI's evaluation harness; needs ``langchain-ensemble[eval]``.

``python -m langchain_ensemble.lm_eval run --model langchain-ensemble --model_args ...`` is the
harness's own command line, which by itself cannot find models of other packages.
"""

from langchain_ensemble.lm_eval.model import EnsembleLM

__all__ = ["EnsembleLM"]
