"""BERT base and large (Devlin et al., 2018): the encoder of `transformers`, with random weights."""

from __future__ import annotations

import torch
from torch import nn

from models.conditioning import initialise


class Encoder(nn.Module):
    """`transformers.BertModel` with plain tensors in and out.

    Inputs (int64, `[N, sequence]`): `input_ids`, `attention_mask`, `token_type_ids`; outputs:
    `last_hidden_state [N, sequence, hidden]` and `pooler_output [N, hidden]`.
    """

    def __init__(self, hidden: int, layers: int, heads: int, vocabulary: int, attention: str) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel  # noqa: PLC0415 - slow to import, needed by few

        config = BertConfig(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * hidden,
            vocab_size=vocabulary,
            attn_implementation=attention,
        )
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            self.bert = BertModel(config)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        result = self.bert(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            return_dict=True,
        )
        return result.last_hidden_state, result.pooler_output


def bert(
    hidden: int = 768, layers: int = 12, heads: int = 12, vocabulary: int = 30522, *, attention: str = "eager"
) -> nn.Module:
    """BERT; the defaults are BERT-base, `hidden=1024, layers=24, heads=16` is BERT-large.

    `attention="sdpa"` computes the same, but PyTorch exports it with a guard against rows masked altogether
    (IsNaN and Where after each Softmax) and the mask rebuilt in every layer.
    """
    model = Encoder(hidden, layers, heads, vocabulary, attention)
    return initialise(model, gain=1.0).eval()


def bert_inputs(batch: int, sequence: int = 128, vocabulary: int = 30522) -> dict[str, torch.Tensor]:
    """Random tokens of two segments; every row of the batch is padded at its end, each to another length."""
    generator = torch.Generator().manual_seed(0)
    positions = torch.arange(sequence).expand(batch, sequence)
    lengths = sequence - (torch.arange(batch).unsqueeze(1) * 5 + 3) % (sequence // 2)
    return {
        "input_ids": torch.randint(0, vocabulary, (batch, sequence), generator=generator),
        "attention_mask": (positions < lengths).to(torch.int64),
        "token_type_ids": (positions >= lengths // 2).to(torch.int64),
    }
