"""The PyTorch side: the same measurements with Hugging Face and forward hooks.

Written to be fair: all threads, no gradients, no head that nobody reads, no
padding that sorting by length avoids, reductions inside the hooks so that no
layer's states are kept, and a median over a sample where me_jax counts all
entries. As a script it is the peer of `me-jax find`:
`python -m benchmarks.torch_peer MODEL OUT.json`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch
import transformers

_SAMPLED_TOKENS, _SAMPLED_CHANNELS = 64, 256
_BATCH = 8


class Hooks:
  """Measures the residual stream of a Llama model while it runs."""

  def __init__(self, model: Any):
    self.clear()
    self.mask = self.sample = self.positions = None
    for layer in model.layers:
      layer.register_forward_pre_hook(self._before)
      layer.self_attn.register_forward_hook(
        lambda _, args, out: self.attn.append(self._take(out[0]))
      )
      layer.mlp.register_forward_hook(self._after_ffn)
    model.norm.register_forward_pre_hook(self._before)

  def clear(self) -> None:
    """Forgets the last batch."""
    self.norm, self.peak, self.sampled, self.state = [], [], [], []
    self.attn, self.ffn_in, self.ffn = [], [], []

  def prepare(self, mask: torch.Tensor, positions: torch.Tensor) -> None:
    """Says which tokens are real, and which are kept whole."""
    self.clear()
    self.mask, self.positions = mask, positions
    rows, columns = torch.nonzero(mask, as_tuple=True)
    picked = torch.linspace(0, len(rows) - 1, _SAMPLED_TOKENS).long()
    self.sample = rows[picked], columns[picked]

  def _take(self, x: torch.Tensor) -> torch.Tensor:
    return x.gather(1, self.positions[..., None].expand(-1, -1, x.shape[-1]))

  def _before(self, module: Any, args: tuple[Any, ...]) -> None:
    x = args[0]
    self.norm.append(torch.linalg.vector_norm(x, dim=-1) * self.mask)
    self.peak.append(torch.linalg.vector_norm(x, torch.inf, dim=-1) * self.mask)
    stride = -(-x.shape[-1] // _SAMPLED_CHANNELS)
    self.sampled.append(x[self.sample][:, ::stride].abs())
    self.state.append(self._take(x))

  def _after_ffn(self, module: Any, args: tuple[Any, ...], out: Any) -> None:
    self.ffn_in.append(self._take(args[0]))
    self.ffn.append(self._take(out))


def find(folder: str, prompts: list[Any]) -> dict[str, Any]:
  """Finds the ME Layer of a folder's model with the rules of me_jax."""
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32
  ).model.eval()
  hooks = Hooks(model)
  ids = sorted(_token_ids(tokenizer, prompts), key=len)
  parts = []
  with torch.inference_mode():
    for start in range(0, len(ids), _BATCH):
      parts.append(_measure(model, hooks, ids[start : start + _BATCH]))
  return _report(model, parts)


def _token_ids(tokenizer: Any, prompts: list[Any]) -> list[list[int]]:
  ids = []
  for prompt in prompts:
    if not isinstance(prompt, str):
      prompt = tokenizer.apply_chat_template(prompt, tokenize=False)
    plain = tokenizer(prompt, add_special_tokens=False).input_ids
    ids.append(plain)
    if tokenizer.bos_token_id not in (None, plain[0]):
      ids.append([tokenizer.bos_token_id, *plain])
  return ids


def _measure(
  model: Any, hooks: Hooks, ids: list[list[int]]
) -> dict[str, np.ndarray]:
  length = max(map(len, ids))
  tokens = torch.zeros((len(ids), length), dtype=torch.long)
  mask = torch.zeros_like(tokens)
  for row, text in enumerate(ids):
    tokens[row, : len(text)] = torch.tensor(text)
    mask[row, : len(text)] = 1
  # The first token, and one in the middle as its control.
  positions = torch.tensor([[0, len(text) // 2] for text in ids])
  hooks.prepare(mask, positions)
  model(tokens, attention_mask=mask, use_cache=False)
  norm, peak = torch.stack(hooks.norm), torch.stack(hooks.peak)
  median = torch.stack(hooks.sampled).flatten(1).median(dim=1).values
  massive = peak > torch.clamp(1000 * median, min=100.0)[:, None, None]
  reach = torch.where(massive, norm, 0.0).amax(0)
  first = (reach >= reach.amax(1, keepdim=True) / 2).long().argmax(1)
  if (first != 0).any():
    hooks.prepare(mask, torch.stack([first, positions[:, 1]], dim=1))
    model(tokens, attention_mask=mask, use_cache=False)
  state = torch.stack(hooks.state)
  norms = state.norm(dim=-1)
  at = norms.argmax(0)
  plateau = state.gather(
    0, at[None, ..., None].expand(1, -1, -1, state.shape[-1])
  )[0]
  size = plateau.norm(dim=-1)
  unit = plateau / size[..., None]
  layers = torch.arange(len(hooks.attn))[:, None, None]
  share = [
    torch.where(layers < at, (torch.stack(x) * unit).sum(-1), 0.0) / size
    for x in (hooks.attn, hooks.ffn)
  ]
  return {
    'attn': share[0].numpy(),
    'ffn': share[1].numpy(),
    'norm': norms.numpy(),
    'massive': (reach > 0).any(1).numpy(),
    'plateau': plateau[:, 0].numpy(),
    'ffn_in': torch.stack(hooks.ffn_in)[:, :, 0].numpy(),
    'profile': state.abs().mean(1).numpy(),
  }


def _report(model: Any, parts: list[dict[str, np.ndarray]]) -> dict[str, Any]:
  cat = lambda name: np.concatenate([p[name] for p in parts], axis=1)  # noqa: E731
  attn, ffn, norm = (
    cat(name)[..., 0].mean(1) for name in ('attn', 'ffn', 'norm')
  )
  share = attn + ffn
  span = next(
    list(range(start, start + width))
    for width in range(1, len(share) + 1)
    for start in [int(np.convolve(share, np.ones(width), 'valid').argmax())]
    if share[start : start + width].sum() >= 0.8
  )
  jump = norm[1:] / norm[:-1]
  layer = max(span, key=lambda i: jump[i])
  plateau = torch.tensor(np.concatenate([p['plateau'] for p in parts]))
  mlp = model.layers[layer].mlp
  with torch.inference_mode():
    h = torch.tensor(cat('ffn_in')[layer])
    act = mlp.act_fn(mlp.gate_proj(h)) * mlp.up_proj(h)
    size = plateau.norm(dim=1, keepdim=True)
    neurons = (act * ((plateau / size) @ mlp.down_proj.weight) / size).mean(0)
  top = neurons.topk(4)
  return {
    'layer': layer,
    'span': span,
    'shares': {'attn': attn.tolist(), 'ffn': ffn.tolist()},
    'norm': norm.tolist(),
    'jump': jump.tolist(),
    'neurons': [top.indices.tolist(), top.values.tolist()],
    'channel': int(plateau.mean(0).abs().argmax()),
    'massive_texts': int(sum(p['massive'].sum() for p in parts)),
  }


def main() -> None:
  """Finds the ME Layer of the folder named first, writes JSON to the second."""
  # The prompts are data of ours; reading them imports nothing heavy.
  from me_jax.analysis import prompts

  folder, path = sys.argv[1:3]
  report = find(folder, prompts.builtin())
  with open(path, 'w', encoding='utf-8') as file:
    json.dump(report, file)
  print({key: report[key] for key in ('layer', 'span', 'neurons', 'channel')})


if __name__ == '__main__':
  main()
