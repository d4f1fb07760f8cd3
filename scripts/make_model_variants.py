#!/usr/bin/env python3
"""Makes the fixtures of every supported model variant: tiny random models and what transformers and peft compute with them.

    bench/make-peft-env.sh
    ~/.cache/ballast/peft-env/python scripts/make_model_variants.py [DIR]        DIR: worker/tests/fixtures/variants

Each variant becomes DIR/<name>/ in the layout of the golden directories that `make parity` reads:

    model/config.json, model/*.safetensors      the base model
    golden.json                                  config of the run; batches of token ids; loss and gradient norm of every step
    adapter_init.safetensors, adapter_final...   the adapter before the first and after the last step
    step0_grads.safetensors                      gradient of every adapter tensor in the first step
    step0_logits.safetensors                     logits of every sample of the first batch, `logits_<i>` [tokens, vocabulary]

Adapter tensors carry peft's parameter names. Neither A nor B starts at zero, so that no gradient is zero. Samples are computed
one by one, unpadded: attention cannot cross them. Everything is f32 on one thread and seeded.
"""

import json
import pathlib
import sys

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

STEPS, BATCH, RANK, ALPHA = 4, 4, 4, 8
TRAINING = {"lr": 5e-3, "wd": 0.01, "betas": [0.9, 0.999], "eps": 1e-8, "clip": None, "schedule": "constant",
            "scaling": ALPHA / RANK, "r": RANK}
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES = {"vocab_size": 80, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
         "rms_norm_eps": 1e-5}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}

# model_type, what differs from SIZES, and how it is stored.
VARIANTS = {
    "llama-untied": ("llama", {"tie_word_embeddings": False}, {"max_shard_size": "20KB"}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}, {"dtype": torch.bfloat16}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}, {"dtype": torch.float16}),
    "llama-two-targets": ("llama", {"tie_word_embeddings": True}, {"targets": ["q_proj", "v_proj"]}),
    "llama3-rope": ("llama", {"rope_parameters": {"rope_theta": 10000.0, **LLAMA3}}, {}),
    "llama3-rope-old-layout": ("llama", {"rope_parameters": {"rope_theta": 10000.0, **LLAMA3}}, {"old_layout": "rope_type"}),
    "linear-rope-old-layout": ("llama", {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 3.0}},
                               {"old_layout": "type"}),
    "mistral-window": ("mistral", {"sliding_window": 6, "head_dim": 12}, {}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": 4}, {}),
    "qwen3": ("qwen3", {"head_dim": 12, "tie_word_embeddings": True}, {}),
    "gemma": ("gemma", {"head_dim": 12}, {}),
}


def random_model(model_type, differences, generator):
    """The variant with random weights: norms around their neutral value, biases away from zero."""
    config = AutoConfig.for_model(model_type, **{**SIZES, **differences})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_((0.0 if model_type == "gemma" else 1.0) + 0.2 * noise)
            else:
                parameter.copy_((0.3 if name.endswith("bias") else 0.15) * noise)
    return model


def store(model, directory, dtype=torch.float32, max_shard_size="5GB", old_layout=None, targets=None):
    """Writes config and weights, and loads them back in f32: what is computed with is what is stored."""
    del targets
    model.to(dtype).save_pretrained(directory, max_shard_size=max_shard_size)
    (directory / "generation_config.json").unlink(missing_ok=True)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    if old_layout:
        scaling = config.pop("rope_parameters")
        config["rope_theta"] = scaling.pop("rope_theta")
        scaling[old_layout] = scaling.pop("rope_type")
        config["rope_scaling"] = scaling
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def batches(generator):
    """Ragged samples; the loss bears on what follows the prompt."""
    def sample():
        length = int(torch.randint(5, 25, (1,), generator=generator))
        prompt = int(torch.randint(1, length - 1, (1,), generator=generator))
        return {"prompt_len": prompt, "ids": torch.randint(3, SIZES["vocab_size"], (length,), generator=generator).tolist()}
    return [[sample() for _ in range(BATCH)] for _ in range(STEPS)]


def batch_loss(model, batch):
    """Mean cross-entropy over all label positions of the batch, and each sample's logits."""
    total, labels, logits = 0.0, 0, []
    for sample in batch:
        ids = torch.tensor([sample["ids"]])
        output = model(input_ids=ids, use_cache=False).logits[0]
        start = sample["prompt_len"]
        total = total + torch.nn.functional.cross_entropy(output[start - 1:-1], ids[0, start:], reduction="sum")
        labels += ids.shape[1] - start
        logits.append(output.detach())
    return total / labels, logits


def adapter(parameters):
    """A copy of the adapter's tensors, by name."""
    return {name: p.detach().clone().contiguous() for name, p in parameters.items()}


def make(name, directory):
    """One variant."""
    model_type, differences, storage = VARIANTS[name]
    generator = torch.Generator().manual_seed(sorted(VARIANTS).index(name))
    base = store(random_model(model_type, differences, generator), directory / "model", **storage)
    model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, task_type="CAUSAL_LM",
                                            target_modules=storage.get("targets", ALL_LINEAR)))
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    save_file(adapter(parameters), directory / "adapter_init.safetensors")

    optimizer = torch.optim.AdamW(parameters.values(), lr=TRAINING["lr"], betas=tuple(TRAINING["betas"]), eps=TRAINING["eps"],
                                  weight_decay=TRAINING["wd"])
    data, losses, norms = batches(generator), [], []
    for step, batch in enumerate(data):
        optimizer.zero_grad()
        loss, logits = batch_loss(model, batch)
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in parameters.items()}
        assert all(g.abs().max() > 0 for g in gradients.values()), "a gradient is zero"
        if step == 0:
            save_file(gradients, directory / "step0_grads.safetensors")
            save_file({f"logits_{i}": l.contiguous() for i, l in enumerate(logits)}, directory / "step0_logits.safetensors")
        losses.append(loss.item())
        norms.append(torch.sqrt(sum(g.double().square().sum() for g in gradients.values())).item())
        optimizer.step()
    save_file(adapter(parameters), directory / "adapter_final.safetensors")
    golden = {"config": TRAINING, "batches": data, "losses": losses, "grad_norms": norms}
    (directory / "golden.json").write_text(json.dumps(golden) + "\n")
    print(f"{name:24} losses {losses[0]:.4f} .. {losses[-1]:.4f}")


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    target = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else root / "worker/tests/fixtures/variants"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name in VARIANTS:
        make(name, target / name)


if __name__ == "__main__":
    main()
