"""The published mask on Hugging Face's models, in torch: the reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
from typing import Any

import numpy as np


def hf_model(layers: int = 5) -> Any:
  """Returns a random Qwen3 whose pads attend as ours do (uniformly)."""
  from tests.support import tiny

  model = tiny.hf_model('qwen3', num_hidden_layers=layers)
  model.set_attn_implementation('eager')
  return model


@contextlib.contextmanager
def masked(
  model: Any, layers: Sequence[int], count: int, strength: float
) -> Iterator[list[tuple[int, np.ndarray]]]:
  """Masks index 0 of what attention receives while the context lasts.

  Yields:
    A list that grows by (layer, channels in ascending order) with every call.
  """
  import torch

  seen: list[tuple[int, np.ndarray]] = []

  def hook_of(layer: int) -> Any:
    def hook(_module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
      h_BTD = kwargs['hidden_states'].clone()
      mean_D = h_BTD[:, 0, :].abs().mean(dim=0)
      channels = torch.topk(mean_D, count).indices
      for channel in channels:
        h_BTD[:, 0, channel] *= 1.0 - strength
      seen.append((layer, np.sort(channels.numpy())))
      return args, {**kwargs, 'hidden_states': h_BTD}

    return hook

  with contextlib.ExitStack() as stack, torch.no_grad():
    for layer in layers:
      handle = model.model.layers[layer].self_attn.register_forward_pre_hook(
        hook_of(layer), with_kwargs=True
      )
      stack.callback(handle.remove)
    yield seen


def decode(
  model: Any, tokens_BT: np.ndarray, mask_BT: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
  """Decodes greedily through Hugging Face's cache.

  Returns:
    The prompt's logits `[B, T, V]` and those of the steps `[B, steps, V]`.
  """
  import torch

  tokens, mask = torch.tensor(tokens_BT), torch.tensor(mask_BT).long()
  cache, found = None, []
  with torch.no_grad():
    for _ in range(1 + steps):
      # Of the new tokens: all of the prompt, then one.
      positions = (mask.cumsum(dim=1) - 1)[:, -tokens.shape[1] :]
      out = model(
        tokens,
        attention_mask=mask,
        position_ids=positions.clamp(min=0),
        past_key_values=cache,
        use_cache=True,
      )
      cache = out.past_key_values
      found.append(out.logits.numpy())
      tokens = out.logits[:, -1:].argmax(dim=-1)
      mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
  return found[0], np.concatenate(found[1:], axis=1)
