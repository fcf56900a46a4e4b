"""Small random guards of the true architectures."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, ByteLevelBPETokenizer
from tokenizers.processors import RobertaProcessing
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from evaluation.guards.dialogue import Dialogue
from tests.conftest import _sample_texts

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# as Llama-Guard-3-8B's: a task around the dialogue, texts stripped, the answer opened in any case
GUARD = (
    "Task: check the last message.\n{% for m in messages %}{{ m.role }}: {{ m.content.strip() }}\n"
    "{% endfor %}Answer:"
)
PARTS = GUARD.replace("m.content.strip()", "m.content[0].text")  # as Llama-Guard-3-1B's


def dialogue(prompt="How so?", response="Well, like this.", id_="r0") -> Dialogue:
    return Dialogue(id_, prompt, response, np.arange(1, len(response) + 1))


DIALOGUES = [dialogue(response="Some words. " * n + "The end.", id_=f"r{n}") for n in range(7)]


def bpe(*special: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with special tokens, ids from 0, and a chat template."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        _sample_texts(), vocab_size=600, special_tokens=list(special), show_progress=False
    )
    trained.add_special_tokens([AddedToken(one, special=True) for one in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, pad_token=special[-1], chat_template=template
    )


LABELS = {"id2label": {0: "fine", 1: "toxic"}, "label2id": {"fine": 0, "toxic": 1}}
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "initializer_range": 0.5,  # scores differ visibly
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory, tokenizers):
    """A random BERT classifier, as HateBERT fine-tuned would be."""
    folder = tmp_path_factory.mktemp("guards") / "bert"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizers("wordpiece")), max_position_embeddings=64, **SMALL, **LABELS
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizers("wordpiece").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    """A random RoBERTa classifier, as ToxDectRoBERTa is: class names that nobody gave."""
    folder = tmp_path_factory.mktemp("guards") / "roberta"
    tokenizer = bpe("<s>", "<pad>", "</s>", "<unk>")
    tokenizer.pad_token = "<pad>"
    tokenizer.backend_tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=42, type_vocab_size=1,
        pad_token_id=1, bos_token_id=0, eos_token_id=2, **SMALL,
    )  # fmt: skip
    RobertaForSequenceClassification(config).save_pretrained(folder)
    return folder


def make_llm(folder, architecture="llama", template=GUARD, tokenizer=None, places=2048):
    """Writes a random generative guard."""
    tokenizer = tokenizer or bpe("<|im_start|>", "<|im_end|>", template=template)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    classes = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
    config_class, model_class = classes[architecture]
    extra = {"head_dim": 8} if architecture == "qwen3" else {}
    config = config_class(
        vocab_size=len(tokenizer), num_key_value_heads=1, max_position_embeddings=places,
        **SMALL, **extra,
    )  # fmt: skip
    model_class(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A random Llama that answers as Llama Guard does."""
    return make_llm(tmp_path_factory.mktemp("guards") / "llama")


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    """A random Qwen3 that answers as Qwen3Guard-Gen does."""
    return make_llm(tmp_path_factory.mktemp("guards") / "qwen3", "qwen3", CHATML)


REMOTE = '''
"""Stands for the code that comes with Qwen3Guard-Stream."""
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


class FakeConfig(PretrainedConfig):
    model_type = "fake-stream-guard"

    def __init__(self, max_position_embeddings=4096, **kwargs):
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**kwargs)


class FakeGuard(PreTrainedModel):
    config_class = FakeConfig

    def __init__(self, config):
        super().__init__(config)
        self.head = nn.Linear(2, 2)
        self.post_init()

    def stream_moderate_from_ids(self, token_ids, role, stream_state=None):
        seen = (stream_state or 0) + token_ids.numel()
        return {"risk_level": ["Unsafe" if int(token_ids.flatten()[-1]) % 7 == 0 else "Safe"]}, seen

    def close_stream(self, stream_state):
        pass
'''


@pytest.fixture()
def stream_folder(tmp_path, monkeypatch):
    """A checkpoint that brings its own code."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "stream"
    bpe("<|im_start|>", "<|im_end|>", template=CHATML).save_pretrained(folder)
    (folder / "modeling_fake.py").write_text(REMOTE)
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "fake-stream-guard",
                "auto_map": {
                    "AutoConfig": "modeling_fake.FakeConfig",
                    "AutoModel": "modeling_fake.FakeGuard",
                },
            }
        )
    )
    weights = {"head.weight": torch.zeros(2, 2), "head.bias": torch.zeros(2)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
