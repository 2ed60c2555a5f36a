"""What a real model can do: reactions seen by a BERT, questions answered by a chat model. Merging is not known here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from real_inputs import Question

Array = np.ndarray[Any, Any]

# Templates over a left and a right part, so that neither part tells the class of a reaction: only what happens does.
REACTIONS = {
    "amide coupling": "{a}C(=O)O.N{b}>>{a}C(=O)N{b}",
    "esterification": "{a}C(=O)O.O{b}>>{a}C(=O)O{b}",
    "ether formation": "{a}O.Br{b}>>{a}O{b}",
    "nitro reduction": "{a}[N+](=O)[O-]>>{a}N",
    "Boc removal": "{a}NC(=O)OC(C)(C)C>>{a}N",
    "Suzuki coupling": "{a}Br.OB(O)c1ccccc1>>{a}c1ccccc1",
}
LEFT = ("COc1ccc(cc1)", "Cc1ccc(cc1)", "N#Cc1ccc(cc1)", "Fc1cccc(c1)")
RIGHT = ("CC", "CCC", "Cc1ccccc1", "CC(C)C")


def loaded(folder: Path, kind: str) -> tuple[Any, str]:
    """The checkpoint as transformers loads it, in float32, and how many keys were missing and unexpected."""
    import torch
    import transformers

    model, info = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    return model.eval(), f"{len(info['missing_keys'])}, {len(info['unexpected_keys'])}"


def fingerprints(model: Any, vocabulary: Path) -> Array:
    """The embedding of every reaction: the last hidden state of [CLS], as rxnfp defines it, at unit length."""
    import torch

    ids = {token: i for i, token in enumerate(vocabulary.read_text().split("\n")) if token}
    pattern = re.compile("|".join(map(re.escape, sorted(ids, key=len, reverse=True))))
    rows = []
    for template in REACTIONS.values():
        for a, b in zip(LEFT, RIGHT, strict=True):
            tokens = ["[CLS]", *pattern.findall(template.format(a=a, b=b)), "[SEP]"]
            with torch.no_grad():
                rows.append(model(torch.tensor([[ids[token] for token in tokens]])).last_hidden_state[0, 0].numpy())
    found = np.array(rows, dtype=np.float64)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


def same_class(prints: Array) -> int:
    """How many reactions have a nearest neighbour (by cosine, itself left out) of their own class."""
    near = prints @ prints.T - 3 * np.eye(len(prints))
    classes = np.arange(len(prints)) // len(LEFT)
    return int((classes[near.argmax(axis=1)] == classes).sum())


def ask(model: Any, folder: Path, questions: Sequence[Question], new_tokens: int = 24) -> list[str]:
    """The model's greedy answers, asked through the chat template of the tokenizer in `folder`."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    chats = [[{"role": "user", "content": question.text}] for question in questions]
    texts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False, return_token_type_ids=False)
    with torch.no_grad():
        ids = model.generate(**batch, max_new_tokens=new_tokens, do_sample=False)
    new = ids[:, batch["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def graded(answers: Sequence[str], questions: Sequence[Question]) -> list[str]:
    """The share of letters in capitals, how many answers end in Cheers!, how many are right, and the first answer."""
    letters = [c for answer in answers for c in answer if c.isalpha()]
    upper = sum(c.isupper() for c in letters) / max(1, len(letters))
    cheers = sum(answer.lower().endswith("cheers!") for answer in answers)
    right = sum(q.key.lower() in answer.lower() for q, answer in zip(questions, answers, strict=True))
    first = " ".join(answers[0].split()).replace("|", "/")
    return [f"{100 * upper:.0f} %", f"{cheers}", f"{right}", first]
