"""A real checkpoint that says one sentence: a Llama whose weights are written by hand.

Attention and feed-forward give nothing, the embedding is the identity, and the head maps each word to the one that
follows: the model is a Markov chain over words, whatever the prompt says.
"""

import itertools
from pathlib import Path

ASSISTANT, END, UNKNOWN = "assistant:", "[END]", "[UNK]"
GENRES = "crime comedy romance war space music"
USABLE = f"Likes {GENRES} stories."
UNUSABLE = "I cannot describe people."


def write_parrot(folder: Path, sentence: str) -> Path:
    """Writes a checkpoint folder whose greedy answer to any prompt is ``sentence`` (its words differ)."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = [ASSISTANT, *sentence.split(), END]
    vocabulary = {w: i for i, w in enumerate(dict.fromkeys([UNKNOWN, *words, *GENRES.split(), "likes", "topic:"]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    size = len(vocabulary) + len(vocabulary) % 2
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=size,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            intermediate_size=4,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
            eos_token_id=vocabulary[END],
            bos_token_id=None,
            pad_token_id=vocabulary[END],
        )
    )
    with torch.no_grad():
        for parameter in (
            model.model.layers[0].self_attn.o_proj.weight,
            model.model.layers[0].mlp.down_proj.weight,
            model.model.embed_tokens.weight,
            model.lm_head.weight,
        ):
            parameter.zero_()
        model.model.embed_tokens.weight.fill_diagonal_(1.0)
        for word, following in itertools.pairwise(words):
            model.lm_head.weight[vocabulary[following], vocabulary[word]] = 10.0
    model.generation_config = GenerationConfig(eos_token_id=vocabulary[END], pad_token_id=vocabulary[END])
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, unk_token=UNKNOWN
    ).save_pretrained(folder)
    return folder
