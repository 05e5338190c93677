"""The model against the stock classes of transformers, whose weights it takes by name, and its two attentions."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from train.transformer.network import (
    ModelConfig,
    Transformer,
    attend_fused,
    attend_with_basic_operators,
    initialize,
    make_embedding,
    make_prefix_mask,
)

WIDTH = 11
FAMILIES = {
    "Llama": ModelConfig(50, 32, 2, 4, 4, 8, 48, rope_theta=500000.0, tied=False),
    "Qwen2": ModelConfig(50, 32, 3, 4, 2, 8, 48, qkv_bias=True, tied=True),
    "Qwen3": ModelConfig(50, 32, 2, 4, 1, 16, 48, rope_theta=1000000.0, norm_eps=1e-5, qk_norm=True, tied=True),
}


def prefixes() -> dict[str, Tensor]:
    """What each of WIDTH queries sees: the patterns of decoding, and any. int64 [WIDTH]"""
    place = torch.arange(WIDTH)
    random = torch.randint(1, WIDTH + 1, (WIDTH,), generator=torch.Generator().manual_seed(1))
    blocks = torch.clamp((place // 4 + 1) * 4, max=WIDTH)
    return {"causal": place + 1, "bidirectional": torch.full((WIDTH,), WIDTH), "block-causal": blocks, "any": random}


def stock(family: str, config: ModelConfig, attention: str) -> Any:
    """A random model of transformers in fp32, biases and norms not at their neutral start."""
    import transformers

    torch.manual_seed(7)
    theirs = getattr(transformers, f"{family}Config")(
        vocab_size=config.vocab, hidden_size=config.width, intermediate_size=config.ffn, head_dim=config.head_dim,
        num_hidden_layers=config.layers, num_attention_heads=config.heads, num_key_value_heads=config.kv_heads,
        rms_norm_eps=config.norm_eps, tie_word_embeddings=config.tied, attn_implementation=attention,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
    )  # fmt: skip
    made = getattr(transformers, f"{family}ForCausalLM")(theirs).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return made


def ours(config: ModelConfig, theirs: Any) -> Transformer:
    state = {name.removeprefix("model."): tensor for name, tensor in theirs.state_dict().items()}
    if config.tied:
        del state["lm_head.weight"]
    model = Transformer(config)
    model.load_state_dict(state, strict=True)
    return model.eval()


def test_an_embedding_is_torchs_own_and_samples_nothing_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    for make in (torch.nn.Embedding, make_embedding):
        torch.manual_seed(3)
        states.append((make(9, 5).weight, torch.rand(3)))
    assert all(torch.equal(*pair) for pair in zip(*states, strict=True)) and states[1][0].requires_grad
    monkeypatch.setattr(torch.nn.init, "normal_", None)  # which on the meta device imports torch._dynamo
    with torch.device("meta"):
        assert Transformer(tiny.shape(0)).embed_tokens.weight.is_meta


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", list(FAMILIES))
@torch.no_grad()
def test_the_model_equals_the_stock_class(family: str, attention: str) -> None:
    config = FAMILIES[family]
    theirs = stock(family, config, attention)
    model = ours(config, theirs)
    ids = torch.randint(0, config.vocab, (2, WIDTH), generator=torch.Generator().manual_seed(3))
    for name, prefix in prefixes().items():
        visible = prefix.expand(2, WIDTH)
        mask = torch.full((2, 1, WIDTH, WIDTH), torch.finfo(torch.float32).min)
        for query in range(WIDTH):
            mask[:, :, query, : int(prefix[query])] = 0.0
        expected = theirs(input_ids=ids, attention_mask=mask, use_cache=False).logits
        assert (model.logits(model(ids, visible)) - expected).abs().max() <= 1e-5, name
        shifted = torch.arange(5, WIDTH + 5).expand(2, WIDTH)
        expected = theirs(input_ids=ids, attention_mask=mask, position_ids=shifted, use_cache=False).logits
        assert (model.logits(model(ids, visible, shifted)) - expected).abs().max() <= 1e-5, name


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_fused_attention_equals_attention_written_out(kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 5, 8, generator=generator)
    key, value = (torch.randn(2, kv_heads, 9, 8, generator=generator) for _ in range(2))
    mask = make_prefix_mask(torch.randint(1, 10, (2, 5), generator=generator), 9)
    assert (
        attend_fused(query, key, value, mask) - attend_with_basic_operators(query, key, value, mask)
    ).abs().max() <= 1e-5


def test_attention_is_the_sum_of_its_definition() -> None:
    generator = torch.Generator().manual_seed(4)
    query = torch.randn(1, 4, 3, 8, generator=generator)
    key, value = (torch.randn(1, 2, 6, 8, generator=generator) for _ in range(2))
    visible = torch.tensor([[1, 6, 4]])
    out = attend_with_basic_operators(query, key, value, make_prefix_mask(visible, 6))
    for head in range(4):
        for row, seen in enumerate(visible[0].tolist()):
            keys, values = key[0, head // 2, :seen], value[0, head // 2, :seen]
            expected = torch.softmax(keys @ query[0, head, row] / 8**0.5, dim=0) @ values
            assert (out[0, head, row] - expected).abs().max() <= 1e-5


def test_training_and_inference_agree() -> None:
    model = tiny.model(2)
    ids, visible = torch.arange(8)[None], torch.tensor([[4] * 4 + [8] * 4])
    with torch.no_grad():
        fused = model(ids, visible)
    assert (model(ids, visible) - fused).abs().max() <= 1e-5


def test_what_a_query_does_not_see_does_not_matter() -> None:
    model = tiny.model(5)
    ids, visible = torch.arange(8)[None], torch.tensor([[4] * 4 + [8] * 4])
    with torch.no_grad():
        before, after = model(ids, visible), model(ids + (torch.arange(8) >= 4), visible)
    assert torch.equal(before[:, :4], after[:, :4]) and not torch.allclose(before[:, 4:], after[:, 4:])


def test_a_prefix_mask_lets_through_the_first_visible_positions() -> None:
    mask = make_prefix_mask(torch.tensor([[1, 3]]), 4)
    hidden = float("-inf")
    assert mask.tolist() == [[[[0, hidden, hidden, hidden], [0, 0, 0, hidden]]]]


def test_the_same_seed_gives_the_same_weights_and_another_one_others() -> None:
    states = [initialize(Transformer(tiny.shape(0)), seed).state_dict() for seed in (1, 1, 2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["embed_tokens.weight"], states[2]["embed_tokens.weight"])


def test_dropout_leaves_channels_out_of_whole_sequences_and_never_without_gradients() -> None:
    model = initialize(Transformer(tiny.shape(0)), 0).train()
    ids = torch.randint(0, tiny.VOCAB, (64, 5), generator=torch.Generator().manual_seed(2))
    assert model.sample_dropout(ids) is None
    model.dropout = 0.25
    torch.manual_seed(1)
    left = model.sample_dropout(ids)
    assert left is not None and left.shape == (model.config.layers, 2, 64, 1, model.config.width)
    assert set(left.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs(left.mean().item() - 1) < 0.05  # of some thousand samples
    with torch.no_grad():
        assert model.sample_dropout(ids) is None
    assert model.eval().sample_dropout(ids) is None
