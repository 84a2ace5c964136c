"""Training in a loop of one's own: `train` yields after every update; logging, stopping and saving are yours."""

from __future__ import annotations

from pathlib import Path

import diffkit
from diffkit.data import Loader, open_dataset
from diffkit.pictures.grids import grid
from diffkit.training import Plan, build, fast, result, train
from diffkit.training.objectives import make_objective

STEPS, ENOUGH = 20, 0.05  # the usual run of the recipe takes 600
OUT = Path("runs/own-loop")
OUT.mkdir(parents=True, exist_ok=True)

recipe = diffkit.load_recipe("digits", sets=[f"training.steps={STEPS}", "training.warmup_steps=10"])
spec, losses = recipe.training, []
with fast.accelerated(recipe, OUT) as accelerator:
    dataset = open_dataset(recipe.dataset, seed=spec.seed)
    loader = Loader(dataset, recipe.dataset, batch_size=spec.batch_size, seed=spec.seed, device=accelerator.device)
    network, scheduler, meta = build.network(recipe, dataset, loader.shape)
    state = build.state(recipe, network, meta, accelerator)
    objective = make_objective(recipe.noise, scheduler, accelerator.device)
    plan = Plan.of(recipe, loader.length, world=1)
    for step in train(state, loader, objective, recipe, accelerator, plan):
        if step.step % 10 == 0:  # the loss stays on the device until somebody reads it
            losses.append(float(state.loss_sum) / state.loss_count)
            state.loss_sum.zero_()
            state.loss_count = 0
            print(f"{step.step}/{step.total} (epoch {step.epoch:.1f}): loss {losses[-1]:.4f}, lr {step.lr:.1e}")
            if losses[-1] < ENOUGH:
                break
    result.write_pipeline(OUT, network, scheduler, meta, state.ema, True)  # a folder that diffusers opens, too

pictures = diffkit.sample(str(OUT), classes=["all"], steps=10, guidance=2.0)
grid(pictures, 5).save("training_loop.png")
