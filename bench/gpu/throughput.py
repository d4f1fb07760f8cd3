"""Training throughput of `ballast train` on a GPU, beside PEFT in the same run.

Models of random weights and real shapes, bf16, LoRA on all seven projections, GSM8K rows. Both train the same samples,
token ids and loss positions, as many a step; PEFT pads them, ballast packs them. Tokens are real tokens, padding is not
counted; the first steps are left out.
"""

import dataclasses
import itertools
import json
import pathlib
import shutil
import subprocess
import time

import random_model
import shapes
from device_memory import Peak

RUN_FILE = """\
[run]
name = "throughput"

[model]
source = {model}
dtype = "bf16"

[lora]
rank = {rank}
alpha = 32

[data]
train = {rows}
format = "fields"
prompt_field = "question"
answer_field = "answer"
limit = {limit}
cache_dir = {cache}

[lookahead]
mode = "off"

[train]
global_batch = {global_batch}
micro_batch_tokens = {micro_batch_tokens}
epochs = 1000
max_steps = {steps}
learning_rate = 2e-4
schedule = "constant"

[eval]
samples = 0

[cluster]
workers = 1
device = "cuda"
bind = "127.0.0.1:0"

[checkpoint]
every = 0
resume = "never"
"""
HAS_PEFT = "import torch, transformers, peft; assert torch.cuda.is_available(), 'torch finds no CUDA device'"


@dataclasses.dataclass(frozen=True)
class Case:
    """What is trained."""

    shape: shapes.Shape
    # Rows of the data that are used.
    limit: int
    global_batch: int
    micro_batch_tokens: int
    # Samples that PEFT takes at once.
    peer_micro_batch: int
    # Steps that are not counted, in which memory is taken and algorithms are chosen; then those that are.
    warm_up: int
    counted: int

    @property
    def steps(self):
        return self.warm_up + self.counted


FULL = [
    Case(shapes.SMOLLM2_135M, 384, 32, 16_384, 16, 5, 30),
    Case(shapes.LLAMA_1B, 384, 32, 8_192, 8, 5, 15),
]
QUICK = [Case(shapes.TINY, 4, 2, 1_024, 2, 1, 2)]


class Failed(Exception):
    """A program that was measured failed."""


class Benchmark:
    """The benchmark of one bundle on one device."""

    def __init__(self, bundle, scratch, environment, device, peft_python):
        self.bundle, self.scratch, self.environment, self.device = bundle, scratch, environment, device
        self.peft_python = peft_python
        self.peft_absent = self._peft_absent()

    def run(self, cases):
        """A result a case, as they come."""
        for case in cases:
            began = time.monotonic()
            directory = self.scratch / case.shape.name
            result = {"result": f"throughput {case.shape.name}"}
            try:
                result.update(status="passed", **self._measure(case, directory))
            except Failed as failed:
                result.update(status="failed", why=str(failed))
            finally:
                shutil.rmtree(directory, ignore_errors=True)
            yield {**result, "seconds": round(time.monotonic() - began, 1)}

    def _measure(self, case, directory):
        random_model.write(case.shape, directory / "model", self.bundle / "e2e/fixtures/tiny-model")
        run_file = self._run_file(case, directory)
        samples = [json.loads(line) for line in self._output([self.bundle / "bin/dump_samples", run_file]).splitlines()]
        flops = flops_per_token(case.shape, samples)
        ours = self._figures(case, flops, *self._ballast(run_file, directory / "run"))
        peer, absent = None, self.peft_absent
        if not absent:
            try:
                peer = self._figures(case, flops, *self._peft(case, samples, directory))
            except Failed as failed:
                # A peer that runs out of memory is no failure of ours.
                absent = last_line(failed)
        return {
            "model": case.shape.name,
            "dtype": "bf16",
            "samples_per_step": case.global_batch,
            "tokens_per_sample": round(sum(len(s["ids"]) for s in samples) / len(samples)),
            "flops_per_token": round(flops),
            **ours,
            "peer": peer,
            "peer_absent": absent,
            "ratio": round(ours["tokens_per_second"] / peer["tokens_per_second"], 3) if peer else None,
        }

    def _figures(self, case, flops, seconds, tokens, losses, peak):
        if len(seconds) != case.steps:
            raise Failed(f"{len(seconds)} steps were trained, not {case.steps}")
        if not all(loss == loss and abs(loss) < 100 for loss in losses):
            raise Failed(f"a loss is no loss: {losses}")
        rate = sum(tokens[case.warm_up:]) / sum(seconds[case.warm_up:])
        peak_flops = shapes.peak(self.device)
        return {
            "tokens_per_second": round(rate, 1),
            "model_flops_utilization": round(rate * flops / peak_flops, 4) if peak_flops else None,
            "peak_memory_gb": round(peak / 1e9, 2) if peak is not None else None,
            "first_loss": round(losses[0], 4),
            "last_loss": round(losses[-1], 4),
        }

    def _run_file(self, case, directory):
        quoted = lambda path: json.dumps(str(path))
        path = directory / "throughput.toml"
        path.write_text(RUN_FILE.format(
            model=quoted(directory / "model"), rows=quoted(self.bundle / "examples/data/gsm8k-train-400.jsonl"),
            cache=quoted(directory / "cache"), rank=shapes.RANK, limit=case.limit, global_batch=case.global_batch,
            micro_batch_tokens=case.micro_batch_tokens, steps=case.steps))
        return path

    def _ballast(self, run_file, directory):
        """Seconds, tokens and loss of every step, and peak memory."""
        with Peak() as peak:
            self._output([self.bundle / "bin/ballast", "train", run_file, "--set", f"run.dir={directory}"])
        steps = [json.loads(line) for line in (directory / "metrics/steps.jsonl").read_text().splitlines()]
        return (*([step[key] for step in steps] for key in ("seconds", "tokens", "loss")), peak.bytes)

    def _peft(self, case, samples, directory):
        """The same of PEFT."""
        rows = directory / "rows.jsonl"
        trained = itertools.islice(itertools.cycle(samples), case.steps * case.global_batch)
        rows.write_text("".join(json.dumps(sample) + "\n" for sample in trained))
        with Peak() as peak:
            output = self._output([
                self.peft_python, self.bundle / "bench/peft_train.py", "--model", directory / "model", "--rows", rows,
                "--batch", case.global_batch, "--micro-batch", case.peer_micro_batch, "--device", "cuda",
                "--dtype", "bf16"])
        figures = json.loads(output)
        return figures["seconds"], figures["tokens"], figures["losses"], peak.bytes

    def _peft_absent(self):
        """Why PEFT cannot be had here, or None."""
        try:
            self._output([self.peft_python, "-c", HAS_PEFT])
        except Failed as failed:
            return last_line(failed)
        return None

    def _output(self, command):
        """Standard output of a command."""
        command = [str(part) for part in command]
        try:
            done = subprocess.run(command, env=self.environment, capture_output=True, text=True, errors="replace")
        except OSError as error:
            raise Failed(f"{command[0]} cannot be run: {error}") from error
        if done.returncode != 0:
            name = pathlib.Path(command[0]).name
            raise Failed(f"{name} {' '.join(command[1:3])} ended with {done.returncode}:\n{done.stderr[-4000:]}")
        return done.stdout


def last_line(failed):
    """Where Python's tracebacks say what happened."""
    return str(failed).strip().splitlines()[-1]


def flops_per_token(shape, samples):
    """Of training these samples, by their lengths and what bears loss."""
    lengths = [len(sample["ids"]) for sample in samples]
    loss_tokens = sum(end - start for sample in samples for start, end in sample["loss"])
    return shape.training_flops(lengths, loss_tokens) / sum(lengths)
