"""Fine-tunes a pruned model with LoRA (needs `pip install peft`), and merges the adapter.

    python docs/examples/lora.py pruned calibration.txt tuned

Writes `tuned/adapter`, and `tuned/merged`: a checkpoint like `pruned`, which loads alone.
"""

import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import strucprune_core.register  # noqa: F401 - pruned models load without remote code

STEPS, WINDOW, RATE = 20, 64, 1e-3

pruned, text, output = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(pruned)
model = AutoModelForCausalLM.from_pretrained(pruned, dtype=torch.float32)
tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=8))
ids = torch.tensor(tokenizer(Path(text).read_text("utf-8"))["input_ids"])
windows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=RATE)
for step in range(STEPS):
    batch = windows[torch.arange(step * 4, step * 4 + 4) % len(windows)]
    loss = tuned(input_ids=batch, labels=batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step + 1}: loss {loss.item():.3f}")
tuned.save_pretrained(f"{output}/adapter")
tuned.merge_and_unload().save_pretrained(f"{output}/merged")
tokenizer.save_pretrained(f"{output}/merged")
