"""Tiny random image-text-to-text checkpoints that tests make (no weights of a real one are in any package)."""

from pathlib import Path

from models.language.interpretation import json_schema
from ray_jobs.interpretation.prompting import interpretation_prompt

CHAT = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SIDE, PATCH = 32, 8


def _tokenizer(extra):
    """A byte-level BPE trained on the prompt itself, so that prompts are short."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    prompt = interpretation_prompt("item_caption")
    texts = [m.content for attempt in (0, 1) for m in prompt.json_messages(attempt)] + [
        str(json_schema(prompt.vocabulary))
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=800,
            special_tokens=["<|start|>", "<|end|>", *extra],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|start|>",
        eos_token="<|end|>",
        pad_token="<|end|>",
        additional_special_tokens=list(extra),
    )


def _text_config(fast, context):
    return {
        "vocab_size": len(fast),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
        "initializer_range": 0.3,
        "bos_token_id": fast.bos_token_id,
        "eos_token_id": fast.eos_token_id,
        "pad_token_id": fast.pad_token_id,
    }


def _save(folder, model, processor, fast):
    model.generation_config.eos_token_id = fast.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def tiny_llava(folder: Path, context: int = 8192, seed: int = 0) -> Path:
    """Saves a random LLaVA (CLIP vision, Llama text) and returns its folder."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    fast = _tokenizer(["<image>"])
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=32,
        initializer_range=0.3,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=LlamaConfig(**_text_config(fast, context)),
            image_token_id=fast.convert_tokens_to_ids("<image>"),
        )
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        tokenizer=fast,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )
    return _save(folder, model, processor, fast)


def tiny_idefics3(folder: Path, context: int = 8192, seed: int = 0) -> Path:
    """Saves a random Idefics3 (the family of SmolVLM) and returns its folder."""
    import torch
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    fast = _tokenizer(["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"])
    torch.manual_seed(seed)
    model = Idefics3ForConditionalGeneration(
        Idefics3Config(
            image_token_id=fast.convert_tokens_to_ids("<image>"),
            scale_factor=2,
            vision_config={
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": SIDE,
                "patch_size": PATCH,
                "initializer_range": 0.3,
            },
            text_config=_text_config(fast, context) | {"model_type": "llama"},
        )
    )
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil(
            size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=False
        ),
        tokenizer=fast,
        image_seq_len=(SIDE // PATCH) ** 2 // 4,
        chat_template=CHAT,
    )
    return _save(folder, model, processor, fast)
