"""What keeping prompt embeddings saves: a first run, a second run with the same prompts, and the stock pipeline.

A repository in DeepFloyd IF's layout is made with random weights: a T5 encoder as large as t5-large (335 M parameters;
IF's own has 4.8 billion) and a small UNet. Then three fresh processes do the same work, from the start of Python to the
PNG: stock `IFPipeline`, `diffkit sample`, and `diffkit sample` again. Wall time and peak resident memory of each.

Run: python benchmarks/prompts.py [--steps 20] [--num 4] [--rounds 3]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import describe, finish, machine, parser, table

PROMPT = "an oil painting of a cat"
ENCODER = {"d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 24, "num_heads": 16,
           "feed_forward_proj": "gated-gelu"}  # fmt: skip
UNET = {
    "sample_size": 32, "in_channels": 3, "out_channels": 6, "block_out_channels": (64, 128, 192),
    "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 32, "cross_attention_dim": 192,
    "encoder_hid_dim": 1024, "addition_embed_type": "text", "addition_embed_type_num_heads": 8, "act_fn": "gelu",
    "resnet_time_scale_shift": "scale_shift", "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "only_cross_attention": True,
}  # fmt: skip

STOCK = """
import sys, torch
from diffusers import DDIMScheduler, IFPipeline
pipe = IFPipeline.from_pretrained(sys.argv[1], safety_checker=None, watermarker=None, feature_extractor=None,
                                  requires_safety_checker=False)
pipe.set_progress_bar_config(disable=True)
generators = [torch.Generator().manual_seed(k) for k in range(int(sys.argv[4]))]
images = pipe(sys.argv[3], num_inference_steps=int(sys.argv[2]), num_images_per_prompt=int(sys.argv[4]),
              generator=generators, guidance_scale=7.0).images
for k, image in enumerate(images):
    image.save(f"{sys.argv[5]}/{k}.png")
"""


def make_repository(folder: Path) -> None:
    """Write tokenizer, text encoder, UNet and scheduler with random weights."""
    import sentencepiece
    import torch
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    (folder / "tokenizer").mkdir(parents=True)
    letters = "abcdefghijklmnopqrstuvwxyz .,"
    with (folder / "tokenizer" / "spiece.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([PROMPT, "a photo of a dog", letters] * 5), model_writer=file, vocab_size=64,
            model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, hard_vocab_limit=False,
        )  # fmt: skip
    (folder / "tokenizer" / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 4}')
    T5EncoderModel(T5Config(vocab_size=128, **ENCODER)).save_pretrained(folder / "text_encoder")
    UNet2DConditionModel(**UNET).save_pretrained(folder / "unet")
    DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range", thresholding=True,
                  sample_max_value=1.5).save_pretrained(folder / "scheduler")  # fmt: skip
    index: dict[str, Any] = {
        "_class_name": "IFPipeline", "_diffusers_version": "0.36.0", "tokenizer": ["transformers", "T5Tokenizer"],
        "text_encoder": ["transformers", "T5EncoderModel"], "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDPMScheduler"], "safety_checker": [None, None],
        "feature_extractor": [None, None], "watermarker": [None, None], "requires_safety_checker": False,
    }  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))


def measured(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Run a fresh process; return its wall time in seconds and its peak resident memory in GiB."""
    began = time.perf_counter()
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert child.stderr is not None
    said = child.stderr.read()
    _, status, used = os.wait4(child.pid, 0)
    if status:
        sys.exit(said.decode()[-2000:])
    unit = 1 if sys.platform == "darwin" else 1024
    return {"seconds": time.perf_counter() - began, "peak_gib": used.ru_maxrss * unit / 2**30}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--steps", type=int, default=20)
    arguments.add_argument("--num", type=int, default=4)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--make", type=Path, metavar="FOLDER", help="Only write the repository.")
    args = arguments.parse_args()
    if args.make:
        make_repository(args.make)
        return
    facts = machine()
    runs: dict[str, list[dict[str, float]]] = {"stock IFPipeline": [], "diffkit, first": [], "diffkit, second": []}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        # In a process of its own: a child's peak memory begins with what its parent holds when it is started.
        subprocess.run([sys.executable, __file__, "--make", str(place / "model")], check=True)
        steps, num = str(args.steps), str(args.num)
        ours = [sys.executable, "-m", "diffkit", "sample", str(place / "model"), "-p", PROMPT, "--steps", steps, "-n",
                num, "--scheduler", "ddpm", "--guidance", "7", "--out", str(place / "ours"), "--offline"]  # fmt: skip
        (place / "theirs").mkdir()
        stock = [sys.executable, "-c", STOCK, str(place / "model"), steps, PROMPT, num, str(place / "theirs")]
        for k in range(args.rounds):
            environment = {**os.environ, "DIFFKIT_CACHE": str(place / f"cache-{k}"), "HF_HUB_OFFLINE": "1"}
            runs["stock IFPipeline"].append(measured(stock, environment))
            runs["diffkit, first"].append(measured(ours, environment))
            runs["diffkit, second"].append(measured(ours, environment))
    result = {
        name: {key: statistics.median(run[key] for run in some) for key in ("seconds", "peak_gib")}
        for name, some in runs.items()
    }
    print(describe(facts))
    print(f"{args.num} pictures, {args.steps} steps; median of {args.rounds} rounds")
    print(table(["process", "seconds", "peak GiB"], [[k, v["seconds"], v["peak_gib"]] for k, v in result.items()]))
    base = result["stock IFPipeline"]["seconds"]
    print(f"second run over stock: {result['diffkit, second']['seconds'] / base:.2f} of the time")
    finish({"machine": facts, "runs": runs, "median": result}, args.json)


if __name__ == "__main__":
    main()
