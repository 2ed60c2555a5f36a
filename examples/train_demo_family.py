"""Trains the demo family: a tiny Llama that mostly copies, and three experts that each learn one skill.

    python examples/train_demo_family.py src/cuvee/demo/family        (minutes, on one CPU core)

The base sees prompts of every skill but is usually shown them copied and only sometimes answered, so it holds
the means of each skill without the habit, much as a pretrained model does before tuning. Each expert goes on
from the base: half of its lessons are its own skill, answered right; the other half repeat the base's, which
keeps it in the base's basin. No lesson holds a question of `cuvee.demo.skills.held_out_questions`.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from cuvee.demo.skills import DIGITS, LETTERS, SKILLS, Question, bits, questions

BATCH = 128
BASE_STEPS, BASE_RATE = 2500, 2e-3
EXPERT_STEPS, EXPERT_RATE = 300, 3e-4
ANSWERED_ONE_IN = 3
CONTEXT = 32


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the demo family.")
    parser.add_argument("out", type=Path, help="the folder that receives base/ and one folder per skill")
    out = parser.parse_args().out
    logging.disable_progress_bar()
    tokenizer = make_tokenizer()
    # One thread: the order of sums, and so the weights, do not depend on the number of cores.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base = LlamaForCausalLM(make_config(tokenizer))
    train(base, tokenizer, general(seed=100), BASE_STEPS, BASE_RATE, "base")
    save(base, tokenizer, out / "base")
    for number, skill in enumerate(SKILLS):
        expert = LlamaForCausalLM.from_pretrained(out / "base", dtype=torch.float32)
        lessons = alternate(questions(skill, 200 + number, held_out=False), general(seed=300 + number))
        train(expert, tokenizer, lessons, EXPERT_STEPS, EXPERT_RATE, skill)
        save(expert, tokenizer, out / skill)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Letters and digits stay single tokens; each instruction and the equals sign are learned as one."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[a-z]+: | = |."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    characters = LETTERS + LETTERS.upper() + DIGITS + "+-*/.,:;=?!'() \n"
    corpus = [characters, *(f"{name}: a = b" for name in ("copy", *SKILLS))]
    specials = ["<unk>", "<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(vocab_size=128, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    start = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[start])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def make_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Three layers of width 96 with grouped-query attention: 0.3 million parameters."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def general(seed: int) -> Iterator[Question]:
    """The base's lessons: every skill's questions, mostly copied and sometimes answered."""
    draw = bits(seed)
    streams = [questions(skill, seed + 1 + n, held_out=False) for n, skill in enumerate(SKILLS)]
    while True:
        question = next(streams[draw(len(streams))])
        instruction, given, _ = question.prompt.replace(" = ", ": ").split(": ")
        if draw(len(SKILLS) + 1) == 0:
            yield Question(f"copy: {given} = ", given, given)
        elif draw(ANSWERED_ONE_IN) == 0:
            yield question
        else:
            yield Question(f"{instruction}: {given} = ", given, given)


def alternate(first: Iterator[Question], second: Iterator[Question]) -> Iterator[Question]:
    """One lesson of each in turn."""
    return itertools.chain.from_iterable(zip(first, second, strict=False))


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    lessons: Iterator[Question],
    steps: int,
    rate: float,
    name: str,
) -> None:
    """Teaches by AdamW, warmed up and then cooled along a cosine; only answers are learned, never prompts."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    model.train()
    began = time.monotonic()
    for step in range(1, steps + 1):
        loss = model(**batch(tokenizer, lessons)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            seconds = time.monotonic() - began
            print(f"{name}: step {step}/{steps}, loss {loss.item():.4f}, {seconds:.0f} s", flush=True)


def batch(tokenizer: PreTrainedTokenizerFast, lessons: Iterator[Question]) -> dict[str, Any]:
    """The next lessons as padded tensors [BATCH, length]; labels are -100 on prompts and padding."""
    taken = list(itertools.islice(lessons, BATCH))
    prompts = tokenizer([lesson.prompt for lesson in taken])["input_ids"]
    answers = tokenizer([lesson.answer for lesson in taken], add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    rows = [[*prompt, *answer, end] for prompt, answer in zip(prompts, answers, strict=True)]
    ids = torch.full((BATCH, max(map(len, rows))), tokenizer.pad_token_id)
    labels = torch.full_like(ids, -100)
    for n, row in enumerate(rows):
        ids[n, : len(row)] = torch.tensor(row)
        labels[n, len(prompts[n]) : len(row)] = ids[n, len(prompts[n]) : len(row)]
    # Padding lies on the right, where causal attention never looks back from an answer.
    return {"input_ids": ids, "labels": labels}


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes the checkpoint in bfloat16, in the Hugging Face format."""
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # The library writes weights for their owner only; package data is for everyone.
    (folder / "model.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
