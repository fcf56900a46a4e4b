"""What each layer of a causal language model holds at chosen places, taken out of passes it makes.

Nothing is computed for it: hooks copy rows of the layers' output while somebody else reads or
generates. The rows are those of transformers' `hidden_states[1:]`: the last one is after the final
norm.
"""

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from model.loading import config_hash
from utils.files import InputError

SAMPLED = 64  # weights of each parameter that tell two models apart


def model_fingerprint(model: PreTrainedModel) -> str:
    """Returns a SHA-256 that tells a backbone from others and from itself before a training.

    It reads the configuration and some weights of each parameter of the backbone, in bfloat16: a
    model held in either precision has the same.
    """
    backbone = model.base_model
    digest = hashlib.sha256(config_hash(model.config.to_dict()).encode())
    for name, weights in sorted(backbone.named_parameters()):
        step = max(weights.numel() // SAMPLED, 1)
        some = weights.detach().reshape(-1)[::step].to(torch.bfloat16).float().cpu()
        digest.update(f"{name} {tuple(weights.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()


class LayerStates(AbstractContextManager["LayerStates"]):
    """Keeps the layers' states at places of the next forward passes of a model.

    Until `at` is called, that is the last place of every row. A later pass replaces what an earlier
    one left: of a generation only the first token may be asked for. Used as a context manager, it
    leaves the model as it was.

    Args:
        model: A causal language model whose backbone has `layers` and `norm`: Qwen2, Llama,
            Mistral, OLMo 2, …

    Raises:
        InputError: It has none.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        layers = getattr(model.base_model, "layers", None)
        norm = getattr(model.base_model, "norm", None)
        if not isinstance(layers, nn.ModuleList) or not isinstance(norm, nn.Module):
            name = type(model).__name__
            raise InputError(f"{name}: its backbone has no 'layers' and 'norm' to read states of")
        modules = [*layers[:-1], norm]
        self.layers, self.hidden = len(modules), model.config.hidden_size
        self._model = model
        self._places: tuple[Tensor, Tensor] | None = None
        self._kept: list[Tensor | None] = [None] * self.layers
        self.resting = False
        """Whether passes are left alone."""
        self._hooks = [
            module.register_forward_hook(lambda *found, layer=layer: self._keep(layer, found[-1]))
            for layer, module in enumerate(modules)
        ]

    def __exit__(self, *_) -> None:
        for hook in self._hooks:
            hook.remove()

    def at(self, rows: Sequence[int], places: Sequence[int]) -> None:
        """Names the places of the next pass: each in a row of the batch."""
        both = torch.tensor([[*rows], [*places]], device=self._model.device)
        self._places = both[0], both[1]

    def _keep(self, layer: int, output: Tensor | tuple[Tensor, ...]) -> None:
        if self.resting:
            return
        hidden = output if isinstance(output, Tensor) else output[0]  # (batch, seq_len, hidden)
        if self._places is None:
            self._kept[layer] = hidden[:, -1].detach().clone()
        else:
            rows, places = (one.to(hidden.device) for one in self._places)  # of a layer elsewhere
            self._kept[layer] = hidden[rows, places].detach()

    def take(self) -> np.ndarray:
        """Returns the states of the last pass, float32 (places, layers, hidden), and forgets them.

        Raises:
            InputError: No pass was made.
        """
        if any(one is None for one in self._kept):
            raise InputError("the model has made no pass whose states could be read")
        taken = torch.stack(self._kept, dim=1).float().cpu().numpy()
        self._kept = [None] * self.layers
        return taken
