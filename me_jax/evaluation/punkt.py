"""Where are the tables that IFEval's checker splits sentences with?"""

from __future__ import annotations

import importlib.util
import os

from me_jax import errors

_NAME = 'tokenizers/punkt_tab'


def provide() -> None:
  """Makes NLTK's `punkt_tab` findable, without a network where it can be.

  Looked for where NLTK does, then in an installed `llama-index-core`, whose
  package carries the tables (it is not imported), then NLTK's own download.

  Raises:
    MeJaxError: it is nowhere.
  """
  import nltk

  spec = importlib.util.find_spec('llama_index')
  for place in spec.submodule_search_locations or () if spec else ():
    nltk.data.path.append(os.path.join(place, 'core', '_static', 'nltk_cache'))
  try:
    nltk.data.find(_NAME)
    return
  except LookupError:
    pass
  if not nltk.download('punkt_tab', quiet=True):
    raise errors.MeJaxError(
      "ifeval's checker needs NLTK's punkt_tab, and it cannot be downloaded:"
      ' pip install --no-deps llama-index-core brings it, or set NLTK_DATA.'
    )
