"""Models that the benchmark trains, and what training a token of them takes."""

import dataclasses
import re

# Of the adapter, on all seven projections.
RANK = 16

# Dense bf16 products with f32 sums, in TFLOP/s, as NVIDIA's data sheets have them without sparsity. The first name that
# a device's name contains counts; a device that is not here has no utilization.
PEAKS = [
    ("B200", 2250), ("H200", 989), ("GH200", 989), ("H100 NVL", 835), ("H100 PCIe", 756), ("H100", 989), ("H800", 989),
    ("A100", 312), ("A800", 312), ("L40S", 362), ("L40", 181), ("L4", 121), ("A40", 150), ("A30", 165), ("A10", 125),
    ("RTX 4090", 165), ("RTX 3090", 71),
]


def peak(device):
    """Peak bf16 FLOP/s of a device by its name, or None."""
    return next((tflops * 1e12 for name, tflops in PEAKS if re.search(rf"\b{name}\b", device)), None)


@dataclasses.dataclass(frozen=True)
class Shape:
    """A LLaMA's sizes. Input and output embeddings are tied."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    def projections(self):
        """Name, outputs and inputs of the seven linears of a layer."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return [
            ("self_attn.q_proj", queries, self.hidden),
            ("self_attn.k_proj", keys, self.hidden),
            ("self_attn.v_proj", keys, self.hidden),
            ("self_attn.o_proj", self.hidden, queries),
            ("mlp.gate_proj", self.intermediate, self.hidden),
            ("mlp.up_proj", self.intermediate, self.hidden),
            ("mlp.down_proj", self.hidden, self.intermediate),
        ]

    def tensors(self):
        """Name and shape of every weight, as transformers names them."""
        found = {"model.embed_tokens.weight": (self.vocabulary, self.hidden), "model.norm.weight": (self.hidden,)}
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            for norm in ("input_layernorm", "post_attention_layernorm"):
                found[f"{prefix}{norm}.weight"] = (self.hidden,)
            found.update((f"{prefix}{name}.weight", (out, inp)) for name, out, inp in self.projections())
        return found

    def training_flops(self, lengths, loss_tokens):
        """Floating-point operations that one pass of LoRA training over samples of these lengths needs at least, of
        which so many tokens bear loss; a multiplication and an addition are two.

            linears    2 P forward, 2 P for the gradient of their inputs; frozen, they need none of their own    4 P n
            adapter    2 A forward, 4 A for the gradients of its inputs and of itself                            6 A n
            attention  two products forward, four backward, over the n (n + 1) / 2 pairs that a causal mask
                       leaves, each 2 H D                                                            6 H D L n (n + 1)
            head       2 V h forward and 2 V h backward, at the tokens that bear loss alone                      4 V h m

        P and A: weights of all linears and of their adapters; n: tokens of a sample; m: those that bear loss; H heads
        of D channels, L layers, V tokens, h channels. What is computed beyond (recomputed attention, padding, logits
        that nothing is scored of) is no useful work and counted for nobody.
        """
        sizes = [(out, inp) for _, out, inp in self.projections()]
        linears = self.layers * sum(out * inp for out, inp in sizes)
        adapter = self.layers * RANK * sum(out + inp for out, inp in sizes)
        pairs = sum(n * (n + 1) for n in lengths)
        return ((4 * linears + 6 * adapter) * sum(lengths) + 6 * self.heads * self.head_dim * self.layers * pairs
                + 4 * self.vocabulary * self.hidden * loss_tokens)


# The shapes of SmolLM2-135M and Llama-3.2-1B.
SMOLLM2_135M = Shape("SmolLM2-135M", 576, 1536, 30, 9, 3, 64, 49_152)
LLAMA_1B = Shape("Llama-3.2-1B", 2048, 8192, 16, 32, 8, 64, 128_256)
TINY = Shape("tiny", 64, 128, 2, 2, 1, 64, 384)
