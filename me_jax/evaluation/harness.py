"""The model as lm-evaluation-harness sees it, so that every task of it runs.

`python -m me_jax.evaluation --model me_jax --model_args pretrained=PATH ...` is
its own command line with this model known. (Version 0.4.13 has no way to find
models of other packages by itself.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval import utils as eval_utils
from lm_eval.api import model as eval_model
from lm_eval.api import registry
from lm_eval.models import utils as models_utils

from me_jax import errors
from me_jax.checkpoints import load as load_lib
from me_jax.evaluation import likelihood
from me_jax.generation import sampler
from me_jax.generation import serve
from me_jax.generation import stopping

NAME = 'me_jax'
_ROWS = 64

# What `generation_kwargs` of a task may hold besides what lm-eval itself reads.
_SAMPLING = ('top_k', 'top_p', 'min_p', 'repetition_penalty')


@registry.register_model(NAME)
class MeJaxLM(eval_model.TemplateLM):
  """A model of me_jax for lm-eval.

  Attributes:
    tokenizer: of the model.
  """

  def __init__(
    self,
    pretrained: str = 'smollm2',
    dtype: str = 'float32',
    batch_size: int | str = _ROWS,
    max_gen_toks: int = 256,
    device: Any = None,
    max_batch_size: Any = None,
    **others: Any,
  ):
    """Loads a model.

    Args:
      pretrained: as `me_jax.load` takes it.
      dtype: of parameters and computation.
      batch_size: texts in the making at a time; `auto` is 64.
      max_gen_toks: new tokens where a task does not say.
      device: ignored; JAX has one kind of device at a time.
      max_batch_size: ignored.
      **others: what is none of these is refused.

    Raises:
      MeJaxError: as `me_jax.load` does, or for an argument.
    """
    del device, max_batch_size
    for name in others:
      known = ('pretrained', 'dtype', 'batch_size', 'max_gen_toks')
      raise errors.MeJaxError(
        f'{NAME} takes no argument {name!r}{errors.nearest(name, known)}:'
        f' {", ".join(known)}.'
      )
    rows = _rows(batch_size)
    lm = load_lib.load(pretrained, dtype=dtype)
    self._set_up(lm, str(pretrained), rows, max_gen_toks, None)

  @classmethod
  def of(
    cls,
    lm: load_lib.LoadedModel,
    *,
    name: str,
    rows: int = _ROWS,
    max_gen_toks: int = 256,
    unrolled: bool | None = None,
    seed: int = 0,
    progress: Callable[[int, int], Any] | None = None,
  ) -> MeJaxLM:
    """Returns the adapter of a model that is loaded.

    Args:
      lm: the model, scanned.
      name: what results call it.
      rows: texts in the making at a time.
      max_gen_toks: new tokens where a task does not say.
      unrolled: whether layers are in generation, see `serve.decoding_form`.
      seed: of what is sampled, where a task asks for that.
      progress: called with (requests done, requests in all).
    """
    self = cls.__new__(cls)
    self._set_up(lm, name, rows, max_gen_toks, progress, unrolled, seed)
    return self

  def _set_up(
    self,
    lm: load_lib.LoadedModel,
    name: str,
    rows: int,
    max_gen_toks: int,
    progress: Callable[[int, int], Any] | None,
    unrolled: bool | None = None,
    seed: int = 0,
  ) -> None:
    super().__init__()
    if lm.tokenizer is None:
      raise errors.MeJaxError(f'{name} has no tokenizer.')
    self.tokenizer = lm.tokenizer
    self._lm = lm
    self._name = name
    self._rows = rows
    self._max_gen_toks = int(max_gen_toks)
    self._progress = progress
    self._unrolled = unrolled
    self._seed = seed
    self._decoding: Any = None

  @property
  def eot_token_id(self) -> int | None:
    """What ends a text; None where the tokenizer has no such token."""
    return self.tokenizer.eos_token_id

  @property
  def prefix_token_id(self) -> int:
    """What an empty context is replaced by."""
    for token in (self.tokenizer.bos_token_id, self.eot_token_id):
      if token is not None:
        return token
    raise errors.MeJaxError(
      f'{self._name}: a text without a context needs a BOS or EOS token, and the'
      ' tokenizer has neither.'
    )

  @property
  def max_length(self) -> int:
    """Longest text in tokens."""
    return self._lm.config.context_length

  @property
  def max_gen_toks(self) -> int:
    """New tokens where a task does not say."""
    return self._max_gen_toks

  @property
  def tokenizer_name(self) -> str:
    """Tells tokenizers apart in lm-eval's cache of requests."""
    return self._name.replace('/', '__')

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
  ) -> list[int]:
    """Returns token ids, with what the tokenizer adds unless BOS is there."""
    del kwargs
    if add_special_tokens is None:
      bos = self.tokenizer.bos_token
      add_special_tokens = not (bos and string.startswith(bos))
    return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

  def apply_chat_template(
    self,
    chat_history: list[dict[str, str]],
    add_generation_prompt: bool = True,
  ) -> str:
    """Writes a chat out."""
    return self.tokenizer.apply_chat_template(
      chat_history,
      tokenize=False,
      add_generation_prompt=add_generation_prompt,
      continue_final_message=not add_generation_prompt,
    )

  def loglikelihood(
    self, requests: Sequence[Any], disable_tqdm: bool = True
  ) -> list[tuple[float, bool]]:
    """Scores continuations of contexts."""
    # Another bar would tear ours.
    del disable_tqdm
    return super().loglikelihood(requests, disable_tqdm=True)

  def loglikelihood_rolling(
    self, requests: Sequence[Any], disable_tqdm: bool = False
  ) -> list[float]:
    """Returns the log-probability of whole texts, in windows."""
    result = []
    for request in requests:
      (text,) = request.args
      windows = [
        eval_utils.make_disjoint_window(window)
        for window in eval_utils.get_rolling_token_windows(
          token_list=self.tok_encode(text),
          prefix_token=self.prefix_token_id,
          max_seq_len=self.max_length,
          context_len=1,
        )
      ]
      scored = self._loglikelihood_tokens(
        [((None, None), *window) for window in windows]
      )
      total = sum(found for found, _ in scored)
      self.cache_hook.add_partial('loglikelihood_rolling', (text,), total)
      result.append(total)
    return result

  def _loglikelihood_tokens(
    self,
    requests: Sequence[tuple[tuple[str | None, ...], list[int], list[int]]],
    disable_tqdm: bool = False,
    **kwargs: Any,
  ) -> list[tuple[float, bool]]:
    """Scores continuations."""
    del disable_tqdm, kwargs
    done = 0

    def on_result(i: int, found: likelihood.Likelihood) -> None:
      nonlocal done
      done += 1
      strings = requests[i][0]
      if strings != (None, None):
        self.cache_hook.add_partial('loglikelihood', strings, tuple(found))
      self._tell(done, len(requests))

    pairs = [likelihood.Pair(list(a), list(b)) for _, a, b in requests]
    return [
      tuple(found)
      for found in likelihood.score(
        self._lm.model, self._lm.params, pairs, on_result=on_result
      )
    ]

  def generate_until(
    self, requests: Sequence[Any], disable_tqdm: bool = False
  ) -> list[str]:
    """Goes on with contexts until a stop string, or as long as they may."""
    del disable_tqdm
    result: dict[int, str] = {}
    groups: dict[str, list[int]] = {}
    for i, request in enumerate(requests):
      groups.setdefault(repr(request.args[1]), []).append(i)
    done = 0
    for indices in groups.values():
      kwargs = models_utils.normalize_gen_kwargs(
        requests[indices[0]].args[1], self._max_gen_toks
      )
      for at, text in self._generate(
        [requests[i].args[0] for i in indices], kwargs
      ):
        i = indices[at]
        result[i] = text
        self.cache_hook.add_partial('generate_until', requests[i].args, text)
        done += 1
        self._tell(done, len(requests))
    return [result[i] for i in range(len(requests))]

  def _generate(self, contexts: Sequence[str], kwargs: Any) -> Any:
    """Yields (index, text) as texts end."""
    most = kwargs['max_gen_toks']
    until = [string for string in kwargs.get('until') or [] if string]
    if most >= self.max_length:
      raise errors.MeJaxError(
        f'{most} new tokens are wanted, and the context is {self.max_length}.'
      )
    sampling = sampler.Sampling(
      temperature=kwargs.get('temperature') or 0.0,
      **{name: kwargs[name] for name in _SAMPLING if kwargs.get(name)},
    )
    requests = [
      serve.Request(
        tokens=self.tok_encode(context)[-(self.max_length - most) :],
        most=most,
        seed=self._seed + number,
      )
      for number, context in enumerate(contexts)
    ]
    serve.check(self._lm.config, requests)
    stops = {*self._lm.config.eos_token_ids}
    if self.eot_token_id is not None:
      stops.add(self.eot_token_id)

    model, params = self._model_of_steps()
    for one in serve.serve(
      model,
      params,
      requests,
      sampling=sampling,
      stop_tokens=sorted(stops),
      rows=self._rows,
      # A stop string may be a special token: none is left out here.
      ended=stopping.at_strings(until, self.tokenizer.decode)
      if until
      else None,
    ):
      text = self.tokenizer.decode(one.tokens, skip_special_tokens=True)
      yield one.index, stopping.cut(text, until)

  def _model_of_steps(self) -> tuple[Any, Any]:
    """Returns the model and parameters that generate."""
    if self._decoding is None:
      self._decoding = serve.decoding_form(
        self._lm.model, self._lm.params, unrolled=self._unrolled
      )
    return self._decoding

  def _tell(self, done: int, total: int) -> None:
    if self._progress is not None:
      self._progress(done, total)


def _rows(batch_size: int | str) -> int:
  """Reads lm-eval's `--batch_size`."""
  if batch_size == 'auto':
    return _ROWS
  if not str(batch_size).isdecimal() or not int(batch_size):
    raise errors.MeJaxError(
      f"batch_size is {batch_size!r}, must be a number above 0 or 'auto'."
    )
  return int(batch_size)
